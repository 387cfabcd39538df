"""Running: buffers, shapes, streams, graphs, threads, errors, and everything given back."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.contracts.backend import check_contract
from vit_edge.backends import ort, trt
from vit_edge.bundle import Bundle
from vit_edge.errors import BackendError, EngineError, ResourceError, UsageError
from vit_edge.predictor import Predictor

requires = ("onnx", "onnxruntime")


@pytest.fixture
def built(fake: Any, bundle: Bundle) -> Bundle:
    trt.build(bundle)
    return bundle


@pytest.fixture
def backend(built: Bundle) -> Iterator[trt.TrtBackend]:
    opened = trt.load(built)
    yield opened
    opened.close()


def pixels(images: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((images, 3, 64, 64)).astype(np.float32)


def answers(bundle: Bundle, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    reference = ort.load(bundle, threads=1)
    try:
        return reference.run(batch)["logits"]
    finally:
        reference.close()


def test_it_keeps_the_contract(built: Bundle) -> None:
    reference = ort.load(built)
    check_contract(trt.load(built), built.manifest, reference)
    check_contract(trt.load(built, contexts=2, cuda_graphs=False), built.manifest, reference)
    reference.close()


def test_a_predictor_takes_it_by_name(built: Bundle, photos: list[Path]) -> None:
    with Predictor(built, backend="trt") as predictor, Predictor(built, backend="ort") as other:
        assert predictor.predict(photos[0]).index == other.predict(photos[0]).index
        assert predictor.facts["backend"] == "trt"


def test_facts_say_what_runs(backend: trt.TrtBackend) -> None:
    facts = backend.facts
    assert facts["device"] == "Fake GPU 0 (SM87)"
    assert facts["profiles"] == "1,1,4"
    assert facts["cuda_graphs"] == "on"
    assert facts["tf32"] == "off"
    assert "fp16" in facts["layers"]


def test_the_second_run_of_a_batch_size_is_recorded_and_the_third_replayed(
    fake: Any, built: Bundle, backend: trt.TrtBackend
) -> None:
    expected = answers(built, pixels(2))
    copies = 1 + len(built.manifest.outputs)
    for calls in (
        {"cudaStreamBeginCapture": 0, "cudaGraphLaunch": 0, "cudaMemcpyAsync": copies},
        {"cudaStreamBeginCapture": 1, "cudaGraphLaunch": 1, "cudaMemcpyAsync": copies},
        {"cudaStreamBeginCapture": 0, "cudaGraphLaunch": 1, "cudaMemcpyAsync": 0},
    ):
        fake.calls.clear()
        found = backend.run(pixels(2))["logits"]
        assert {name: fake.calls.count(name) for name in calls} == calls
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_larger_batch_makes_room_and_what_was_recorded_is_recorded_anew(
    built: Bundle, backend: trt.TrtBackend
) -> None:
    sizes = (1, 1, 1, 3, 3, 1, 1, 1, 4, 3, 1, 4, 4, 2)
    batches = [pixels(size, seed) for seed, size in enumerate(sizes)]
    for batch in batches:
        np.testing.assert_allclose(
            backend.run(batch)["logits"], answers(built, batch), rtol=0, atol=1e-6
        )


def test_no_device_memory_is_taken_before_the_first_batch_nor_more_than_it_needs(
    fake: Any, backend: trt.TrtBackend
) -> None:
    assert "device" not in fake.live()
    backend.run(pixels(1))
    taken = sum(len(memory) for memory, _ in fake.device.values())
    assert taken < 2 * pixels(1).nbytes + 4096
    backend.run(pixels(4))
    assert sum(len(memory) for memory, _ in fake.device.values()) > 2 * taken


def test_a_batch_over_the_profiles_is_split(fake: Any, bundle: Bundle) -> None:
    trt.build(bundle, profiles="1,1,1 2,2,2")
    backend = trt.load(bundle, contexts=2)
    for size in (1, 2, 3, 4):
        batch = pixels(size, size)
        np.testing.assert_allclose(
            backend.run(batch)["logits"], answers(bundle, batch), rtol=0, atol=1e-6
        )
    backend.close()


def test_two_lanes_run_the_parts_of_a_batch_at_once(fake: Any, bundle: Bundle) -> None:
    trt.build(bundle, profiles="1,1,2")
    backend = trt.load(bundle, contexts=2, cuda_graphs=False)
    fake.calls.clear()
    backend.run(pixels(4))
    copies = [name for name in fake.calls if name in ("cudaMemcpyAsync", "cudaStreamSynchronize")]
    both_started = copies.index("cudaStreamSynchronize", copies.index("cudaMemcpyAsync"))
    assert copies[both_started - 1] == "cudaMemcpyAsync"
    assert copies[-2:] == ["cudaStreamSynchronize"] * 2
    backend.close()


def test_many_threads_get_their_own_answers(built: Bundle) -> None:
    backend = trt.load(built, contexts=2)
    batches = [pixels(1 + seed % 4, seed) for seed in range(8)]
    expected = [answers(built, batch) for batch in batches]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            found = backend.run(batches[index])["logits"]
            if not np.allclose(found, expected[index], rtol=0, atol=1e-6):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    backend.close()
    assert wrong == []


def test_closing_waits_for_what_runs_and_then_refuses(built: Bundle) -> None:
    backend = trt.load(built)
    ends: list[str] = []

    def work() -> None:
        try:
            while True:
                backend.run(pixels(2))
        except UsageError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    backend.close()
    for thread in threads:
        thread.join()
    assert ends == ["this backend is closed"] * 3
    with pytest.raises(UsageError, match="closed"):
        backend.run(pixels(1))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=12), graphs=st.booleans())
def test_any_order_of_batch_sizes_is_answered(
    sizes: list[int], graphs: bool, built: Bundle
) -> None:
    whole = pixels(4)
    expected = answers(built, whole)
    with contextlib.closing(trt.load(built, cuda_graphs=graphs)) as backend:
        for size in sizes:
            np.testing.assert_allclose(
                backend.run(whole[:size])["logits"], expected[:size], rtol=0, atol=1e-6
            )


# Errors


@pytest.mark.parametrize(
    "call",
    [
        "cudaMalloc", "cudaMallocHost", "cudaMemcpyAsync", "cudaStreamSynchronize",
        "cudaSetDevice",
    ],
)  # fmt: skip
def test_a_failed_call_is_an_error_and_the_next_run_is_right(
    call: str, fake: Any, built: Bundle, backend: trt.TrtBackend
) -> None:
    backend.run(pixels(1))
    fake.fail[call] = 999
    with pytest.raises(BackendError, match=rf"{call}: some error \(CUDA error 999\)"):
        backend.run(pixels(3))
    fake.fail.clear()
    for size in (1, 3):
        np.testing.assert_allclose(
            backend.run(pixels(size))["logits"], answers(built, pixels(size)), rtol=0, atol=1e-6
        )


def test_a_full_gpu_is_an_error_of_resources_and_the_next_run_is_right(
    fake: Any, built: Bundle, backend: trt.TrtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.run(pixels(1))
    monkeypatch.setenv("FAKE_GPU_MEMORY", "20e3")
    with pytest.raises(ResourceError, match="the GPU's memory ran out"):
        backend.run(pixels(4))
    monkeypatch.delenv("FAKE_GPU_MEMORY")
    np.testing.assert_allclose(
        backend.run(pixels(4))["logits"], answers(built, pixels(4)), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("code", [2, 900])  # memory, and what cannot be captured
@pytest.mark.parametrize(
    "call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"]
)
def test_what_cannot_be_recorded_runs_all_the_same_and_that_is_said(
    call: str,
    code: int,
    fake: Any,
    built: Bundle,
    backend: trt.TrtBackend,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake.fail[call] = code
    for _ in range(3):
        found = backend.run(pixels(1))["logits"]
    np.testing.assert_allclose(found, answers(built, pixels(1)), rtol=0, atol=1e-6)
    assert caplog.text.count("not recorded as CUDA graphs") == 1
    assert backend.facts["cuda_graphs"].startswith("off (")
    fake.fail.clear()


@pytest.mark.parametrize("end", [KeyboardInterrupt, ResourceError, None])
def test_what_ends_a_recording_leaves_a_stream_that_runs(
    end: Any,
    fake: Any,
    built: Bundle,
    backend: trt.TrtBackend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import tensorrt

    real = tensorrt.IExecutionContext.execute_async_v3

    def once(context: Any, stream: int) -> bool:
        if fake.streams[stream].captured is None:
            return bool(real(context, stream))
        if end is None:
            context._logger.log(tensorrt.ILogger.ERROR, "Cuda Runtime (out of memory)")
            return False
        raise end

    monkeypatch.setattr(tensorrt.IExecutionContext, "execute_async_v3", once)
    backend.run(pixels(2))
    if end is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            backend.run(pixels(2))
    monkeypatch.undo() if end is KeyboardInterrupt else None
    for _ in range(3):
        np.testing.assert_allclose(
            backend.run(pixels(2))["logits"], answers(built, pixels(2)), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("after", range(1, 5))  # of three tensors, and scratch memory
def test_an_interrupt_while_memory_is_taken_leaves_a_backend_that_answers(
    after: int,
    built: Bundle,
    backend: trt.TrtBackend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vit_edge.backends.trt.cudart import Cudart

    backend.run(pixels(1))
    real, calls = Cudart.allocate, []

    def interrupted(cudart: Cudart, size_bytes: int) -> int:
        calls.append(size_bytes)
        if len(calls) == after:
            raise KeyboardInterrupt
        return real(cudart, size_bytes)

    monkeypatch.setattr(Cudart, "allocate", interrupted)
    with contextlib.suppress(KeyboardInterrupt):
        backend.run(pixels(3))
    for size in (1, 3, 4):
        np.testing.assert_allclose(
            backend.run(pixels(size))["logits"], answers(built, pixels(size)), rtol=0, atol=1e-6
        )


def test_words_of_an_earlier_call_are_not_those_of_a_later_failure(
    built: Bundle, backend: trt.TrtBackend
) -> None:
    lane = backend._lanes[0]
    lane._engine._logger.errors = ["Error Code 2: OutOfMemory"]  # of what it got over
    with pytest.raises(BackendError, match="a batch of 9 is refused") as caught:
        lane._engine.granted("a batch of 9", lambda: False)
    assert "OutOfMemory" not in str(caught.value)


def test_a_close_that_fails_gives_back_what_it_can(fake: Any, built: Bundle) -> None:
    backend = trt.load(built, contexts=2)
    backend.run(pixels(1))
    fake.fail["cudaFree"] = 700
    with pytest.raises(BackendError, match="cudaFree"):
        backend.close()
    fake.fail.clear()
    gc.collect()
    assert set(fake.live()) == {"device"}  # all but what could not be freed
    fake.device.clear()
    backend.close()
    with pytest.raises(UsageError, match="closed"):
        backend.run(pixels(1))


def test_what_nobody_closes_is_given_back(fake: Any, built: Bundle) -> None:
    backend = trt.load(built, contexts=2)
    backend.run(pixels(2))
    assert fake.live()
    del backend
    gc.collect()
    assert fake.live() == {}


def test_a_load_that_fails_halfway_leaves_nothing(fake: Any, built: Bundle) -> None:
    real, made = fake.handle, []

    def second_fails() -> int:
        made.append(1)
        if len(made) == 2:
            raise MemoryError
        return int(real())

    fake.handle = second_fails
    with pytest.raises(MemoryError):
        trt.load(built, contexts=2)
    fake.handle = real
    gc.collect()
    assert fake.live() == {}


def test_more_batch_sizes_than_are_kept_ready_are_answered(
    fake: Any, built: Bundle, backend: trt.TrtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vit_edge.backends.trt import lane

    monkeypatch.setattr(lane, "_SLOTS", 2)
    for size in (1, 2, 3, 4, 1, 1, 1, 2, 3, 4, 4, 4):
        np.testing.assert_allclose(
            backend.run(pixels(size))["logits"], answers(built, pixels(size)), rtol=0, atol=1e-6
        )
    assert fake.live()["contexts"] <= 3


def test_a_refusal_of_tensorrt_is_told_in_its_words(
    built: Bundle, backend: trt.TrtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt

    def refuses(context: Any, stream: int) -> bool:
        context._logger.log(tensorrt.ILogger.ERROR, "a word of TensorRT's")
        return False

    monkeypatch.setattr(tensorrt.IExecutionContext, "execute_async_v3", refuses)
    with pytest.raises(BackendError, match="the run is refused:\n  [|] a word of TensorRT's"):
        backend.run(pixels(1))
    monkeypatch.undo()


def test_a_plan_of_another_model_is_refused(
    fake: Any, built: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt

    monkeypatch.setattr(
        tensorrt.ICudaEngine, "get_tensor_shape", lambda engine, name: (-1, 3, 64, 64)
    )
    with pytest.raises(EngineError, match="those of the bundle"):
        trt.load(built)


def test_a_version_compatible_plan_may_bring_code_and_no_other_plan(
    fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt

    allowed = []
    real = tensorrt.Runtime.deserialize_cuda_engine

    def look(runtime: Any, plan: Any) -> Any:
        allowed.append(runtime.engine_host_code_allowed)
        return real(runtime, plan)

    monkeypatch.setattr(tensorrt.Runtime, "deserialize_cuda_engine", look)
    trt.build(bundle)
    trt.load(bundle).close()
    trt.build(bundle, version_compatible=True)
    trt.load(bundle).close()
    assert allowed == [False, False, True, True]  # each is opened when it was built, too


@pytest.mark.parametrize("contexts", [0, 17])
def test_contexts_out_of_range_are_refused(contexts: int, built: Bundle) -> None:
    with pytest.raises(UsageError, match=r"1\.\.16"):
        trt.load(built, contexts=contexts)


def test_a_gpu_that_is_not_there_is_refused(built: Bundle) -> None:
    with pytest.raises(BackendError, match=r"no GPU 1; there are: 0 \(Fake GPU 0\)"):
        trt.load(built, device=1)


def test_another_gpu_than_the_first_is_used_by_every_thread(
    fake: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_GPUS", "2")
    trt.build(bundle, device=1)
    backend = trt.load(bundle, device=1)
    thread = threading.Thread(target=backend.run, args=(pixels(2),))
    thread.start()
    thread.join()
    assert {gpu for _, gpu in fake.device.values()} == {1}
    fake.local.device = 0
    backend.run(pixels(2))
    backend.close()
    fake.local.device = 0


# Processes


def test_a_pickled_backend_reopens_its_bundle_and_its_engine(
    built: Bundle, backend: trt.TrtBackend
) -> None:
    trt.build(built, optimization_level=5)  # newer, and not the one that was open
    other = pickle.loads(pickle.dumps(backend))
    assert other.facts == backend.facts
    np.testing.assert_array_equal(other.run(pixels(2))["logits"], backend.run(pixels(2))["logits"])
    other.close()


def test_a_forked_child_is_refused_and_its_parent_goes_on(
    built: Bundle, backend: trt.TrtBackend
) -> None:
    def child(answer: Any) -> None:
        try:
            backend.run(pixels(1))
        except UsageError as error:
            backend.close()
            answer.send(str(error))

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
    process.start()
    assert here.poll(30)
    assert "does not survive a fork" in here.recv()
    process.join()
    assert process.exitcode == 0
    backend.run(pixels(1))


def test_a_process_forked_from_one_that_used_cuda_is_told(fake: Any, built: Bundle) -> None:
    fake.fail["cuInit"] = 3  # what CUDA answers there
    for call in (trt.load, trt.build):
        with pytest.raises(BackendError, match="forked from one that has used it"):
            call(built)
    fake.fail.clear()


NO_DRIVER = """
import sys
from vit_edge.backends import trt
from vit_edge.bundle import Bundle
from vit_edge.errors import BackendError
try:
    trt.load(Bundle.read(sys.argv[1]))
except BackendError as error:
    print(error)
"""


@pytest.mark.parametrize("gpus", ["no driver", "0"])
def test_without_a_gpu_loading_is_a_message_and_no_crash(gpus: str, built: Bundle) -> None:
    environment = {
        **os.environ, "FAKE_GPUS": gpus, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", NO_DRIVER, str(built.path)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "TensorRT needs an NVIDIA GPU" in done.stdout


def test_the_fake_crashes_as_the_real_one_does(built: Bundle) -> None:
    (plan,) = built.path.glob("engines/*/model.plan")
    code = (
        "import sys, tensorrt as t; l = t.ILogger();"
        "t.Runtime(l).deserialize_cuda_engine(open(sys.argv[1], 'rb').read())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code, str(plan)], check=False, env=environment)
    assert done.returncode == -11


@pytest.mark.slow
def test_ten_thousand_calls_leave_nothing_behind(fake: Any, built: Bundle) -> None:
    backend = trt.load(built, contexts=2)
    whole = pixels(4)
    expected = answers(built, whole)
    for size in (1, 2, 3, 4, 4, 3, 2, 1):
        for _ in range(2):
            backend.run(whole[:size])
    before = fake.live()
    for call in range(10_000):
        size = 1 + call % 4
        found = backend.run(whole[:size])["logits"]
        if call % 500 == 0:
            np.testing.assert_allclose(found, expected[:size], rtol=0, atol=1e-6)
    assert fake.live() == before
    backend.close()
    assert fake.live() == {}
