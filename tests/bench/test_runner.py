"""Runs: fresh processes in turns, nothing lost, what fails kept with its reason."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from tests.bench import planted
from tests.bench.report_runs import made_entry, typed_entry
from vit_edge.bench.__main__ import main
from vit_edge.bench.device import noise
from vit_edge.bench.device.noise import Ticks
from vit_edge.bench.results import results
from vit_edge.bench.run import runner, session
from vit_edge.bench.run.golden import golden_pixels
from vit_edge.bench.run.plan import Configuration, Sampling, Suite, product
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden, GoldenWriter
from vit_edge.errors import BundleError, UsageError
from vit_edge.machine import child
from vit_edge.strict import json_from_record

requires = ("onnxruntime",)

QUICK = Sampling(processes=2, percentile=0.5, at_least_s=0.02)


def suite(bundle: Bundle, *batches: int, **options: Any) -> Suite:
    made = product([bundle.path], [("ort", options)], batches, "single-stream", ["model"])
    return Suite("test", made, QUICK)


def test_a_run_keeps_every_sample_and_what_it_was_measured_on(testing_bundle: Bundle) -> None:
    saved: list[Any] = []
    found = runner.run(
        suite(testing_bundle, 1, 4), lambda run: saved.append(json.dumps(json_from_record(run)))
    )
    assert found.complete
    assert len(saved) == 1 + 4 + 1
    assert json.loads(saved[-1]) == json_from_record(found)
    assert {"cpu", "memory", "system", "affinity"} <= found.facts.keys()
    for entry, batch in zip(found.configurations, (1, 4), strict=True):
        assert entry.model.model_sha256 == testing_bundle.model_sha256
        assert entry.facts["provider"] == "CPUExecutionProvider"
        assert entry.parity is not None
        assert entry.parity.problems == ()
        assert len(entry.processes) == 2
        for process in entry.processes:
            assert len(process.latencies_ms) >= 10
            assert process.images == batch * len(process.latencies_ms)
            assert all(value > 0 for value in astuple(process.cold_s))
            memory = process.memory_bytes
            assert memory.peak >= memory.anonymous > 10e6


def test_end_to_end_takes_longer_than_the_model(testing_bundle: Bundle) -> None:
    made = product(
        [testing_bundle.path], [("ort", {})], [1], "single-stream", ["model", "end-to-end"]
    )
    found = runner.run(Suite("test", made, QUICK), lambda run: None)
    model, whole = (statistics.median(entry.samples[0]) for entry in found.configurations)
    assert whole > model + 0.3  # a JPEG takes half a millisecond at least


def test_an_option_that_a_backend_does_not_know_fails_alone(testing_bundle: Bundle) -> None:
    made = product(
        [testing_bundle.path], [("ort", {}), ("ort", {"thread": 2})], [1], "single-stream",
        ["model"],
    )  # fmt: skip
    found = runner.run(Suite("test", made, QUICK), lambda run: None)
    fine, wrong = found.configurations
    assert found.complete
    assert len(fine.processes) == 2
    assert (wrong.failed or "").startswith("TypeError: ")
    assert "thread" in (wrong.failed or "")


def test_a_failed_configuration_is_no_success(
    testing_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "s.toml"
    suite.write_text('[[measure]]\nbundles = ["absent"]\nbackends = ["ort"]\n')
    assert main(["--suite", str(suite), "--bundles-dir", str(tmp_path)]) == 4
    assert "failed: absent ort batch 1 single-stream" in capsys.readouterr().err
    assert main([str(tmp_path / "absent"), "--backend", "ort"]) == 3


def test_what_a_process_takes_to_start_has_its_runtime_among_imports(
    testing_bundle: Bundle,
) -> None:
    found = runner.run(suite(testing_bundle, 1), lambda run: None)
    for process in found.configurations[0].processes:
        assert process.cold_s.imports > process.cold_s.load  # of a model of 0.3 MB


def test_what_fails_is_kept_with_its_reason_and_the_others_go_on(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    made = (
        Configuration(tmp_path / "absent", "ort"),
        Configuration(testing_bundle.path, "ort", {"threads": 0}),
        Configuration(testing_bundle.path, "ort", {}, 5),
        Configuration(testing_bundle.path, "ort"),
    )
    found = runner.run(Suite("test", made, QUICK), lambda run: None)
    absent, wrong, large, right = found.configurations
    assert "no such directory" in (absent.failed or "")
    assert "threads must be at least 1" in (wrong.failed or "")
    assert "over the bundle's 4" in (large.failed or "")
    assert right.failed is None
    assert len(right.processes) == 2


def test_a_child_that_dies_is_kept_with_its_death(
    testing_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = child.attempted_call

    def killed(target: str, *arguments: Any, **limits: Any) -> child.Call:
        return real("tests.bench.test_runner:die")

    monkeypatch.setattr(child, "attempted_call", killed)
    found = runner.run(suite(testing_bundle, 1), lambda run: None)
    assert found.configurations[0].failed == "killed by SIGKILL"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_was_measured_before_an_end_is_kept_and_marked(
    number: signal.Signals, testing_bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "r.json"
    command = [
        sys.executable, "-m", "vit_edge.bench", str(testing_bundle.path), "--backend", "ort",
        "--processes", "500", "--seconds", "0.02", "--percentile", "0.5", "--out", str(out),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if out.exists() and results.last(out).configurations[0].processes:
            break
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    found = results.last(out)
    assert not found.complete
    assert 1 <= len(found.configurations[0].processes) < 500
    if number != signal.SIGKILL:
        assert (found.interrupted or "").startswith("after ")
        assert b"INCOMPLETE" in said


def test_the_command_line_prints_a_table_and_appends(
    testing_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.json"
    arguments = [
        str(testing_bundle.path), "--backend", "ort", "--batch", "1,2", "--processes", "2",
        "--seconds", "0.02", "--percentile", "0.5", "--out", str(out),
    ]  # fmt: skip
    assert main(arguments) == 0
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"{testing_bundle.path.name} ort batch 2 single-stream" in said
    assert "hold, " in said
    assert len(results.read(out)) == 2
    assert main(["compare", str(out), str(out)]) == 0
    assert capsys.readouterr().out.count("cannot tell") == 2


@pytest.mark.parametrize(
    "arguments",
    [[], ["x", "--suite", "y"], ["x", "--stage", "both"], ["x", "--batch", "many"]],
)  # fmt: skip
def test_a_wrong_command_line_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "UsageError" in capsys.readouterr().err


@pytest.mark.parametrize("scenario", ["server", "multi-stream"])
def test_a_scenario_that_is_no_more_is_refused(
    scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["x", "--scenario", scenario])
    assert refused.value.code == 2
    assert "offline" in capsys.readouterr().err


# Noise


def test_a_machine_that_others_use_is_told() -> None:
    before = Ticks(0, 0, 0, 0, 2)
    assert noise.machine_warnings(before, Ticks(1000, 1000, 0, 900, 2)) == []
    (told,) = noise.machine_warnings(before, Ticks(1000, 1000, 0, 300, 2))
    assert "other processes used 35% of the CPUs" in told
    (told,) = noise.machine_warnings(before, Ticks(1000, 900, 100, 1000, 2))
    assert "5% of the time went to other virtual machines" in told


def test_one_process_that_never_stops_is_told_on_many_cpus_too() -> None:
    before = Ticks(0, 0, 0, 0, 16)
    (told,) = noise.machine_warnings(before, Ticks(100, 1500, 0, 0, 16))
    assert "other processes used 6% of the CPUs" in told


def test_only_the_cpus_that_we_may_use_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(
        "cpu 111 0 0 222 0 0 0 3\ncpu0 100 0 0 200 0 0 0 1\ncpu1 11 0 0 22 0 0 0 2\nintr 5\n"
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1})
    assert noise.ticks(tmp_path)[:3] == (11, 22, 2)
    assert noise.ticks(tmp_path).cpus == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert noise.ticks(tmp_path)[:3] == (111, 222, 3)


def test_a_governor_that_follows_the_load_is_told(tmp_path: Path) -> None:
    path = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    path.parent.mkdir(parents=True)
    path.write_text("schedutil\n")
    before, after = Ticks(0, 0, 0, 0, 1), Ticks(1, 1, 0, 1, 1)
    (told,) = noise.machine_warnings(before, after, tmp_path)
    assert "governor schedutil" in told
    path.write_text("performance\n")
    assert noise.machine_warnings(before, after, tmp_path) == []


def test_our_own_work_is_not_that_of_others() -> None:
    before = noise.ticks()
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    after = noise.ticks()
    assert after.ours - before.ours >= 0.4 * os.sysconf("SC_CLK_TCK")


def test_samples_that_speak_against_themselves_are_told() -> None:
    calm = planted.process([10.0, 10.1]) | {"stable": True, "enough": True}
    other = planted.process([11.0, 11.1]) | {"stable": False, "enough": False}
    quiet, loud = (
        typed_entry(made_entry() | {"name": "a", "processes": both})
        for both in ([calm, calm], [calm, other])
    )
    assert noise.configuration_warnings(quiet) == []
    told = noise.configuration_warnings(loud)
    assert [text.partition(": ")[2].partition(" ")[0] for text in told] == ["its", "it", "it"]
    assert "10%" in told[0] or "9%" in told[0]


def test_what_was_opened_is_closed_although_what_follows_fails(testing_bundle: Bundle) -> None:
    configuration = Configuration(testing_bundle.path, "ort")
    with (
        pytest.raises(RuntimeError, match="planted"),
        session.opened(configuration, time.monotonic()) as opened,
    ):
        raise RuntimeError("planted")
    assert list(opened.cold_s) == ["import", "load", "first_answer"]
    assert all(seconds > 0 for seconds in opened.cold_s.values())
    assert opened.answer["logits"].shape[0] == 1
    with pytest.raises(UsageError, match="closed"):
        opened.query()


def test_a_bundle_without_golden_images_is_refused_and_said_to_be_that(bundle: Bundle) -> None:
    with Golden(bundle.golden_path) as golden:
        probes, outputs = golden.probes(), golden.outputs
    with GoldenWriter(
        bundle.golden_path, probes=probes, outputs=outputs, reference_dtype="float64"
    ):
        pass
    with pytest.raises(BundleError, match="holds no images"):
        golden_pixels(bundle, 2)
