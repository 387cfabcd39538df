"""What a bundle takes to download and to build; and that memory is counted as the kernel does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from vit_edge.bench.__main__ import main
from vit_edge.bench.run import built, runner
from vit_edge.bench.run.plan import Configuration, Sampling, Suite
from vit_edge.bundle import Bundle
from vit_edge.machine import cgroups, child
from vit_edge.strict import json_from_record

requires = ("torch", "onnx", "onnxscript", "onnxruntime")

QUICK = Sampling(processes=1, percentile=0.5, at_least_s=0.02)


def entry_of(configuration: Configuration, *, build: bool) -> dict[str, Any]:
    builds = built.builds([configuration]) if build else {}
    found = runner.run(Suite("test", (configuration,), QUICK), lambda run: None, [], builds)
    entry: dict[str, Any] = json_from_record(found.configurations[0])
    return entry


def test_without_an_engine_there_is_only_the_download(bundle: Bundle) -> None:
    entry = entry_of(Configuration(bundle.path, "ort"), build=False)
    files = [file for file in bundle.path.iterdir() if file.is_file()]
    assert entry["facts"]["engine"] == "none (none was built)"
    assert entry["built"] == {
        "download_bytes": sum(file.stat().st_size for file in files),
        "engine_bytes": None, "build_s": None, "build_memory_bytes": None,
    }  # fmt: skip


def test_a_build_is_measured_and_its_engine_used(bundle: Bundle) -> None:
    entry = entry_of(Configuration(bundle.path, "ort"), build=True)
    (engine,) = (bundle.path / "engines").iterdir()
    assert entry["facts"]["engine"] == engine.name
    found = entry["built"]
    assert found["engine_bytes"] == sum(file.stat().st_size for file in engine.iterdir())
    assert 0.01 < found["build_s"] < 60
    memory = found["build_memory_bytes"]
    assert memory["peak"] > memory["anonymous"] > 10e6
    again = entry_of(Configuration(bundle.path, "ort"), build=False)
    assert again["built"] == found | {"build_s": None, "build_memory_bytes": None}


def test_one_engine_is_built_once_for_all_that_load_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    real = child.measured_call

    def counted(*arguments: Any) -> child.Call:
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(child, "measured_call", counted)
    found = built.builds([Configuration(bundle.path, "ort", batch=batch) for batch in (1, 2)])
    assert len(found) == 2
    assert len(calls) == 1


def test_a_build_that_fails_is_told_and_nothing_is_measured(bundle: Bundle) -> None:
    with bundle.model_path.open("r+b") as model:
        model.write(bytes(100))
    entry = entry_of(Configuration(bundle.path, "ort"), build=True)
    assert entry["failed"].startswith("not built: ")
    assert entry["processes"] == []


def test_the_command_line_builds(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        str(bundle.path), "--backend", "ort", "--build", "--processes", "1", "--seconds", "0.02",
        "--percentile", "0.5", "--json",
    ]  # fmt: skip
    assert main(arguments) == 0
    (entry,) = json.loads(capsys.readouterr().out)["configurations"]
    assert entry["built"]["build_s"] > 0
    assert entry["processes"][0]["sensors"]["absent"] is not None


COUNTED = """
import ctypes, json, sys
from pathlib import Path
import numpy, onnxruntime
from vit_edge.bench.run.session import memory_bytes
held = numpy.ones(int(sys.argv[2]), numpy.uint8)
group = Path(sys.argv[1])
stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
told = memory_bytes()["anonymous"]
print(json.dumps([told, int(stat["anon"] if "anon" in stat else stat["rss"])]))
"""


@pytest.mark.parametrize("held_bytes", [0, 200_000_000])
def test_anonymous_memory_agrees_with_the_kernels_own_count(held_bytes: int) -> None:
    group = cgroups.memory_group(10**9)
    if group is None:
        pytest.skip("no memory cgroup can be made here: needs root or a delegated cgroup")
    try:
        arguments = [sys.executable, "-c", COUNTED, str(group.path), str(held_bytes)]
        done = child.run_child(group.command(arguments), cwd=Path.cwd())
    finally:
        group.close()
    told, counted = json.loads(done.check("counting memory").stdout)
    assert told > held_bytes + 10e6
    assert told == pytest.approx(counted, rel=0.05)
