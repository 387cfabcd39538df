"""ONNX Runtime's CUDA provider: told what is meant, bound, and refused where not there."""

from __future__ import annotations

import logging
import os
import pickle
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
from tests.support.fake_onnxruntime import KNOWN, NOTICE, ON_THE_CPU, ONE_GPU, FakeRuntime
from tests.support.ort_placement import kernels_by_provider
from vit_edge import onnxfile
from vit_edge.backends import ort
from vit_edge.backends.ort import binding, libraries, providers
from vit_edge.backends.ort.options import LoadOptions
from vit_edge.build.options import option_problems, options_from_text
from vit_edge.bundle import Bundle
from vit_edge.errors import BackendError, UsageError
from vit_edge.machine import cuda
from vit_edge.machine.cuda import Gpus

requires = ("onnxruntime",)

NOWHERE = "libnowhere-to-be-found.so.13"
GPU_OPTIONS: list[dict[str, Any]] = [
    {"provider": "cuda"},
    {"provider": "cuda", "cuda_graph": True},
]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """A runtime with the CUDA provider, and one GPU."""
    folder = tmp_path / "onnxruntime"
    (folder / "capi").mkdir(parents=True)
    (folder / "capi" / libraries.PROVIDER_FILE).write_bytes(shared_library([NOWHERE]))
    runtime = FakeRuntime(folder)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(cuda, "gpus", lambda: ONE_GPU)
    monkeypatch.setattr(providers, "gpus", lambda: ONE_GPU)
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


@given(
    provider=st.sampled_from(["cpu", "cuda"]),
    gpu_use=st.fixed_dictionaries(
        {
            "device": st.integers(-1, 2),
            "gpu_memory_bytes": st.none() | st.integers(-1, 2**40),
            "cuda_graph": st.booleans(),
        }
    ),
)
def test_an_option_is_passed_on_or_refused(provider: Any, gpu_use: dict[str, Any]) -> None:
    """What the runtime is told differs from the default exactly where the options do."""
    whole, plain = LoadOptions(provider=provider, **gpu_use), LoadOptions(provider=provider)
    try:
        whole.check()
        told = {} if provider == "cpu" else providers.provider_options(whole)
    except UsageError:
        assert whole != plain
        return
    if provider == "cpu":
        assert whole == plain
        return
    assert set(told) <= KNOWN
    assert (told != providers.provider_options(plain)) == (whole != plain)


@pytest.mark.parametrize(
    "options",
    [
        {"device": 1},
        {"cuda_graph": True},
        {"gpu_memory_bytes": 1 << 30},
        {"provider": "cuda", "gpu_memory_bytes": 0},
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


def test_tensorrt_is_refused_and_its_backend_named(bundle: Bundle, fake: FakeRuntime) -> None:
    dropped: Any = "tensorrt"
    for call in (ort.load, ort.build, ort.find):
        with pytest.raises(UsageError, match="for TensorRT use --backend trt"):
            call(bundle, provider=dropped)
    with pytest.raises(UsageError, match=r"cpu or cuda \(for TensorRT use --backend trt\)"):
        options_from_text("ort", ["provider=tensorrt"])
    (problem,) = option_problems("ort", {"provider": "tensorrt"}, 1)
    assert "for TensorRT use --backend trt" in problem
    assert options_from_text("ort", ["provider=cuda"]) == {"provider": "cuda"}


def test_without_a_gpu_the_runtime_is_not_asked(
    testing_bundle: Bundle, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "gpus", lambda: Gpus((), None, "no NVIDIA driver: libcuda"))
    fake.refuses = AssertionError("asked")
    with pytest.raises(BackendError, match=r"needs an NVIDIA GPU: no NVIDIA driver.*\"cpu\""):
        ort.load(testing_bundle, provider="cuda")


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
        ort.load(testing_bundle, provider="cuda")


@pytest.mark.parametrize("fails", [False, True])
def test_stdout_stays_clean_and_comes_back(
    testing_bundle: Bundle, fake: FakeRuntime, fails: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    if fails:
        fake.refuses = RuntimeError("refused")
        with pytest.raises(BackendError, match="refused|cannot load"):
            ort.load(testing_bundle, provider="cuda")
    else:
        ort.load(testing_bundle, provider="cuda")
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


def test_packed_weights_are_not_for_the_cuda_provider(bundle: Bundle, fake: FakeRuntime) -> None:
    packed = ort.build(bundle)
    assert ort.load(bundle).facts["engine"] == packed.name
    assert ort.load(bundle, provider="cuda").facts["engine"].startswith("none (the CUDA provider")


def test_every_node_of_a_model_is_placed_by_name(testing_bundle: Bundle) -> None:
    """For real, on the CPU: the profile names the provider of each kernel."""
    kernels = kernels_by_provider(testing_bundle, "cpu")
    assert set(kernels) == {"CPUExecutionProvider"}
    assert kernels["CPUExecutionProvider"] >= 20


def test_no_node_of_ours_is_one_that_runs_on_the_cpu_on_purpose(testing_bundle: Bundle) -> None:
    """CUDA leaves arithmetic on shapes to the CPU (fallback_cpu_capability.cc), and control flow
    rules a CUDA graph out."""
    operators = set(onnxfile.read_model(testing_bundle.model_path).operators[""])
    assert "MatMul" in operators
    assert not operators & {"Shape", "Size", "Range", "NonZero", "If", "Loop", "Scan"}


def test_nodes_on_a_gpu_are_counted(testing_bundle: Bundle, fake: FakeRuntime) -> None:
    fake.nodes_on_cpu = 2
    kernels = kernels_by_provider(testing_bundle, "cuda")
    assert kernels["CPUExecutionProvider"] == 2
    assert kernels["CUDAExecutionProvider"] >= 20


def test_there_is_nothing_to_build_for_cuda(bundle: Bundle, fake: FakeRuntime) -> None:
    with pytest.raises(UsageError, match="nothing to build"):
        ort.build(bundle, provider="cuda")
    assert ort.find(bundle, provider="cuda").path == bundle.path


def test_what_is_worth_trying_depends_on_the_gpu(
    testing_bundle: Bundle, fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [way.get("provider") for way in ort.configurations(testing_bundle)]
    assert asked == [None, None, None, "cuda", "cuda"]
    monkeypatch.setattr(cuda, "gpus", lambda: Gpus((), None, "none"))
    assert not any("provider" in way for way in ort.configurations(testing_bundle))


def test_a_pickled_backend_opens_on_its_gpu_again(bundle: Bundle, fake: FakeRuntime) -> None:
    backend = ort.load(bundle, provider="cuda", cuda_graph=True)
    again = pickle.loads(pickle.dumps(backend))
    assert again.facts == backend.facts
    assert again.facts["cuda_graph"] == "on"


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
    """A runtime whose CUDA provider is this file."""
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / libraries.PROVIDER_FILE).write_bytes(content)
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
    assert libraries.missing(runtime_with(tmp_path, file.read_bytes())) == []


@pytest.mark.parametrize("content", [b"", b"\x7fELF\x02\x01", b"#!/bin/sh\n", b"\x7fELF\x01\x01"])
def test_a_provider_that_is_no_library_is_said(tmp_path: Path, content: bytes) -> None:
    runtime = runtime_with(tmp_path, content)
    assert "libonnxruntime_providers_cuda.so" in libraries.missing(runtime)[0]


def test_the_cpu_provider_starts_without_what_is_for_gpus(testing_bundle: Bundle) -> None:
    code = (
        "import sys\n"
        "from vit_edge import Bundle\n"
        "from vit_edge.backends import ort\n"
        "ort.load(Bundle.read(sys.argv[1]))\n"
        "names = ('gpu', 'backends.ort.device', 'backends.ort.providers', 'backends.ort.binding',\n"
        "         'backends.ort.libraries')\n"
        "print([name for name in names if f'vit_edge.{name}' in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(testing_bundle.path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"
