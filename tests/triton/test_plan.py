"""Plans of TensorRT in a model repository, built on a GPU that is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.backends.trt.conftest import fake as fake
from tests.triton.test_repository import config, files
from vit_edge import BackendError, Bundle, EngineError, IntegrityError
from vit_edge.backends import trt
from vit_edge.bundle import engines
from vit_edge.triton.repository import triton

requires = ("onnx", "onnxruntime")


@pytest.fixture
def plan(fake: Any, bundle: Bundle) -> Callable[..., Bundle]:
    """Builds a plan of the bundle on a GPU that is not there."""

    def build(**options: Any) -> Bundle:
        trt.build(bundle, **options)
        return bundle

    return build


def test_tensorrt_gets_the_plan_that_was_built(plan: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = plan()
    written = triton(bundle, out=tmp_path / "m", names=["m"], backend="trt")
    path, _ = trt.find(bundle)
    assert path is not None
    assert (tmp_path / "m/m/1/model.plan").read_bytes() == (path / "model.plan").read_bytes()
    assert files(tmp_path / "m/m") == {"config.pbtxt", "labels.txt", "warmup/probe", "1/model.plan"}
    text = config(tmp_path / "m/m")
    assert 'backend: "tensorrt"' in text
    assert "kind: KIND_GPU" in text
    assert "max_batch_size: 4\n" in text
    assert "profile" not in text
    assert "it was built with: tensorrt 1" in written.notes[0]


def test_a_plans_profiles_are_its_limits(plan: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = plan(profiles="1,1,1 1,2,3", version_compatible=True)
    written = triton(bundle, out=tmp_path / "m", names=["m"], backend="tensorrt", instances=2)
    text = config(tmp_path / "m/m")
    assert "max_batch_size: 3\n" in text
    assert 'profile: [ "0", "1" ]' in text
    assert "count: 2" in text
    assert any("version-compatible=true" in note for note in written.notes)


def test_without_a_plan_the_command_that_makes_one_is_said(
    plan: Callable[..., Bundle], bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="vit-edge build .* --backend trt"):
        triton(bundle, out=tmp_path / "m", names=["m"], backend="tensorrt")
    plan()
    path, _ = trt.find(bundle)
    assert path is not None
    (path / "model.plan").write_bytes(b"native code of somebody else's")
    with pytest.raises((EngineError, IntegrityError)):
        triton(bundle, out=tmp_path / "m", names=["m"], backend="tensorrt")
    assert not (tmp_path / "m").exists()


def test_a_plan_of_tensorrt_rtx_is_refused(
    plan: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = plan()
    path, _ = trt.find(bundle)
    assert path is not None
    record = path / engines.RECORD_NAME
    record.write_text(record.read_text().replace('"tensorrt ', '"tensorrt_rtx '))
    monkeypatch.setattr(trt, "find", lambda bundle, engines_dir: engines.Found(path, ""))
    with pytest.raises(BackendError, match="tensorrt_rtx .* made it"):
        triton(bundle, out=tmp_path / "m", names=["m"], backend="tensorrt")
