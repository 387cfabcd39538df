"""The health check of the images is green when a bundle answers, and red when it does not."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.modules import module_from
from vit_edge.bundle import Bundle
from vit_edge.machine import cuda

requires = ("onnxruntime",)


@pytest.fixture
def healthcheck(repository: Path) -> ModuleType:
    return module_from(repository / "docker" / "healthcheck.py")


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mounted"
    folder.mkdir()
    monkeypatch.setenv("VIT_EDGE_BUNDLES", str(folder))
    return folder


def test_a_bundle_that_answers_is_healthy(
    healthcheck: ModuleType, mounted: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(bundle.path, mounted / "mine")
    assert healthcheck.main() == 0
    assert capsys.readouterr().out.startswith("mine answers: ")


def test_a_bundle_that_lost_its_model_is_unhealthy_with_the_reason(
    healthcheck: ModuleType, mounted: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(bundle.path, mounted / "mine")
    (mounted / "mine" / "model.onnx").unlink()
    assert healthcheck.main() == 1
    assert "model.onnx: missing" in capsys.readouterr().out


def test_without_a_bundle_a_runtime_is_enough(
    healthcheck: ModuleType, mounted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert healthcheck.main() == 0
    assert "no bundle mounted; " in capsys.readouterr().out


def test_without_a_runtime_it_is_unhealthy(
    healthcheck: ModuleType, mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit_edge.backends.installed", dict)
    assert healthcheck.main() == 1


def test_a_gpu_that_vanished_is_unhealthy(
    healthcheck: ModuleType,
    mounted: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VIT_EDGE_NEEDS_GPU", "1")
    monkeypatch.setattr(cuda, "gpus", lambda: cuda.Gpus((), "13.0", "it has vanished"))
    assert healthcheck.main() == 1
    assert "it has vanished" in capsys.readouterr().out
