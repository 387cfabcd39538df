"""Bundles of one model in several precisions: which is kept, which is out, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import TESTING, Exporter
from vit_edge import Predictor, backends
from vit_edge.backends import auto
from vit_edge.build import __main__ as build
from vit_edge.build import trial, tune
from vit_edge.build.choose import Measured
from vit_edge.build.tune import check_same_model
from vit_edge.bundle import Bundle
from vit_edge.bundle.bundle import write_manifest
from vit_edge.errors import ParityError, ResourceError, UsageError
from vit_edge.machine import child

requires = ("torch", "onnx", "onnxscript", "onnxruntime")


@pytest.fixture(scope="session")
def int8_of_testing(export_once: Exporter, photos_folder: Path) -> Bundle:
    """The testing bundle in INT8."""
    return export_once(*TESTING, "--precision", "int8", "--calibration", str(photos_folder))


@pytest.fixture(scope="session")
def photos_folder(photos: list[Path]) -> Path:
    return photos[0].parent


@pytest.fixture
def pair(testing_bundle: Bundle, int8_of_testing: Bundle, tmp_path: Path) -> list[Bundle]:
    """Both, in a folder of the test's own."""
    for name, bundle in (("fp32", testing_bundle), ("int8", int8_of_testing)):
        shutil.copytree(bundle.path, tmp_path / name)
    return [Bundle.read(tmp_path / name) for name in ("fp32", "int8")]


@pytest.fixture
def copies(testing_bundle: Bundle, tmp_path: Path) -> list[Bundle]:
    """One bundle three times; what is measured of them is planted."""
    names = ("a", "b", "c")
    for name in names:
        shutil.copytree(testing_bundle.path, tmp_path / name)
    return [Bundle.read(tmp_path / name) for name in names]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No children, and short: what is timed is real."""

    def called(target: str, *arguments: Any, **limits: Any) -> child.Call:
        value = getattr(trial, target.partition(":")[2])(*arguments)
        return child.Call(value, child.ChildResult(0, "", "", 0, 0, 0.0, None, None))

    monkeypatch.setattr(child, "attempted_call", called)
    monkeypatch.setattr(trial, "AT_LEAST_S", 0.01)


def plant(monkeypatch: pytest.MonkeyPatch, *found: Sequence[Measured]) -> None:
    """Let these be the ways of the bundles, in their order."""
    monkeypatch.setattr(tune, "measure", lambda *_: [list(each) for each in found])


def setup(latency_ms: Mapping[int, float], **facts: Any) -> Measured:
    return Measured("ort", {}, latency_ms=latency_ms, **facts)


def test_each_batch_size_keeps_its_fastest_bundle(
    copies: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(
        monkeypatch,
        [setup({1: 5.68, 4: 21.0}), setup({1: 5.9, 4: 20.0})],
        [setup({1: 4.92, 4: 30.0})],
        [setup({1: 9.0, 4: 25.0})],
    )
    found = tune.tune(copies, [1, 4])
    a, b, c = (bundle.path for bundle in copies)
    assert found.lines()[:2] == [
        f"keep {b}: batch 1 4.92 ms against 5.68 ms of {a}, 9.00 ms of {c}",
        f"keep {a}: batch 4 20.00 ms against 30.00 ms of {b}, 25.00 ms of {c}",
    ]
    assert [row[2:4] for row in found.rows()[1:]] == [
        ("5.7", "21.0"), ("5.9", "20.0*"), ("4.9*", "30.0"), ("9.0", "25.0"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"parity": ("logits: 0.3 apart",)}, "logits: 0.3 apart"),
        ({"refused": "FP8 needs SM 89"}, "FP8 needs SM 89"),
        ({"over_limit": "it needed more"}, "it needed more"),
    ],
)
def test_what_is_out_is_not_kept_though_it_is_fast_and_its_reason_is_shown(
    copies: list[Bundle], monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any], reason: str
) -> None:
    plant(monkeypatch, [setup({1: 5.0})], [setup({1: 0.1}, **fault)])
    found = tune.tune(copies[:2], [1])
    kept, record, out = found.lines()
    assert kept == f"keep {copies[0].path}: batch 1 5.00 ms and nothing else passes"
    assert record.startswith("record ")
    assert out.startswith(f"out {copies[1].path}: ")
    assert reason in out
    assert reason in found.rows()[2][-1]
    assert reason in found.as_dict()["bundles"][1]["out"]
    assert auto.read(copies[0])[0]
    assert not auto.read(copies[1])[0]


def test_where_no_bundle_answers_right_the_check_failed(
    copies: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = setup({1: 1.0}, parity=("logits: 0.3 apart",))
    plant(monkeypatch, [setup({}, refused="no kernel")], [wrong])
    with pytest.raises(ParityError, match=r"(?s)a: nothing runs.*b: nothing answers as well"):
        tune.tune(copies[:2], [1])


def test_where_no_bundle_runs_every_reason_is_given(
    copies: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, [setup({}, refused="no kernel")], [setup({}, refused="too old")])
    with pytest.raises(ResourceError, match=r"(?s)no kernel.*too old"):
        tune.tune(copies[:2], [1])


def test_under_a_memory_limit_one_bundle_is_kept_for_all_batches(
    copies: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, [setup({1: 10.0, 4: 90.0})], [setup({1: 12.0, 4: 70.0})])
    assert tune.tune(copies[:2], [1, 4]).as_dict()["keep"]["1"] == str(copies[0].path)
    limited = tune.tune(copies[:2], [1, 4], memory_limit_bytes=10**9).as_dict()["keep"]
    assert limited == dict.fromkeys(("1", "4"), str(copies[1].path))


def change(bundle: Bundle, **changes: Any) -> Bundle:
    """Another manifest, as a whole bundle."""
    write_manifest(bundle.path, dataclasses.replace(bundle.manifest, **changes))
    return Bundle.read(bundle.path)


def test_another_checkpoint_is_refused(copies: list[Bundle]) -> None:
    record = dataclasses.replace(copies[1].manifest.checkpoint, sha256={"model": "0" * 64})
    with pytest.raises(UsageError, match=r"(?s)one model.*differ in checkpoint\n"):
        check_same_model([copies[0], change(copies[1], checkpoint=record)])


def test_another_variant_and_other_preprocessing_are_refused(copies: list[Bundle]) -> None:
    spec = dataclasses.replace(copies[1].manifest.preprocessing, interpolation="nearest")
    changed = change(copies[1], variant="another", preprocessing=spec)
    with pytest.raises(UsageError, match="differ in variant, preprocessing\n"):
        check_same_model([copies[0], changed])


def test_other_labels_are_refused(copies: list[Bundle]) -> None:
    labels = copies[1].path / "labels.txt"
    labels.write_text(labels.read_text().replace("\n", " x\n", 1))
    with pytest.raises(UsageError, match="differ in labels\n"):
        check_same_model([copies[0], change(copies[1])])


def test_a_bundle_given_twice_is_refused(copies: list[Bundle]) -> None:
    with pytest.raises(UsageError, match="given twice"):
        check_same_model([copies[0], Bundle.read(copies[0].path / "." / "")])


def test_other_precisions_of_a_model_are_the_same_model(pair: list[Bundle]) -> None:
    check_same_model(pair)
    assert [bundle.manifest.precision for bundle in pair] == ["fp32", "int8"]


def test_a_batch_that_one_of_them_does_not_take_is_refused(copies: list[Bundle]) -> None:
    with pytest.raises(UsageError, match="between 1 and 2"):
        tune.tune([copies[0], change(copies[1], max_batch=2)], [1, 4])


def test_float32_and_int8_are_compared_on_the_cpu(
    pair: list[Bundle], in_this_process: None
) -> None:
    found = tune.tune(pair, [1, 2], only=["ort"], rounds=2)
    many = len(backends.module("ort").configurations(pair[0]))
    assert [len(entry.measured) for entry in found.candidates] == [many, many]
    assert found.kept(1) in pair
    for bundle, entry in zip(pair, found.candidates, strict=True):
        assert entry.record is not None
        assert set(auto.read(bundle)[0]) == {1, 2}
        assert all(setup.runs[1] >= 2 * trial.AT_LEAST_RUNS for setup in entry.measured)
        with Predictor(bundle) as predictor:
            assert predictor.facts["chosen"].startswith("batch 1: ort")


def test_a_target_that_only_float32_reaches_leaves_int8_out(
    pair: list[Bundle], in_this_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(bundle.path) for bundle in pair]
    arguments = [*paths, "--tune", "--backend", "ort", "--batches", "1"]
    assert build.main([*arguments, "--parity-target", "sqnr_centred_db=80", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["keep"] == {"1": paths[0]}
    assert "chosen" in found["bundles"][0]
    assert "sqnr" in found["bundles"][1]["out"].lower()


def test_a_target_that_nothing_reaches_is_a_failed_check(
    pair: list[Bundle], in_this_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*(str(bundle.path) for bundle in pair), "--tune", "--backend", "ort"]
    target = ["--batches", "1", "--parity-target", "sqnr_centred_db=300"]
    assert build.main([*arguments, *target]) == 4
    assert capsys.readouterr().err.count("came closest") == 2


def test_bundles_take_turns(
    pair: list[Bundle], in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = trial.measure_setup

    def noted(path: str, *arguments: Any) -> Any:
        order.append(Path(path).name)
        return real(path, *arguments)

    monkeypatch.setattr(trial, "measure_setup", noted)
    tune.tune(pair, [1], only=["ort"], rounds=2)
    many = len(order) // 4
    assert order == (["fp32"] * many + ["int8"] * many) * 2


@pytest.mark.slow
def test_the_command_line_says_which_to_keep(
    pair: list[Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(bundle.path) for bundle in pair]
    assert build.main([*paths, "--tune", "--backend", "ort", "--batches", "1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-3].startswith("keep ")
    assert " against " in printed[-3]
    assert [line.startswith("record ") for line in printed[-2:]] == [True, True]


def test_without_tune_they_are_built_one_after_the_other_whatever_fails(
    pair: list[Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(pair[0].path), str(tmp_path / "nothing"), str(pair[1].path)]
    assert build.main([*paths, "--json"]) == 3
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert [entry["bundle"] for entry in found] == paths
    assert ["engine" in entry for entry in found] == [True, False, True]
    assert "no such directory" in found[1]["error"]
    assert f"{paths[1]}: BundleError" in printed.err


def test_the_exit_code_is_that_of_the_worst(
    pair: list[Bundle], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = iter([ResourceError("no memory"), UsageError("no such thing")])

    def fail(*_: Any, **__: Any) -> Any:
        raise next(errors)

    monkeypatch.setattr(child, "attempted_call", fail)
    assert build.main([str(bundle.path) for bundle in pair]) == 3
    assert capsys.readouterr().out.count("failed ") == 2
