"""Competitors: their environments are pinned, their scripts hold the protocol, a fake one runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import comparisons
import numpy as np
import pytest
from comparisons import Bar, bar_rows

from tests.bench.report_runs import made_entry, made_process, made_run, typed, typed_entry
from vit_edge.bench.results.compare import compared
from vit_edge.bench.run import runner
from vit_edge.bench.run.plan import Configuration, Sampling, Suite, read_suite
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.errors import BackendError, UsageError
from vit_edge.images.folders import PHOTOS
from vit_edge.machine import cpus
from vit_edge.strict import json_from_record

requires = ("onnxruntime",)

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
QUICK = Sampling(processes=2, percentile=0.5, at_least_s=0.02)

# A script of peers/ whose model answers what reference.npy says, plus what its setup's name adds.
FAKE = """
import sys
import numpy as np
import process
from process import Opened, Setup

def open_model(noise, folder, threads):
    answers = np.load(folder / "reference.npy")
    pixels = np.load(folder / "pixels.npy")
    def prepare(given):
        rows = [int(np.argmin(np.abs(pixels - one).sum(axis=(1, 2, 3)))) for one in given]
        return lambda: answers[rows] + noise * np.random.default_rng(0).standard_normal(10)
    print("a library that prints")
    return Opened({"runtime": "fake 1"}, prepare, lambda answer: answer)

def broken(folder, threads):
    raise RuntimeError("no kernel of this operator")

SETUPS = {"right": Setup(("json",), lambda f, t: open_model(0, f, t)),
        "wrong": Setup((), lambda f, t: open_model(1000, f, t)),
        "broken": Setup((), broken)}
sys.exit(process.main(SETUPS))
"""


@pytest.fixture
def competitors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """benchmarks/competitors.py, with a fake competitor's script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import competitors as module

    peers = tmp_path / "peers"
    peers.mkdir()
    (peers / "fake_peer.py").write_text(FAKE)
    (peers / "process.py").write_bytes((BENCHMARKS / "peers" / "process.py").read_bytes())
    monkeypatch.setattr(module.environments, "PEERS", peers)
    found: ModuleType = module
    return found


@pytest.fixture
def folder(tmp_path: Path, testing_bundle: Bundle) -> Path:
    """What competitors.inputs writes, with weights that nobody reads."""
    from vit_edge.images.preprocess import pixels_from_resized

    made = tmp_path / "folder"
    made.mkdir()
    with Golden(testing_bundle.golden_path) as golden:
        indices = list(range(len(golden)))
        images = golden.images(indices)
        np.save(made / "reference.npy", golden.answers(indices)["logits"])
    pixels = pixels_from_resized(images, testing_bundle.manifest.preprocessing)
    np.save(made / "pixels.npy", pixels)
    (made / "weights.safetensors").write_bytes(bytes(1000))
    (made / "model.json").write_text(json.dumps({"variant": "testing", "image_px": 64}))
    return made


def peer(competitors: ModuleType, folder: Path, setup: str, batch: int = 1) -> Any:
    row = competitors.Competitor("fake", setup, "none", "fp32")
    return competitors.Peer(row, sys.executable, folder, batch, 1, None)


def test_competitors_take_turns_with_ours_and_their_answers_are_judged_alike(
    competitors: ModuleType, folder: Path, testing_bundle: Bundle
) -> None:
    ours = (Configuration(testing_bundle.path, "ort", {}, 1),)
    peers = [peer(competitors, folder, setup) for setup in ("right", "wrong", "broken")]
    found = runner.run(Suite("test", ours, QUICK), lambda run: None, peers=peers)
    kept = json_from_record(found)
    own, right, wrong, broken = kept["configurations"]
    assert found.complete
    json.dumps(kept, allow_nan=False)
    assert own["processes"][0].keys() == right["processes"][0].keys()
    assert own["parity"].keys() == right["parity"].keys()
    assert right["backend"] == "peer:fake"
    assert right["bundle"]["model_bytes"] == (folder / "weights.safetensors").stat().st_size
    assert right["parity"]["problems"] == []
    assert right["parity"]["images"] == own["parity"]["images"]
    assert wrong["parity"]["problems"]
    assert "no kernel of this operator" in broken["failed"]
    assert len(right["processes"]) == 2
    own_entry, right_entry, *_ = found.configurations
    assert compared(right_entry, own_entry, found, found).paired


def test_a_batch_larger_than_the_images_is_filled_up(competitors: ModuleType, folder: Path) -> None:
    one = peer(competitors, folder, "right", batch=7)
    found = one.measure(QUICK, 10, 0)
    assert found["images"] == 7 * len(found["latencies_ms"])
    assert found["parity"]["problems"] == []


def test_a_competitor_whose_model_cannot_be_made_is_told(
    competitors: ModuleType, folder: Path
) -> None:
    row = competitors.Competitor("fake", "absent", "none", "fp32")
    with pytest.raises(BackendError, match="no setup 'absent'; there are: right"):
        competitors.make(row, sys.executable, folder)


def test_the_users_model_of_vit_cpp_is_not_taken_for_ours(
    competitors: ModuleType, folder: Path
) -> None:
    (row,) = competitors.chosen_rows(comparisons.ALL, "vit_cpp")
    bundle = competitors.Peer(row, sys.executable, folder, 1, 1, None).entry()["bundle"]
    assert bundle["variant"] == "user's model"
    assert bundle["multiply_adds"] is None


def test_ours_run_end_to_end_beside_those_that_do(competitors: ModuleType) -> None:
    bundles = {name: Path(f"tiny-{name}") for name in ("fp32", "int8")}
    own = competitors.own_configurations(comparisons.ALL.own, bundles, [2, 4], 3)
    Suite("test", own, QUICK).check()
    setups = [
        (one.bundle, one.backend, one.options, one.batch)
        for one in own
        if one.stage == "end-to-end"
    ]
    assert setups == [(bundle, "ort", {"threads": 3}, 1) for bundle in bundles.values()]


def test_what_classifies_nothing_is_not_asked_for_answers(
    competitors: ModuleType, folder: Path
) -> None:
    row = competitors.Competitor(
        "fake", "wrong", "none", "fp32", variant="product", multiply_adds=8, classifies=False
    )
    peer = competitors.Peer(row, sys.executable, folder, 1, 1, None)
    assert peer.entry()["bundle"]["multiply_adds"] == 8
    assert peer.measure(QUICK, 10, 0)["parity"] is None


def test_a_comparison_on_a_gpu_is_refused_where_there_is_none(
    competitors: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = SimpleNamespace(found=[], reason="no driver")
    monkeypatch.setattr(competitors.cuda, "gpus", lambda: here)
    with pytest.raises(BackendError, match="no NVIDIA GPU can be used: no driver"):
        competitors.check_machine(comparisons.GPU)
    competitors.check_machine(comparisons.CPU)


@pytest.mark.parametrize("name", comparisons.COMPARISONS)
def test_the_bundles_of_a_comparison_can_be_made_and_its_configurations_differ(
    name: str, competitors: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import suite_bundles

    comparison = comparisons.COMPARISONS[name]
    everything = {own.backend: "1" for own in comparison.own}
    monkeypatch.setattr(competitors.backends, "installed", lambda: everything)
    monkeypatch.setattr(competitors, "full_blocks", lambda bundle: 192)
    monkeypatch.setattr(competitors, "Bundle", SimpleNamespace(read=lambda path: path))
    bundles = {own.bundle: Path(f"tiny-patch16-224-{own.bundle}") for own in comparison.own}
    own = competitors.own_configurations(comparison.own, bundles, [1, 8], 2)
    Suite("test", own, QUICK).check()
    assert {one.options.get("split_tokens") for one in own} <= {None, 192}
    for path in bundles.values():
        suite_bundles.export_options(path.name, Path("crops"))


@pytest.mark.parametrize("streams", [1, 2])
def test_openvino_answers_a_batch_the_same_by_one_stream_and_by_two(
    streams: int, folder: Path, testing_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    import openvino_peer

    shutil.copytree(testing_bundle.path, folder, dirs_exist_ok=True)
    opened = openvino_peer.open_model("model.onnx", "f32", streams, folder, 1)
    pixels, expected = (np.load(folder / f"{name}.npy")[:3] for name in ("pixels", "reference"))
    for run in (opened.prepare(pixels), opened.prepare(pixels[:1])):  # as it is timed, and compared
        answers = opened.logits(run())
        assert np.abs(answers - expected[: len(answers)]).max() < 1e-3 * np.abs(expected).max()


# Bars: ours take 30 ms in int8 and 90 in fp32, on openvino 0.9 of it


def timed_peer(name: str, level_ms: float, macs: int | None = None) -> dict[str, Any]:
    """A competitor that takes so long."""
    entry = made_entry("fp32") | {"name": name, "backend": "peer:x"}
    entry["bundle"] |= {"name": name, "multiply_adds": macs}
    return entry | {"processes": [made_process(level_ms, 1, seed) for seed in range(3)]}


def bar_cells(bar: Bar, *entries: dict[str, Any]) -> list[tuple[str, ...]]:
    return bar_rows([bar], typed(made_run(*entries)))[1:]


def test_a_bar_sets_the_fastest_of_ours_against_the_fastest_of_theirs() -> None:
    bar = Bar("INT8", ("int8 *",), ("openvino nncf*",), 0.5)
    slow, fast = timed_peer("openvino nncf-int8", 100.0), timed_peer("openvino nncf-bf16", 40.0)
    ours = [made_entry("int8", backend) for backend in ("ort", "openvino")]
    (row,) = bar_cells(bar, *ours, slow, fast, timed_peer("timm dynamic", 1.0))
    assert row[:4] == ("1", "INT8", "int8 openvino", "openvino nncf-bf16")
    assert float(row[4]) == pytest.approx(90 * 0.33 * 0.9 / 40, rel=0.05)
    assert row[6:] == ("0.5", "NOT MET")
    (row,) = bar_cells(bar._replace(limit=0.9), *ours, slow, fast)
    assert row[-1] == "met"


def test_ours_count_only_where_their_answers_hold_and_theirs_always() -> None:
    bar = Bar("INT8", ("int8 *",), ("x",), 0.9)
    wrong = made_entry("int8", "openvino")
    theirs = timed_peer("x", 10.0)
    for entry in (wrong, theirs):
        entry["parity"] |= {"problems": ["centred SQNR is 3.1 dB"]}
    counting, missed = bar_cells(bar, made_entry("int8"), wrong, theirs)
    assert counting[2] == "int8 ort"
    assert (missed[1], missed[2]) == ("INT8, its limit missed", "int8 openvino")
    assert missed[-1] == "does not count"


@pytest.mark.parametrize(("noise", "holds"), [(1e-7, True), (1e-3, True), (0.1, False)])
def test_bf16_products_of_a_float32_bundle_are_held_to_the_limit_of_bf16(
    noise: float, holds: bool, competitors: ModuleType
) -> None:
    random = np.random.default_rng(0)
    reference, off = random.standard_normal((2, 16, 10)).astype(np.float32)
    parity = competitors.parity(reference + noise * off, reference, "fp32")
    entry = made_entry("fp32", "openvino") | {"parity": parity}
    assert comparisons.holds(typed_entry(entry)) is (noise < 1e-6)
    in_bf16 = entry | {"options": {"execution_precision": "bf16-products"}}
    assert comparisons.holds(typed_entry(in_bf16)) is holds
    assert not comparisons.holds(typed_entry(entry | {"parity": None}))


def test_the_limit_of_the_arithmetic_is_four_times_the_rate_of_a_float32_product() -> None:
    bar = Bar("limit", ("int8 *",), ("gemm *",), 1.5, 1, "arithmetic")
    ours = made_entry("int8")  # 17e9 multiply-adds in 30 ms
    (row,) = bar_cells(bar, ours, timed_peer("gemm torch", 10.0, 17 * 10**9))
    assert float(row[4]) == pytest.approx(90 * 0.33 / (10 / 4), rel=0.05)


def test_starts_are_compared_by_the_cold_start_of_each_process() -> None:
    bar = Bar("start", ("int8 ort*",), ("vit *",), 0.6, 1, "start")
    ours, theirs = made_entry("int8"), timed_peer("vit eager", 1.0)
    for entry, start_s in ((ours, 0.3), (theirs, 0.6)):
        for process in entry["processes"]:
            process["cold_s"] = {"import": start_s / 2, "load": start_s / 2, "first_answer": 0.0}
    (row,) = bar_cells(bar, ours, theirs)
    assert (float(row[4]), row[-1]) == (0.5, "met")


def test_a_bar_of_which_a_side_is_missing_says_so() -> None:
    bar = Bar("INT8", ("int8 *",), ("x",), 0.9, 8)
    (row,) = bar_cells(bar, made_entry("int8"), timed_peer("x", 10.0))  # of one image
    assert row[-1] == "not measured"


def test_the_bars_of_a_cpu_name_what_is_measured() -> None:
    """Of each bar both sides pick something, at its batch."""
    cpu = comparisons.CPU
    entries = []
    for own in cpu.own:
        entries += [
            made_entry(own.bundle, own.backend, batch, options={**own.options, "threads": 2})
            for batch in own.batches or (1,)
        ]
    for row in cpu.competitors:
        for batch in row.batches or (1,):
            entry = timed_peer(row.name, 50.0, row.multiply_adds)
            entries.append(entry | {"name": f"{row.name} {batch}", "batch": batch})
    lines = bar_rows(cpu.bars, typed(made_run(*entries)))
    assert [line[0] for line in lines[1:]] == [str(place) for place in range(1, 10)]
    assert "not measured" not in {line[-1] for line in lines}


# In place of transformers and torch: a pipeline that tells what it was given, and how.
FAKE_PIPELINE = """
from types import SimpleNamespace

def pipeline(task, **parts):
    return lambda images, **how: (images, how)

def set_num_threads(count):
    pass

read = SimpleNamespace(from_pretrained=lambda path: SimpleNamespace(num_labels=10))
AutoConfig = ViTForImageClassification = ViTImageProcessorPil = read
__version__ = "0"
"""


def test_the_pipeline_is_timed_on_photographs_and_compared_on_the_golden_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order in which process.measured prepares."""
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    for name in ("torch", "transformers"):
        module = ModuleType(name)
        exec(FAKE_PIPELINE, module.__dict__)
        monkeypatch.setitem(sys.modules, name, module)
    import transformers_peer

    monkeypatch.setattr(transformers_peer.hf_model, "checkpoint", lambda folder: folder)
    opened = transformers_peer.open_pipeline(tmp_path, 1)
    pixels = np.ones((2, 3, 8, 8), np.float32)
    timed, compared_with = opened.prepare(pixels), opened.prepare(pixels)
    photos = [str(path) for path in sorted(PHOTOS.glob("*.jpg"))]
    queries = [timed() for _ in photos]
    assert [images for images, _ in queries[:2]] == [photos[:2], photos[1:3]]
    assert queries[-1] == ([photos[-1], photos[0]], {"batch_size": 2})  # labels, as it comes
    images, how = compared_with()
    assert [np.asarray(image).tolist() for image in images] == np.full((2, 8, 8, 3), 255).tolist()
    assert how["top_k"] == 10


def test_an_environment_is_installed_again_where_its_pins_changed(
    competitors: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, folder = competitors.environments, tmp_path / "venv"
    pins = setup.PEERS / "requirements-fake.txt"
    folder.mkdir()
    ran: list[str] = []
    monkeypatch.setattr(setup, "run", lambda python, *arguments: ran.append(arguments[1]))

    def installs() -> bool:
        ran.clear()
        setup.environment(folder, pins.name)
        return ran == ["venv", "pip"]

    pins.write_text("a==1\n")
    assert installs()
    assert not installs()
    pins.write_text("a==2\n")
    assert installs()
    assert not installs()
    (folder / "installed").write_text("")  # as before pins were kept in it
    assert installs()


def test_an_environment_whose_new_pins_did_not_install_is_neither_the_old_one(
    competitors: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, folder = competitors.environments, tmp_path / "venv"
    pins = setup.PEERS / "requirements-fake.txt"
    folder.mkdir()
    (folder / "installed").write_text("a==1\n")
    pins.write_text("a==2\n")

    def fails(python: Path, *arguments: str) -> None:
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(setup, "run", fails)
    with pytest.raises(subprocess.CalledProcessError):
        setup.environment(folder, pins.name)
    pins.write_text("a==1\n")
    with pytest.raises(subprocess.CalledProcessError):
        setup.environment(folder, pins.name)


def test_a_tool_that_is_not_there_is_refused(competitors: ModuleType) -> None:
    with pytest.raises(UsageError, match="vit_cpp"):
        competitors.chosen_rows(comparisons.ALL, "torch,tensorflow")


@pytest.mark.parametrize("comparison", comparisons.COMPARISONS)
def test_every_competitor_has_its_script_and_its_environment(comparison: str) -> None:
    competitors = comparisons.COMPARISONS[comparison].competitors
    names = [row.name for row in competitors]
    assert len(set(names)) == len(names)
    for row in competitors:
        assert (BENCHMARKS / "peers" / row.script).is_file()
        if row.requirements != "none":
            assert (BENCHMARKS / "peers" / f"requirements-{row.requirements}.txt").is_file()


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "peers").glob("requirements-*.txt")), ids=str)
def test_requirements_are_pinned(path: Path) -> None:
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    loose = [line for line in lines if line and not re.match(r"[\w.\-\[\],]+==[\w.]+($|;)", line)]
    assert loose == []


@pytest.mark.parametrize("tool", ["torch", "transformers", "timm", "optimum", "openvino",
                                  "executorch", "litert", "cnn", "vit", "gemm"])  # fmt: skip
def test_a_script_has_the_setups_that_the_table_names(tool: str) -> None:
    """Without its packages: they are imported where they are needed."""
    code = f"import {tool}_peer; print(*{tool}_peer.setups())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=BENCHMARKS / "peers",
    )  # fmt: skip
    every = [row for one in comparisons.COMPARISONS.values() for row in one.competitors]
    named = {row.setup for row in every if row.tool == tool}
    assert set(done.stdout.split()) == named


VIT_CPP = """#!/bin/sh
echo 'main:    model load time =    12.50 ms' >&2
echo 'main:    processing time =    40.25 ms' >&2
"""


def test_vit_cpp_is_timed_by_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "vit"
    binary.write_text(VIT_CPP)
    binary.chmod(0o755)
    monkeypatch.setenv("VIT_CPP_BINARY", str(binary))
    monkeypatch.setenv("VIT_CPP_MODEL", str(binary))
    request = {"batch": 1, "threads": 2, "samples": 3, "at_least_s": 0.0, "most_s": 10.0}
    script = str(BENCHMARKS / "peers" / "vit_cpp_peer.py")
    argv = [sys.executable, script, "measure", "binary", str(tmp_path), json.dumps(request)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["latencies_ms"] == [40.25] * 3
    assert found["cold_s"]["load"] == 0.0125
    monkeypatch.delenv("VIT_CPP_MODEL")
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 3


# Suites


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "suites").glob("*.toml")), ids=str)
def test_a_suite_is_read_and_its_bundles_can_be_made(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import suite_bundles

    suite = read_suite(path, tmp_path)
    assert suite.title == path.stem
    for configuration in suite.configurations:
        row, options = suite_bundles.export_options(configuration.bundle.name, tmp_path / "crops")
        assert configuration.bundle.name.startswith(row)
        assert options[1] == configuration.bundle.name.rpartition("-")[2]


def test_a_bundle_with_another_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import suite_bundles

    with pytest.raises(UsageError, match="VARIANT"):
        suite_bundles.export_options("base", tmp_path)
    assert "384" in suite_bundles.export_options("base-patch16-224-at-384-fp32", tmp_path)[1]
    assert str(tmp_path) in suite_bundles.export_options("base-patch16-224-int4", tmp_path)[1]


def test_crops_are_the_same_each_time_and_there_only_when_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from photos import crops

    made = [tmp_path / name for name in ("first", "second")]
    for into in made:
        crops(PHOTOS, into, 10)
    first, second = ([file.read_bytes() for file in sorted(into.iterdir())] for into in made)
    assert first == second
    assert len(set(first)) == 10
    with pytest.raises(SystemExit, match="no JPEGs"):
        crops(tmp_path / "nothing", tmp_path / "third", 10)
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second"}


SUITE = '[[measure]]\nbundles = ["a"]\nbackends = ["ort"]\nthreads = '


def test_threads_are_a_list_or_all_up_to_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpus, "usable_cpus", lambda: 6)
    path = tmp_path / "s.toml"
    path.write_text(SUITE + '"all"')
    counts = [entry.options["threads"] for entry in read_suite(path, tmp_path).configurations]
    assert counts == [1, 2, 4, 6]
    path.write_text(SUITE + "[3, 1]")
    counts = [entry.options["threads"] for entry in read_suite(path, tmp_path).configurations]
    assert counts == [3, 1]


@pytest.mark.parametrize("threads", ['"some"', "[0]", "2", "[true]", "[1, 1]"])
def test_threads_that_mean_nothing_are_refused(threads: str, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(SUITE + threads)
    with pytest.raises(UsageError, match="threads"):
        read_suite(path, tmp_path)
