"""Building: in a child that may die, with less memory when it runs out, recorded as it was."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_edge import backends
from vit_edge.backends import trt
from vit_edge.backends.trt import library
from vit_edge.backends.trt.options import BuildOptions, Profile, split
from vit_edge.build.__main__ import main
from vit_edge.build.options import options_from_text
from vit_edge.bundle import Bundle, engines, trust
from vit_edge.errors import BackendError, EngineError, IntegrityError, ResourceError, UsageError

requires = ("onnx", "onnxruntime")

MB = 10**6


def plan_head(engine: Path) -> Any:
    """What the fake TensorRT was told, as its plan has it."""
    data = (engine / "model.plan").read_bytes()
    return json.loads(data[16 : 16 + int.from_bytes(data[8:16], "little")])


def record(engine: Path) -> Any:
    return json.loads((engine / "plan.json").read_text())


def test_an_engine_holds_the_plan_its_record_and_its_layers(
    fake: Any, real_children: None, bundle: Bundle
) -> None:
    engine = trt.build(bundle)
    assert engine.parent == bundle.path / "engines"
    names = {"model.plan", "plan.json", "layers.json", "engine.json"}
    assert {file.name for file in engine.iterdir()} == names
    found = record(engine)
    assert found["model"] == bundle.model_sha256
    assert found["gpu"]["name"] == "Fake GPU 0"
    assert found["gpu"]["compute_capability"] == [8, 7]
    assert found["driver_cuda"] == "13.2"
    assert found["build_peak_rss_bytes"] > 20 * MB
    assert found["plan_bytes"] == (engine / "model.plan").stat().st_size
    assert sum(found["network_layers"].values()) > 10
    assert sum(found["precisions"].values()) == 2
    assert set(trust.recorded_hashes(engine)) == {"model.plan", "plan.json", "layers.json"}


def test_float32_is_not_multiplied_as_tf32_unless_asked_for(fake: Any, bundle: Bundle) -> None:
    assert "TF32" not in plan_head(trt.build(bundle))["flags"]
    engine = trt.build(bundle, tf32=True)
    assert "TF32" in plan_head(engine)["flags"]
    backend = trt.load(bundle)
    assert backend.facts["tf32"] == "on"
    backend.close()


def test_options_reach_the_builder(fake: Any, bundle: Bundle) -> None:
    engine = trt.build(
        bundle, profiles="1,1,1 1,2,4", optimization_level=5, workspace_mb=100,
        version_compatible=True,
    )  # fmt: skip
    head = plan_head(engine)
    assert [[shape[0] for shape in next(iter(p.values()))] for p in head["profiles"]] == [
        [1, 1, 1],
        [1, 2, 4],
    ]
    assert head["level"] == 5
    assert head["workspace"] == 100 * MB
    assert "VERSION_COMPATIBLE" in head["flags"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"profiles": "2,2,4"}, "one of them must begin at batch size 1"),
        ({"profiles": "1,5,4"}, "1 <= least <= best <= most <= 4"),
        ({"profiles": "1,2,64"}, "the bundle's largest batch"),
        ({"profiles": "some"}, "expected least,best,most"),
        ({"workspace_mb": 0}, "workspace_mb must be at least 1"),
        ({"optimization_level": 6}, "0..5, not 6"),
        ({"hardware_compatibility": "all"}, "one of none, ampere-plus"),
        ({"dla_core": -1}, "dla_core must be at least 0"),
        ({"dla_core": 0, "hardware_compatibility": "ampere-plus"}, "exclude each other"),
        ({"dla_core": 0, "profiles": "1,1,4"}, "fixed batch sizes only"),
        ({"library": "tensorrt_rtx", "version_compatible": True}, "has no version_compatible"),
        ({"library": "torch_tensorrt"}, "library must be tensorrt or tensorrt_rtx"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BuildOptions(**options).check(4)


@given(st.data())
def test_a_batch_is_split_into_runs_that_a_profile_takes(data: st.DataObject) -> None:
    sizes = st.integers(1, 64)
    others = data.draw(st.lists(st.tuples(sizes, sizes).map(sorted), max_size=3))
    first = data.draw(sizes)
    profiles = [Profile(1, 1, first), *(Profile(low, low, high) for low, high in others)]
    images = data.draw(st.integers(0, 200))
    found = split(profiles, images)
    assert sum(found) == images
    assert all(any(p.least <= n <= p.most for p in profiles) for n in found)
    assert len(found) <= -(-images // first)


# What TensorRT answers with None, or dies of


def test_what_the_parser_does_not_take_is_said_with_its_node(fake: Any, bundle: Bundle) -> None:
    import onnx

    from vit_edge.backends.trt.compiler import Job, compile_plan
    from vit_edge.backends.trt.library import open_library

    model = onnx.load(bundle.model_path)
    model.graph.node[3].domain, model.graph.node[3].op_type = "my.own", "Own"
    path = bundle.path.parent / "planted.onnx"
    onnx.save(model, path)
    job = Job(path, "pixels", (3, 8, 8), (Profile(1, 1, 1),), BuildOptions())
    with pytest.raises(BackendError, match=rf"node {model.graph.node[3].name} \(Own\): Plugin"):
        compile_plan(open_library("tensorrt"), job)


def test_a_refusal_of_the_builder_is_an_error_with_its_words(
    fake: Any, real_children: None, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "none")
    with pytest.raises(BackendError, match="Could not find any implementation for node x"):
        trt.build(bundle)
    assert not list(bundle.path.glob("engines/*"))


def test_a_crash_of_tensorrt_is_an_error_and_leaves_nothing(
    fake: Any, real_children: None, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "crash")
    with pytest.raises(BackendError, match="TensorRT died: killed by SIGSEGV"):
        trt.build(bundle)
    assert not list(bundle.path.glob("engines/*"))


@pytest.mark.parametrize("way", ["oom", "kill"])
def test_where_memory_runs_out_it_is_tried_with_less_and_that_is_said(
    way: str,
    fake: Any,
    real_children: None,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", f"{way}:{100 * MB}")
    engine = trt.build(bundle)
    assert record(engine)["changed"].startswith("with 64 MB of workspace")
    assert plan_head(engine)["workspace"] == 64 * MB
    assert plan_head(engine)["level"] == 0
    assert caplog.text.count("trying again") == 2
    with contextlib.closing(trt.load(bundle)) as backend:
        assert backend.facts["built"].startswith("with 64 MB of workspace")


def test_a_first_run_without_memory_builds_nothing_anew(
    fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt

    builds = []
    real = tensorrt.Builder.build_serialized_network
    monkeypatch.setattr(
        tensorrt.Builder,
        "build_serialized_network",
        lambda *arguments: builds.append(1) or real(*arguments),
    )
    fake.fail["cudaMallocHost"] = 2
    with pytest.raises(ResourceError, match="the GPU's memory ran out"):
        trt.build(bundle)
    fake.fail.clear()
    assert len(builds) == 1


def test_a_refusal_after_memory_ran_out_does_not_hide_that_it_did(
    fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt

    words = iter(["out of memory", "no tactics within workspace limit", "no tactics again"])

    def refuse(builder: Any, network: Any, config: Any) -> None:
        return builder._refuse(next(words), None)

    monkeypatch.setattr(tensorrt.Builder, "build_serialized_network", refuse)
    with pytest.raises(ResourceError, match=r"(?s)memory ran out, whatever.*no tactics again"):
        trt.build(bundle)


def test_an_engine_that_answers_with_nan_is_not_kept(
    fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    class Nan:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.real = real(*arguments, **options)
            self.get_inputs, self.get_outputs = self.real.get_inputs, self.real.get_outputs

        def run(self, names: Any, feed: Any) -> Any:
            return [answer * np.float32("nan") for answer in self.real.run(names, feed)]

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", Nan)
    with pytest.raises(EngineError, match="NaN or Inf"):
        trt.build(bundle)
    assert not list(bundle.path.glob("engines/*"))


def test_where_nothing_helps_the_error_says_what_was_tried(
    fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "oom:1")
    with pytest.raises(ResourceError, match="whatever was tried") as caught:
        trt.build(bundle)
    assert str(caught.value).count("cannot build it: memory ran out") == 3
    assert "profiles=" in str(caught.value)


def test_a_board_that_shares_its_memory_gets_limits(
    fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert record(trt.build(bundle))["workspace_bytes"] is None
    monkeypatch.setenv("FAKE_GPU_INTEGRATED", "1")
    found = record(trt.build(bundle))
    assert found["workspace_bytes"] == 10**9
    assert found["tactic_bytes"] > 0
    monkeypatch.setenv("FAKE_GPU_MEMORY", "4e9")
    assert record(trt.build(bundle))["workspace_bytes"] == 5 * 10**8


def test_a_machine_with_too_little_memory_is_refused_before_the_build(
    fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vit_edge.machine import memory

    nothing = memory.Memory(10**9, 50 * MB, None, None)
    monkeypatch.setattr(memory, "memory", lambda: nothing)
    with pytest.raises(ResourceError, match=r"building takes about 0.4 GB of memory"):
        trt.build(bundle)


def test_a_full_gpu_is_refused_before_the_build(
    fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_GPU_MEMORY", "1e5")
    with pytest.raises(ResourceError, match="Fake GPU 0 has 0 MB free, and the weights alone take"):
        trt.build(bundle)
    monkeypatch.setenv("FAKE_GPU_INTEGRATED", "1")
    trt.build(bundle)


@pytest.mark.parametrize("factory", ["Builder", "OnnxParser"])
def test_a_factory_of_tensorrt_that_gives_nothing_is_an_error(
    factory: str, fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt

    def nothing(*arguments: Any) -> Any:
        arguments[-1].log(tensorrt.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(tensorrt, factory, nothing)
    with pytest.raises(BackendError, match=r"(?s)TensorRT gives no.*nullptr.*error: 35"):
        trt.build(bundle)


def test_an_inspector_that_tells_nothing_costs_no_engine(
    fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "odd inspector")
    engine = trt.build(bundle)
    assert record(engine)["precisions"] == {}
    assert "inspector" in record(engine)["inspector"]


def test_what_was_timed_serves_the_next_build_and_only_if_we_recorded_it(
    fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trt.build(bundle)
    (cache,) = (tmp_path / "cache").rglob("timing.cache")
    assert cache.read_bytes().startswith(b"timed by")
    from vit_edge.backends.trt import builder as building
    from vit_edge.backends.trt.library import the_gpu

    assert building._known_timings(the_gpu(0), "tensorrt") == cache.read_bytes()
    cache.write_bytes(b"planted")
    assert building._known_timings(the_gpu(0), "tensorrt") == b""
    trt.build(bundle)
    assert cache.read_bytes().startswith(b"timed by")


def test_a_dla_gets_what_it_can_run_and_the_rest_is_named(
    fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match="there is no DLA core 0"):
        trt.build(bundle, dla_core=0)
    monkeypatch.setenv("FAKE_DLA_CORES", "2")
    engine = trt.build(bundle, dla_core=1)
    assert "GPU_FALLBACK" in plan_head(engine)["flags"]
    assert plan_head(engine)["dla"] == 1
    assert record(engine)["profiles"] == ["1,1,1"]
    left = record(engine)["dla"]["left_to_gpu"]
    assert any("Softmax" in name for name in left)
    assert not any(name.endswith("/MatMul") for name in left)
    backend = trt.load(bundle)
    assert backend.facts["dla"] == f"core 1, {len(left)} layers left to the GPU"
    backend.close()


def test_other_options_are_another_engine_and_the_newest_is_found(
    fake: Any, bundle: Bundle
) -> None:
    first = trt.build(bundle)
    second = trt.build(bundle, optimization_level=5)
    assert first != second
    assert trt.find(bundle).path == second
    os.utime(first / "engine.json")
    assert trt.find(bundle).path == first
    assert trt.key(bundle) in first.name


@pytest.mark.parametrize("part", ["runtime", "gpu", "compute_capability", "multiprocessors"])
def test_an_engine_of_another_gpu_or_version_is_not_found(
    part: str, fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt.build(bundle)
    real = trt.device_parts
    monkeypatch.setattr(trt, "device_parts", lambda *device: real(*device) | {part: "another"})
    assert trt.find(bundle).path is None
    assert "another model, runtime or machine" in trt.find(bundle).reason
    with pytest.raises(EngineError, match="build one with"):
        trt.load(bundle)


def test_a_tampered_plan_is_never_opened(fake: Any, bundle: Bundle) -> None:
    engine = trt.build(bundle)
    plan = engine / "model.plan"
    before = plan.stat()
    data = bytearray(plan.read_bytes())
    data[-1] ^= 1
    plan.write_bytes(bytes(data))
    os.utime(plan, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(EngineError, match="was not built here, or changed since"):
        trt.load(bundle)


def test_a_plan_is_hashed_at_every_load(
    fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = trt.build(bundle)
    recorded = trust.recorded_hashes(engine)
    data = bytearray((engine / "model.plan").read_bytes())
    data[-1] ^= 1
    (engine / "model.plan").write_bytes(bytes(data))
    # as if size, times and inode were the same
    monkeypatch.setattr(trust, "recorded_hashes", lambda folder: recorded)
    with pytest.raises(IntegrityError, match=r"model.plan is not the file that was built here"):
        trt.load(bundle)


def test_what_was_hashed_is_what_is_opened(
    fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody replaces the plan between the hash and its use."""
    import tensorrt

    engine = trt.build(bundle)
    right = (engine / "model.plan").read_bytes()
    real, opened = trt.open_library, []

    def swap(name: Any) -> Any:
        (engine / "model.plan").write_bytes(b"planted")
        return real(name)

    monkeypatch.setattr(trt, "open_library", swap)
    deserialize = tensorrt.Runtime.deserialize_cuda_engine
    monkeypatch.setattr(
        tensorrt.Runtime,
        "deserialize_cuda_engine",
        lambda runtime, plan: opened.append(bytes(plan)) or deserialize(runtime, plan),
    )
    trt.load(bundle).close()
    assert opened == [right]


def test_a_timing_cache_is_hashed_before_it_is_used(
    fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from vit_edge.backends.trt import builder as building
    from vit_edge.backends.trt.library import the_gpu

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trt.build(bundle)
    (cache,) = (tmp_path / "cache").rglob("timing.cache")
    recorded = trust.recorded_hashes(cache.parent)
    cache.write_bytes(b"planted")
    monkeypatch.setattr(trust, "recorded_hashes", lambda folder: recorded)
    assert building._known_timings(the_gpu(0), "tensorrt") == b""


@pytest.mark.parametrize("content", ["[]", '{"key": []}', '{"key": 3}', "{", '{"key": {"a": []}}'])
def test_a_broken_record_in_the_engines_folder_is_passed_over(
    content: str, fake: Any, bundle: Bundle
) -> None:
    for name in ("trt-", "trt-0123", f"trt-{engines.key_of({})}"):
        (bundle.path / "engines" / name).mkdir(parents=True)
        (bundle.path / "engines" / name / "engine.json").write_text(content)
    assert trt.find(bundle).path is None
    built = trt.build(bundle)
    assert trt.find(bundle).path == built


def test_an_engine_from_elsewhere_is_not_believed(
    fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trt.build(bundle)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    with pytest.raises(EngineError, match="was not built here"):
        trt.load(bundle)


def test_a_record_that_says_another_key_than_its_name_is_not_believed(
    fake: Any, bundle: Bundle
) -> None:
    engine = trt.build(bundle)
    content = json.loads((engine / "engine.json").read_text())
    content["key"]["optimization_level"] = "5"
    (engine / "engine.json").write_text(json.dumps(content))
    assert trt.find(bundle).path is None


# The command line, and what it reads


def test_the_command_line_builds_with_options(
    fake: Any, real_children: None, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(bundle.path), "--backend", "trt", "--set", "profiles=1,2,2", "--json"]
    assert main(arguments) == 0
    engine = Path(json.loads(capsys.readouterr().out)["engine"])
    assert record(engine)["profiles"] == ["1,2,2"]


def test_the_recipe_decides_what_the_command_line_does_not(fake: Any, bundle: Bundle) -> None:
    table = {"trt": {"profiles": "1,4,4", "optimization_level": 2}}
    bundle.manifest.recipe["build"] = table
    engine = backends.build(bundle, "trt", None, {"optimization_level": 4})
    assert record(engine)["profiles"] == ["1,4,4"]
    assert plan_head(engine)["level"] == 4
    table["trt"]["nonesuch"] = 1
    with pytest.raises(UsageError, match="no build option 'nonesuch'"):
        backends.build(bundle, "trt", None, {})


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("profiles=1,1,8", ("profiles", "1,1,8")),
        ("optimization_level=3", ("optimization_level", 3)),
        ("tf32=true", ("tf32", True)),
        ("library=tensorrt_rtx", ("library", "tensorrt_rtx")),
    ],
)
def test_an_option_is_read_as_what_it_is(text: str, option: tuple[str, Any]) -> None:
    assert options_from_text("trt", [text]) == dict([option])


@pytest.mark.parametrize(
    "text", ["tf32", "tf32=yes", "optimization_level=x", "library=onnx", "nonesuch=1", ""]
)
def test_an_option_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        options_from_text("trt", [text])


def test_progress_is_told_on_a_terminal_and_in_a_log(
    fake: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt

    from vit_edge.backends.trt import progress

    monkeypatch.setattr(progress, "_LOG_S", 0)
    monkeypatch.setattr(progress, "_TERMINAL_S", 0)
    for terminal in (False, True):
        monitor = progress.progress_monitor(tensorrt, terminal)
        monitor.phase_start("Building Engine", None, 4)
        assert monitor.step_complete("Building Engine", 0)
        monitor.phase_finish("Building Engine")
        said = capsys.readouterr().err
        assert "Building Engine 1/4" in said
        assert ("\r" in said) == terminal


def test_a_folder_named_tensorrt_is_no_tensorrt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert library.installed("tensorrt") is None
    (tmp_path / "tensorrt" / "__init__.py").write_text("raise OSError('libnvinfer.so.10')")
    assert library.installed("tensorrt") == "tensorrt"
    library.installed_version.cache_clear()
    availability = trt.available()
    assert not availability.ok
    assert "does not load: libnvinfer.so.10" in availability.reason
    with pytest.raises(BackendError, match=r"does not load: libnvinfer.so.10; install it anew"):
        library.open_library("tensorrt")


def test_progress_reaches_the_terminal_through_both_children(fake: Any, bundle: Bundle) -> None:
    mine, theirs = os.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment["FAKE_TENSORRT_BUILD"] = "slow"
    command = [sys.executable, "-m", "vit_edge.build", str(bundle.path), "--backend", "trt"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # what a closed pseudo-terminal ends in
        while piece := os.read(mine, 4096):
            said += piece
    os.close(mine)
    assert child.wait() == 0
    assert b"\r\x1b[Kbuilding: " in said
    assert b"Building Engine 1/2" in said


def test_no_gpu_is_an_error_before_tensorrt_is_touched(
    fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt.build(bundle)
    for gpus, words in (("no driver", "no NVIDIA driver"), ("0", "shows no GPU")):
        monkeypatch.setenv("FAKE_GPUS", gpus)
        sys.modules.pop("tensorrt", None)
        for call in (trt.build, trt.load, trt.key):
            with pytest.raises(BackendError, match=words):
                call(bundle)
        assert "tensorrt" not in sys.modules
        assert not trt.available().ok
