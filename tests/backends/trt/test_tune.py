"""Build both, time both, keep the faster that passes: FP16 and INT8 on a fake TensorRT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vit_edge.backends import auto, trt
from vit_edge.build import trial
from vit_edge.build.__main__ import main
from vit_edge.bundle import Bundle
from vit_edge.export.__main__ import main as export

requires = ("torch", "onnx", "onnxscript", "onnxruntime")

PRECISIONS = ("fp16", "int8")


@pytest.fixture(scope="session")
def for_the_board(tmp_path_factory: pytest.TempPathFactory, photos: list[Path]) -> Path:
    """The testing variant as the recipe for a board makes it, in two precisions."""
    folder = tmp_path_factory.mktemp("board")
    for precision in PRECISIONS:
        arguments = ["--variant", "testing", "--checkpoint", "seeded:0", "--recipe", "orin-nano"]
        arguments += ["--precision", precision, "--calibration", str(photos[0].parent)]
        assert export([*arguments, "--max-batch", "2", "--out", str(folder / precision)]) == 0
    return folder


@pytest.fixture
def pair(for_the_board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Bundle]:
    monkeypatch.setattr(trial, "AT_LEAST_S", 0.01)
    shutil.copytree(for_the_board, tmp_path / "board")
    return [Bundle.read(tmp_path / "board" / precision) for precision in PRECISIONS]


def tune(bundles: list[Bundle], *more: str) -> int:
    paths = [str(bundle.path) for bundle in bundles]
    return main([*paths, "--tune", "--backend", "trt", "--batches", "1,2", "--json", *more])


@pytest.mark.slow
def test_both_are_built_as_the_recipe_says_and_recorded(
    fake: Any, pair: list[Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(pair) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["keep"].values()) <= {str(bundle.path) for bundle in pair}
    for bundle, entry in zip(pair, found["bundles"], strict=True):
        assert entry["precision"] == bundle.manifest.precision
        assert all(way["parity"] == [] for way in entry["measured"])
        assert {choice.backend for choice in auto.read(bundle)[0].values()} == {"trt"}
        (engine,) = (bundle.path / "engines").glob("trt-*")
        assert json.loads((engine / "plan.json").read_text())["workspace_bytes"] == 512 * 10**6


def test_the_faster_one_is_not_kept_where_its_answers_are_wrong(
    fake: Any,
    pair: list[Bundle],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """INT8 that answers at once from what it has seen, with the classes in reverse."""
    real = auto.open_choice

    def planted(bundle: Bundle, choice: auto.Choice, *others: Any) -> Any:
        backend = real(bundle, choice, *others)
        if bundle.manifest.precision != "int8":
            return backend
        run = backend.run
        known: dict[bytes, Any] = {}

        def wrong(pixels: Any) -> Any:
            key = pixels.tobytes()
            if key not in known:
                known[key] = {name: rows[:, ::-1].copy() for name, rows in run(pixels).items()}
            return known[key]

        monkeypatch.setattr(backend, "run", wrong)
        return backend

    monkeypatch.setattr(auto, "open_choice", planted)
    assert tune(pair) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["keep"].values()) == {str(pair[0].path)}
    assert "nothing answers as well" in found["bundles"][1]["out"]
    fast = [way["latency_ms"]["1"] for way in found["bundles"][1]["measured"]]
    assert max(fast) < min(way["latency_ms"]["1"] for way in found["bundles"][0]["measured"])


def test_one_that_tensorrt_refuses_is_out_and_the_other_is_kept(
    fake: Any,
    pair: list[Bundle],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trt.build(pair[0])
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "none")  # from now on it builds nothing
    assert tune(pair) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["keep"].values()) == {str(pair[0].path)}
    assert "nothing runs this bundle here" in found["bundles"][1]["out"]
