"""build --tune on a real bundle, and the predictor that follows its record."""

from __future__ import annotations

import ctypes
import json
import mmap
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_edge import Predictor, backends
from vit_edge.backends import auto
from vit_edge.build import __main__ as build
from vit_edge.build import trial, tune
from vit_edge.build.choose import Measured
from vit_edge.build.trial import measure_setup
from vit_edge.bundle import Bundle, engines
from vit_edge.errors import EngineError, UsageError
from vit_edge.machine import cgroups, child

requires = ("torch", "onnx", "onnxscript", "onnxruntime")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round of a few runs."""
    monkeypatch.setattr(tune, "ROUNDS", 1)
    monkeypatch.setattr(trial, "AT_LEAST_S", 0.01)


@pytest.fixture(scope="module")
def tuned_bundle(testing_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("tuned") / "bundle"
    shutil.copytree(testing_bundle.path, folder)
    bundle = Bundle.read(folder)
    tune.tune([bundle], [1, 3], only=["ort"], rounds=1)
    return bundle


def test_an_untuned_bundle_runs_on_ort_and_says_why(bundle: Bundle) -> None:
    with Predictor(bundle) as predictor:
        assert predictor.facts["backend"] == "ort"
        assert "untuned (none was built" in predictor.facts["chosen"]


@pytest.mark.slow
def test_tuning_records_a_winner_for_each_batch_that_the_predictor_takes(
    tuned_bundle: Bundle,
) -> None:
    choices, reason = auto.read(tuned_bundle)
    assert reason == ""
    assert set(choices) == {1, 3}
    with Predictor(tuned_bundle) as predictor:
        assert f"batch 1: {choices[1].name}" in predictor.facts["chosen"]
        assert predictor.facts["engine"].startswith("ort-")


@pytest.mark.parametrize("problems", [[], ["logits: max |diff| between batch sizes is 0.1"]])
def test_batch_sizes_have_ways_of_their_own_only_where_those_answer_alike(
    problems: list[str], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = [
        Measured("ort", {}, latency_ms={1: 1.0, 3: 2.9}),
        Measured("ort", {"micro_batch": 1}, latency_ms={1: 1.1, 3: 2.8}),
    ]
    terms = trial.Terms([1, 3], None, None, None)
    real = trial.mixed_problems(
        str(bundle.path), {1: ("ort", {}), 3: ("ort", {"micro_batch": 1})}, None
    )
    assert real == []
    monkeypatch.setattr(child, "call_in_child", lambda *_: problems)
    chosen = tune.keep(bundle, measured, terms).chosen
    assert chosen == ({1: 0, 3: 1} if not problems else {1: 0, 3: 0})


def test_a_way_that_answers_otherwise_is_seen(bundle: Bundle) -> None:
    class Other:
        def __init__(self) -> None:
            self.right = backends.module("ort").load(bundle)
            self.facts, self.close = self.right.facts, self.right.close

        def run(self, pixels: Any) -> Any:
            return {name: values * 1.02 for name, values in self.right.run(pixels).items()}

    opened = auto.open_choice
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            auto,
            "open_choice",
            lambda found, choice, *others: (
                Other() if choice.options else opened(found, choice, *others)
            ),
        )
        found = trial.mixed_problems(
            str(bundle.path), {1: ("ort", {}), 3: ("ort", {"micro_batch": 1})}, None
        )
    assert any(problem.startswith("logits, batch 2, 3, 4: max |diff|") for problem in found)


def test_everything_that_was_measured_is_kept(tuned_bundle: Bundle) -> None:
    (record,) = (tuned_bundle.path / "engines").glob("tuned-*")
    measured = json.loads((record / "tuned.json").read_text())["measured"]
    assert len(measured) == len(backends.module("ort").configurations(tuned_bundle))
    for setup in measured:
        assert setup["parity"] == []
        assert setup["latency_ms"]["1"] > 0
        assert setup["runs"]["3"] >= trial.AT_LEAST_RUNS
        assert setup["peak_rss_bytes"] > setup["peak_anonymous_bytes"] > 0


def test_a_tuned_predictor_answers_any_batch_like_its_backends(tuned_bundle: Bundle) -> None:
    shape = tuned_bundle.manifest.input.shape[1:]
    found = auto.load(tuned_bundle)
    expected = backends.module("ort").load(tuned_bundle)
    for size in (1, 2, 3, 4):
        pixels = np.random.default_rng(size).standard_normal((size, *shape)).astype(np.float32)
        np.testing.assert_allclose(
            found.run(pixels)["logits"], expected.run(pixels)["logits"], atol=1e-5
        )
    found.close()
    with pytest.raises(UsageError, match="closed"):
        found.run(pixels)


def test_a_tuned_backend_can_be_pickled(tuned_bundle: Bundle) -> None:
    again = pickle.loads(pickle.dumps(auto.load(tuned_bundle)))
    assert "batch 1: ort" in again.facts["chosen"]


def test_each_size_runs_on_the_backend_chosen_for_the_next_size(
    tuned_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name, self.facts = name, {"backend": name}

        def run(self, pixels: Any) -> Any:
            return self.name

        def close(self) -> None:
            opened.remove(self.name)

    def fake(bundle: Bundle, choice: auto.Choice, *others: object) -> Any:
        opened.append(choice.backend)
        return Fake(choice.backend)

    choices = {1: auto.Choice("ort", {}), 8: auto.Choice("openvino", {})}
    monkeypatch.setattr(auto, "open_choice", fake)
    found = auto.TunedBackend(tuned_bundle, choices, "", None)
    assert opened == ["ort"]  # the other not before it is needed
    assert [found.run(np.zeros((n, 1))) for n in (1, 2, 8, 9)] == [
        "ort", "openvino", "openvino", "openvino",
    ]  # fmt: skip
    assert opened == ["ort", "openvino"]
    found.close()
    assert opened == []


def test_another_runtime_makes_the_record_out_of_date(
    tuned_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "version", lambda name: "onnxruntime 9.9")
    choices, reason = auto.read(tuned_bundle)
    assert not choices
    assert "now there is onnxruntime 9.9" in reason
    assert "--tune" in reason


def test_another_machine_makes_the_record_out_of_date(
    tuned_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto.cpus, "cpu_model", lambda: "another")
    choices, reason = auto.read(tuned_bundle)
    assert not choices
    assert "another model, runtime or machine" in reason


def test_a_record_that_was_changed_is_not_followed(tuned_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(tuned_bundle.path, tmp_path / "copy")
    assert auto.read(Bundle.read(tmp_path / "copy"))[0] == {}  # not made here: no record of ours
    (record,) = (tuned_bundle.path / "engines").glob("tuned-*")
    content = (record / "tuned.json").read_text()
    try:
        (record / "tuned.json").write_text(content.replace('"ort"', '"eager"'))
        assert auto.read(tuned_bundle)[0] == {}
    finally:
        (record / "tuned.json").write_text(content)


def test_a_record_of_ours_that_says_nothing_is_an_error(bundle: Bundle) -> None:
    tuning = tune.tune([bundle], [1], only=["ort"], rounds=1)
    with auto.engines.stage_engine(
        bundle, auto.NAME, auto.key_parts(bundle), (auto.RECORD_NAME,), None, 1
    ) as stage:
        (stage.path / auto.RECORD_NAME).write_text("{}")
    with pytest.raises(EngineError, match="remove"):
        auto.read(bundle)
    assert tuning.candidates[0].record is not None
    assert tuning.candidates[0].record.path.is_dir()


def test_a_way_with_wrong_answers_is_found_out(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child's own function, with a backend that adds a little."""
    real = auto.open_choice

    def wrong(bundle: Bundle, choice: auto.Choice, engines_dir: Path | None) -> Any:
        backend = real(bundle, choice, engines_dir)
        run = backend.run
        backend.run = lambda pixels: {k: v + 1e-2 for k, v in run(pixels).items()}  # type: ignore[method-assign]
        return backend

    monkeypatch.setattr(auto, "open_choice", wrong)
    monkeypatch.setattr(trial, "AT_LEAST_S", 0.0)
    found = measure_setup(str(bundle.path), "ort", {}, None, [1], True, None)
    assert found["parity"]


@pytest.mark.parametrize("batches", [[], [0], [99]])
def test_batch_sizes_out_of_range_are_refused(bundle: Bundle, batches: list[int]) -> None:
    with pytest.raises(UsageError, match="between 1 and 4"):
        tune.tune([bundle], batches)


@pytest.mark.slow
def test_a_way_that_does_not_fit_the_limit_is_not_chosen(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(bundle.path), "--tune", "--backend", "ort", "--batches", "1"]
    assert build.main([*arguments, "--memory-limit", "20MB"]) == 3
    assert "came closest" in capsys.readouterr().err


@pytest.mark.slow
def test_a_target_that_nothing_reaches_is_a_failed_check(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], hurried: None
) -> None:
    arguments = [str(bundle.path), "--tune", "--backend", "ort", "--batches", "1"]
    assert build.main([*arguments, "--parity-target", "sqnr_centred_db=300"]) == 4
    assert "came closest" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--batches=1", "--memory-limit=1GB", "--parity-target=x=1"])
def test_options_of_tuning_are_refused_without_it(bundle: Bundle, option: str) -> None:
    assert build.main([str(bundle.path), option]) == 2


@pytest.mark.parametrize("text", ["", "much", "0MB", "-1MB", "10 parsecs"])
def test_a_size_that_is_none_is_refused(bundle: Bundle, text: str) -> None:
    assert build.main([str(bundle.path), "--tune", f"--memory-limit={text}"]) == 2


def test_evicting_a_folder_leaves_its_files_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    cgroups.evict(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"content"


def test_engines_are_evicted_wherever_they_lie(bundle: Bundle, tmp_path: Path) -> None:
    files = [bundle.path / "engines" / "a" / "x", tmp_path / "elsewhere" / "ort-1" / "x"]
    for file in (bundle.model_path, *files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(2**20))
    engines.evict(bundle, tmp_path / "elsewhere")
    kept = [cached_pages(file) for file in (bundle.model_path, files[1])]
    if any(kept) and cached_pages_after_advice(tmp_path):
        pytest.skip("this file system keeps its pages whatever it is told")
    assert kept == [0, 0]


def cached_pages_after_advice(folder: Path) -> int:
    """Whether the advice is heeded here at all: it is not on tmpfs."""
    (folder / "probe").write_bytes(bytes(2**20))
    cgroups.evict(folder)
    return cached_pages(folder / "probe")


def cached_pages(file: Path) -> int:
    """How many pages of a file are in the page cache (mincore(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
    view = np.frombuffer(mapped, np.uint8)
    found = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
    address = ctypes.c_void_p(view.ctypes.data)
    states = found.ctypes.data_as(ctypes.c_void_p)
    assert libc.mincore(address, ctypes.c_size_t(len(view)), states) == 0
    return int((found & 1).sum())
