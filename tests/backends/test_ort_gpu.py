"""ONNX Runtime's GPU providers: told what is meant, bound, cached, and refused where not there."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contracts.backend import check_contract
from tests.support.fake_onnxruntime import GPU, KNOWN, NOTICE, ON_THE_CPU, ONE_GPU, FakeRuntime
from vit_edge import onnxfile
from vit_edge.backends import ort
from vit_edge.backends.ort import binding, libraries, placement, providers, tensorrt
from vit_edge.backends.ort.use import PROVIDERS, GpuUse, Use
from vit_edge.bundle import Bundle
from vit_edge.errors import BackendError, EngineError, UsageError
from vit_edge.machine import cuda
from vit_edge.machine.cuda import Gpus

requires = ("onnxruntime",)

NOWHERE = "libnowhere-to-be-found.so.13"
GPU_OPTIONS: list[dict[str, Any]] = [
    {"provider": "cuda"},
    {"provider": "cuda", "cuda_graph": True},
    {"provider": "tensorrt"},
]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """A runtime with GPU providers, TensorRT 10.3, and one GPU."""
    folder = tmp_path / "onnxruntime"
    (folder / "capi").mkdir(parents=True)
    for file in libraries.PROVIDER_FILES.values():
        (folder / "capi" / file).write_bytes(shared_library([NOWHERE, "libnvinfer.so.10"]))
    runtime = FakeRuntime(folder)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(cuda, "gpus", lambda: ONE_GPU)
    monkeypatch.setattr(providers, "gpus", lambda: ONE_GPU)
    monkeypatch.setattr(libraries, "tensorrt_version", lambda _: "10.3.0")
    return runtime


@pytest.fixture
def reference(testing_bundle: Bundle) -> Iterator[Any]:
    backend = ort.load(testing_bundle, engine="never")
    yield backend
    backend.close()


def shared_library(names: list[str]) -> bytes:
    """An ELF file with two segments: everything, mapped elsewhere, and what it is linked with."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    offsets = [strings.index(name.encode() + b"\0") for name in names]
    base, start = 0x40_0000, 64 + 2 * 56
    dynamic = b"".join(struct.pack("<QQ", 1, offset) for offset in offsets)
    dynamic += struct.pack("<QQQQ", 5, base + start + len(dynamic) + 32, 0, 0)
    size = start + len(dynamic) + len(strings)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    segments = struct.pack("<IIQQQQQQ", 1, 4, 0, base, base, size, size, 4096)
    segments += struct.pack(
        "<IIQQQQQQ", 2, 4, start, base + start, base + start, len(dynamic), len(dynamic), 8
    )
    return head + segments + dynamic + strings


def pixels(bundle: Bundle, batch: int = 2, seed: int = 0) -> Any:
    shape: Any = (batch, *bundle.manifest.input.shape[1:])
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("options", GPU_OPTIONS)
def test_a_gpu_provider_keeps_the_contract(
    testing_bundle: Bundle, reference: Any, fake: FakeRuntime, options: dict[str, Any]
) -> None:
    check_contract(ort.load(testing_bundle, **options), testing_bundle.manifest, reference)
    assert fake.sessions[0].bindings


def test_answers_that_stay_in_bound_memory_are_caught(
    testing_bundle: Bundle, reference: Any, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A binding that hands out its own memory is what the contract must reject."""
    monkeypatch.setattr(binding, "np", SimpleNamespace(array=lambda a, copy: a, dtype=np.dtype))
    with pytest.raises(AssertionError):
        check_contract(
            ort.load(testing_bundle, provider="cuda"), testing_bundle.manifest, reference
        )


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_many_threads_get_their_own_answers(
    testing_bundle: Bundle, reference: Any, fake: FakeRuntime, cuda_graph: bool
) -> None:
    backend = ort.load(testing_bundle, provider="cuda", cuda_graph=cuda_graph)
    inputs = [pixels(testing_bundle, 1 + seed % 4, seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(backend.run, inputs))
    for given_pixels, answers in zip(inputs, found, strict=True):
        expected = reference.run(given_pixels)["logits"]
        np.testing.assert_allclose(answers["logits"], expected, rtol=0, atol=1e-5)
    if cuda_graph:
        assert sorted(fake.sessions[0].graphs) == ["1", "2", "3", "4"]
        assert len(fake.sessions[0].bindings) == 4  # one for each, whatever the threads


def test_a_binding_works_with_the_real_runtime(testing_bundle: Bundle, reference: Any) -> None:
    """In the CPU's memory, where the same calls do the same."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(testing_bundle.model_path), providers=["CPUExecutionProvider"]
    )
    bound = binding.Binding(
        onnxruntime, session, testing_bundle.manifest, memory="cpu", device=0, cuda_graph=False
    )
    for batch in (1, 3, 1, 4):
        given_pixels = pixels(testing_bundle, batch, seed=batch)
        expected = list(reference.run(given_pixels).values())
        for found, values in zip(bound.run(given_pixels), expected, strict=True):
            np.testing.assert_allclose(found, values, rtol=0, atol=1e-5)


def test_memory_is_taken_once_for_each_batch_size(
    testing_bundle: Bundle, fake: FakeRuntime
) -> None:
    backend = ort.load(testing_bundle, provider="cuda")
    for _ in range(20):
        backend.run(pixels(testing_bundle, 1))
        backend.run(pixels(testing_bundle, 3))
    assert len(fake.sessions[0].bindings) == 2


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_addresses_stay_those_that_a_graph_was_recorded_with_after_a_failed_run(
    cuda_graph: bool, testing_bundle: Bundle, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = ort.load(testing_bundle, provider="cuda", cuda_graph=cuda_graph)
    expected = backend.run(pixels(testing_bundle))["logits"]
    with monkeypatch.context() as patch:
        patch.setattr(fake.sessions[0].real, "run", lambda *_: 1 / 0)
        with pytest.raises(BackendError, match="failed while running"):
            backend.run(pixels(testing_bundle))
    np.testing.assert_array_equal(backend.run(pixels(testing_bundle))["logits"], expected)
    assert len(fake.sessions[0].bindings) == 1


def test_cuda_computes_fp32_as_fp32(testing_bundle: Bundle, fake: FakeRuntime) -> None:
    backend = ort.load(testing_bundle, provider="cuda", gpu_memory_bytes=1 << 30)
    assert fake.sessions[0].told == {
        "device_id": "0",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": "1073741824",
    }
    assert backend.facts["tf32"] == "off"
    assert backend.facts["device"] == "NVIDIA Test (SM87)"
    assert backend.facts["provider"] == "CUDAExecutionProvider"


def test_tensorrt_takes_its_precisions_from_the_graph_and_its_batches_from_the_manifest(
    testing_bundle: Bundle, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    backend = ort.load(testing_bundle, provider="tensorrt", optimum_batch=2)
    told = fake.sessions[0].told
    assert (told["trt_fp16_enable"], told["trt_int8_enable"]) == ("False", "False")
    tensor = testing_bundle.manifest.input
    rest = "x".join(str(size) for size in tensor.shape[1:])
    for name, batch in {"min": 1, "opt": 2, "max": 4}.items():
        assert told[f"trt_profile_{name}_shapes"] == f"{tensor.name}:{batch}x{rest}"
    assert "trt_engine_cache_path" not in told
    assert backend.facts["tf32"].startswith("on")
    assert backend.facts["tensorrt"] == "10.3.0"


def test_tf32_is_off_in_tensorrt_where_nvidia_says_so(
    testing_bundle: Bundle, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert ort.load(testing_bundle, provider="tensorrt").facts["tf32"] == "off"


@given(
    provider=st.sampled_from(["cpu", "cuda", "tensorrt"]),
    use=st.builds(
        GpuUse,
        device=st.integers(-1, 2),
        gpu_memory_bytes=st.none() | st.integers(-1, 2**40),
        cuda_graph=st.booleans(),
        workspace_bytes=st.sampled_from([1 << 30, 0, 2**20]),
        optimization_level=st.integers(-1, 6),
        optimum_batch=st.sampled_from([1, 0, 3, 1000]),
    ),
)
def test_an_option_is_passed_on_or_refused(
    testing_bundle: Bundle, provider: Any, use: GpuUse
) -> None:
    """What the runtime is told differs from the default exactly where the use does."""
    whole, plain = Use(1, provider, gpu=use), Use(1, provider)
    manifest = testing_bundle.manifest
    try:
        whole.check()
        told = {} if provider == "cpu" else providers.provider_options(whole, manifest, None)
    except UsageError:
        assert use != GpuUse()
        return
    if provider == "cpu":
        assert use == GpuUse()
        return
    assert set(told) <= KNOWN[PROVIDERS[whole.provider]]
    changed = told != providers.provider_options(plain, manifest, None)
    assert changed == (use != GpuUse())


@pytest.mark.parametrize(
    "options",
    [
        {"device": 1},
        {"cuda_graph": True},
        {"provider": "cuda", "workspace_bytes": 1},
        {"provider": "tensorrt", "cuda_graph": True},
        {"provider": "tensorrt", "optimization_level": 6},
        {"provider": "tensorrt", "optimum_batch": 5},
        {"provider": "cuda", "device": -1},
        {"provider": "cuda", "device": 1},
    ],
)
def test_options_that_mean_nothing_are_refused(
    testing_bundle: Bundle, fake: FakeRuntime, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        ort.load(testing_bundle, **options)
    assert not fake.sessions


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_without_a_gpu_the_runtime_is_not_asked(
    testing_bundle: Bundle, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch, provider: Any
) -> None:
    monkeypatch.setattr(providers, "gpus", lambda: Gpus((), None, "no NVIDIA driver: libcuda"))
    fake.refuses = AssertionError("asked")
    with pytest.raises(BackendError, match=r"needs an NVIDIA GPU: no NVIDIA driver.*\"cpu\""):
        ort.load(testing_bundle, provider=provider)
    with pytest.raises(BackendError, match="needs an NVIDIA GPU|nothing to build") as refused:
        ort.build(testing_bundle, provider="tensorrt")
    assert "no NVIDIA driver" in str(refused.value)


def test_a_provider_that_falls_back_is_an_error(testing_bundle: Bundle, fake: FakeRuntime) -> None:
    """onnxruntime-gpu lists CUDA where there is no GPU and then runs on the CPU."""
    fake.registers = ["CPUExecutionProvider"]
    with pytest.raises(BackendError) as refused:
        ort.load(testing_bundle, provider="cuda")
    assert NOWHERE in str(refused.value)
    assert "asked onnxruntime for CUDAExecutionProvider, got CPU" in str(refused.value.__cause__)


def test_a_library_that_is_missing_is_named(testing_bundle: Bundle, fake: FakeRuntime) -> None:
    fake.refuses = RuntimeError(ON_THE_CPU)
    with pytest.raises(BackendError, match=NOWHERE):
        ort.load(testing_bundle, provider="cuda")


def test_a_node_that_would_fall_to_the_cpu_is_refused_with_the_way_out(
    testing_bundle: Bundle, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "missing", lambda *_: [])
    fake.refuses = RuntimeError(ON_THE_CPU)
    with pytest.raises(BackendError, match=r"(?s)assigned to the default CPU EP.*opset 20"):
        ort.load(testing_bundle, provider="tensorrt")


@pytest.mark.parametrize("fails", [False, True])
def test_stdout_stays_clean_and_comes_back(
    testing_bundle: Bundle, fake: FakeRuntime, fails: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    if fails:
        fake.refuses = RuntimeError("refused")
        with pytest.raises(BackendError, match="refused|cannot load"):
            ort.load(testing_bundle, provider="tensorrt")
    else:
        ort.load(testing_bundle, provider="tensorrt")
    os.write(1, b"a result, ")
    print("and another", flush=True)
    out, err = capfd.readouterr()
    assert out == "a result, and another\n"
    assert NOTICE in err  # printed by native code
    assert "libcublas.so.13" in err  # by Python, looking for CUDA in the wheels


def test_a_process_without_stdout_opens_all_the_same() -> None:
    code = (
        "import os; os.close(1)\n"
        "from vit_edge.backends.ort.providers import stdout_on_stderr\n"
        "with stdout_on_stderr(): pass\n"
        "os.write(2, b'fine')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, check=True
    )
    assert done.stderr == b"fine"


def test_a_plan_is_built_once_and_taken_from_then_on(bundle: Bundle, fake: FakeRuntime) -> None:
    engine = ort.build(bundle, provider="tensorrt")
    assert fake.plans_built == 1
    before = {file.name: file.read_bytes() for file in engine.iterdir()}
    assert sorted(before) == ["engine.json", *sorted(tensorrt.FILES)]
    for _ in range(2):
        backend = ort.load(bundle, provider="tensorrt", engine="required")
        assert backend.facts["engine"] == engine.name
        backend.run(pixels(bundle))
    assert fake.plans_built == 1
    assert {file.name: file.read_bytes() for file in engine.iterdir()} == before
    lent = Path(fake.sessions[-1].told["trt_engine_cache_path"])
    assert bundle.path not in lent.parents
    assert not lent.exists()


def test_without_a_plan_the_command_that_makes_it_is_said(
    bundle: Bundle, fake: FakeRuntime
) -> None:
    with pytest.raises(EngineError, match=r"build .* --set provider=tensorrt"):
        ort.load(bundle, provider="tensorrt", engine="required")
    backend = ort.load(bundle, provider="tensorrt")
    assert backend.facts["engine"] == "none (none was built)"
    assert not (bundle.path / "engines").exists()


def test_the_engine_of_one_provider_is_not_the_others(bundle: Bundle, fake: FakeRuntime) -> None:
    packed = ort.build(bundle)
    plan = ort.build(bundle, provider="tensorrt")
    assert ort.load(bundle).facts["engine"] == packed.name
    assert ort.load(bundle, provider="tensorrt").facts["engine"] == plan.name
    assert ort.load(bundle, provider="cuda").facts["engine"].startswith("none (the CUDA provider")


@pytest.mark.parametrize("name", tensorrt.FILES)
def test_a_tampered_plan_is_never_lent(bundle: Bundle, fake: FakeRuntime, name: str) -> None:
    engine = ort.build(bundle, provider="tensorrt")
    (engine / name).write_bytes((engine / name).read_bytes() + b" ")
    with pytest.raises(EngineError, match="was not built here, or changed since"):
        ort.load(bundle, provider="tensorrt", engine="required")
    assert len(fake.sessions) == 1  # the build's


def test_a_plan_that_is_exchanged_after_it_was_found_is_never_lent(
    bundle: Bundle, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and copying; what is hashed is the copy."""
    engine = ort.build(bundle, provider="tensorrt")
    real = shutil.copyfile

    def exchanged(source: Path, target: Path) -> None:
        real(source, target)
        if source.name == tensorrt.PLAN_NAME:
            target.write_bytes(b"another")

    monkeypatch.setattr("vit_edge.backends.ort.tensorrt.shutil.copyfile", exchanged)
    with pytest.raises(EngineError, match="is not what was built here"):
        ort.load(bundle, provider="tensorrt")
    assert engine.is_dir()
    assert len(fake.sessions) == 1


def test_a_plan_that_came_with_a_bundle_is_never_lent(
    bundle: Bundle, fake: FakeRuntime, tmp_path: Path
) -> None:
    ort.build(bundle, provider="tensorrt")
    shutil.copytree(bundle.path, tmp_path / "shipped")
    with pytest.raises(EngineError, match="was not built here"):
        ort.load(Bundle.read(tmp_path / "shipped"), provider="tensorrt", engine="required")


@pytest.mark.parametrize("change", ["gpu", "tensorrt", "level"])
def test_a_plan_for_something_else_is_not_used(
    bundle: Bundle, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    ort.build(bundle, provider="tensorrt")
    options: dict[str, Any] = {}
    if change == "gpu":
        other = cuda.Gpu(0, GPU.name, GPU.compute_capability, 8, GPU.memory_bytes, True)
        monkeypatch.setattr(providers, "gpus", lambda: Gpus((other,), "13.2", ""))
    elif change == "tensorrt":
        monkeypatch.setattr(libraries, "tensorrt_version", lambda _: "10.16.2")
    else:
        options["optimization_level"] = 5
    with pytest.raises(EngineError, match="for another model, runtime or machine"):
        ort.load(bundle, provider="tensorrt", engine="required", **options)


def test_a_provider_that_builds_instead_of_taking_the_plan_is_an_error(
    bundle: Bundle, fake: FakeRuntime
) -> None:
    ort.build(bundle, provider="tensorrt")
    fake.ignores_its_cache = True
    with pytest.raises(EngineError, match="did not take it and built another"):
        ort.load(bundle, provider="tensorrt")


def test_a_graph_that_tensorrt_takes_in_pieces_is_refused(
    bundle: Bundle, fake: FakeRuntime
) -> None:
    fake.subgraphs = 2
    with pytest.raises(BackendError, match="wrote 2 files"):
        ort.build(bundle, provider="tensorrt")
    assert not list(bundle.path.glob("engines/*"))


def test_a_kernel_on_the_cpu_is_seen_by_the_build(bundle: Bundle, fake: FakeRuntime) -> None:
    fake.nodes_on_cpu = 1
    with pytest.raises(BackendError, match=r"of the kernels ran 1 on CPUExecutionProvider"):
        ort.build(bundle, provider="tensorrt")
    assert not list(bundle.path.glob("engines/*"))


def test_every_node_of_a_model_is_placed_by_name(testing_bundle: Bundle) -> None:
    """For real, on the CPU: the profile names the provider of each kernel."""
    found = placement.node_providers(testing_bundle)
    assert set(found) == {"CPUExecutionProvider"}
    assert found["CPUExecutionProvider"] >= 20
    placement.check_placed(found, "cpu")
    with pytest.raises(BackendError, match="asked onnxruntime for CUDAExecutionProvider alone"):
        placement.check_placed(found, "cuda")


def test_no_node_of_ours_is_one_that_runs_on_the_cpu_on_purpose(testing_bundle: Bundle) -> None:
    """CUDA leaves arithmetic on shapes to the CPU (fallback_cpu_capability.cc), and control flow
    rules a CUDA graph out."""
    operators = set(onnxfile.read_model(testing_bundle.model_path).operators[""])
    assert "MatMul" in operators
    assert not operators & {"Shape", "Size", "Range", "NonZero", "If", "Loop", "Scan"}


def test_nodes_on_a_gpu_are_counted(testing_bundle: Bundle, fake: FakeRuntime) -> None:
    fake.nodes_on_cpu = 2
    found = placement.node_providers(testing_bundle, "cuda")
    assert found["CPUExecutionProvider"] == 2
    assert found["CUDAExecutionProvider"] >= 20


def test_there_is_nothing_to_build_for_cuda(bundle: Bundle, fake: FakeRuntime) -> None:
    with pytest.raises(UsageError, match="nothing to build"):
        ort.build(bundle, provider="cuda")
    assert ort.find(bundle, provider="cuda").path == bundle.path


def test_what_is_worth_trying_depends_on_the_gpu(
    testing_bundle: Bundle, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [way.get("provider") for way in ort.configurations(testing_bundle)]
    assert asked == [None, None, None, "cuda", "cuda", "tensorrt"]
    monkeypatch.setattr(cuda, "gpus", lambda: Gpus((), None, "none"))
    assert not any("provider" in way for way in ort.configurations(testing_bundle))


def test_a_pickled_backend_opens_on_its_gpu_again(bundle: Bundle, fake: FakeRuntime) -> None:
    engine = ort.build(bundle, provider="tensorrt", optimization_level=1)
    backend = ort.load(bundle, provider="tensorrt", optimization_level=1)
    again = pickle.loads(pickle.dumps(backend))
    assert again.facts == backend.facts
    assert again.facts["engine"] == engine.name


def test_a_closed_backend_says_so(testing_bundle: Bundle, fake: FakeRuntime) -> None:
    backend = ort.load(testing_bundle, provider="cuda")
    backend.close()
    backend.close()
    with pytest.raises(UsageError, match="closed"):
        backend.run(pixels(testing_bundle))


def test_two_packages_of_the_runtime_are_said(caplog: pytest.LogCaptureFixture) -> None:
    providers.check_installed({"onnxruntime": "1.31.1"})
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        providers.check_installed({"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.30.0"})
    assert "onnxruntime 1.31.1 and onnxruntime-gpu 1.30.0 are both installed" in caplog.text


def test_stdout_is_redirected_by_one_thread_at_a_time(capfd: pytest.CaptureFixture[str]) -> None:
    """Two at once would put each other's stderr back as stdout."""
    start = threading.Barrier(4)

    def loud(_: int) -> None:
        start.wait()
        for _ in range(50):
            with providers.stdout_on_stderr():
                pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(loud, range(4)))
    os.write(1, b"still stdout\n")
    assert capfd.readouterr().out == "still stdout\n"


def runtime_with(tmp_path: Path, content: bytes) -> Any:
    """A runtime whose TensorRT provider is this file."""
    (tmp_path / "capi").mkdir()
    for name in libraries.PROVIDER_FILES.values():
        (tmp_path / "capi" / name).write_bytes(content)
    return SimpleNamespace(__file__=str(tmp_path / "__init__.py"), __version__="1.31.1")


@given(names=st.lists(st.from_regex(r"lib[a-z]{1,20}\.so\.[0-9]{1,2}", fullmatch=True)))
def test_what_a_library_is_linked_with_is_read(tmp_path_factory: Any, names: list[str]) -> None:
    file = tmp_path_factory.mktemp("elf") / "lib.so"
    file.write_bytes(shared_library(names))
    assert libraries.needed(file) == names


def test_libraries_of_this_python_are_all_found(tmp_path: Path) -> None:
    """A real file, linked with real libraries."""
    import _ctypes

    file = Path(_ctypes.__file__)
    assert any(name.startswith("libc.so") for name in libraries.needed(file))
    assert libraries.missing(runtime_with(tmp_path, file.read_bytes()), "cuda") == []


@pytest.mark.parametrize("content", [b"", b"\x7fELF\x02\x01", b"#!/bin/sh\n", b"\x7fELF\x01\x01"])
def test_a_provider_that_is_no_library_is_said(tmp_path: Path, content: bytes) -> None:
    runtime = runtime_with(tmp_path, content)
    assert "libonnxruntime_providers_cuda.so" in libraries.missing(runtime, "cuda")[0]
    with pytest.raises(BackendError, match="cannot be read"):
        libraries.tensorrt_version(runtime)


def test_tensorrt_11_does_not_do_and_that_is_said(tmp_path: Path) -> None:
    runtime = runtime_with(tmp_path, shared_library(["libnvinfer.so.10"]))
    with pytest.raises(BackendError, match=r"needs TensorRT 10 \(libnvinfer.so.10.*TensorRT 11"):
        libraries.tensorrt_version(runtime)


@pytest.mark.parametrize(("number", "version"), [(100300, "10.3.0"), (101602, "10.16.2")])
def test_the_version_of_tensorrt_is_asked_of_the_library_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, version: str
) -> None:
    runtime = runtime_with(tmp_path, shared_library(["libc.so.6", "libnvinfer.so.10"]))
    library = SimpleNamespace(getInferLibVersion=lambda: number)
    monkeypatch.setattr("vit_edge.backends.ort.libraries.ctypes.CDLL", lambda name: library)
    assert libraries.tensorrt_version(runtime) == version


def test_the_cpu_provider_starts_without_what_is_for_gpus(testing_bundle: Bundle) -> None:
    code = (
        "import sys\n"
        "from vit_edge import Bundle\n"
        "from vit_edge.backends import ort\n"
        "ort.load(Bundle.read(sys.argv[1]))\n"
        "names = ('gpu', 'backends.ort.device', 'backends.ort.providers', 'backends.ort.binding',\n"
        "         'backends.ort.libraries', 'backends.ort.tensorrt')\n"
        "print([name for name in names if f'vit_edge.{name}' in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(testing_bundle.path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"
