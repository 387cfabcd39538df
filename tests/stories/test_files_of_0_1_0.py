"""A bundle and results that an earlier layout of the code wrote still open, and say the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vit_edge import Predictor
from vit_edge.bench import __main__ as bench
from vit_edge.bench.results.results import read
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.parity import __main__ as parity
from vit_edge.parity.report.read import read_results
from vit_edge.strict import json_from_record
from vit_edge.verify import main as verify

requires = ("onnxruntime",)

OLD = Path(__file__).resolve().parents[1] / "data" / "0.1.0"


@pytest.fixture
def old_bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / "bundle", tmp_path / "bundle"))


def test_its_bundle_is_read_verified_and_predicts(old_bundle: Path, photos: list[Path]) -> None:
    assert verify([str(old_bundle)]) == 0
    manifest = Bundle.read(old_bundle).manifest
    assert (manifest.variant, manifest.precision) == ("testing", "fp32")
    with Predictor(old_bundle, backend="ort") as predictor:
        assert len(predictor.predict(photos[0]).top) == 5
    with Golden(old_bundle / "golden.npz") as golden:
        assert golden.answers([0])["logits"].shape == (1, manifest.num_classes)


def test_its_golden_answers_are_still_met(old_bundle: Path) -> None:
    assert parity.main([str(old_bundle), "--backend", "ort"]) == 0


def test_its_bench_results_are_read_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    runs = read(OLD / "bench.json")
    scenarios = {entry.scenario for run in runs for entry in run.configurations}
    assert scenarios == {"single-stream", "multi-stream", "server"}
    assert bench.main(["report", str(OLD / "bench.json")]) == 0
    shown = capsys.readouterr().out
    assert "single-stream" in shown
    assert "server" in shown


def test_its_parity_results_are_read() -> None:
    (result,) = read_results([OLD / "parity.json"])
    assert [run.verdict for run in result.runs] == ["pass"]
    assert all(finding.status == "pass" for run in result.runs for finding in run.findings)
    written = json_from_record(result)
    assert all(run.pop("findings") for run in written["runs"])  # 0.1.0 stored none
    assert written == json.loads((OLD / "parity.json").read_text())
