"""An onnxruntime with the CUDA provider and no GPU: the real CPU provider answers behind it.

It is as strict as the real one where that raises, and stricter where that goes on in silence:
every option of the provider must be known, fallbacks must be forbidden, tensors must be bound
before a run, and a CUDA graph must be replayed with the addresses it was recorded with, by one
thread at a time.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as real

from vit_edge.machine.cuda import Gpu, Gpus

GPU = Gpu(0, "NVIDIA Test", (8, 7), 16, 8 << 30, True)
ONE_GPU = Gpus((GPU,), "13.2", "")

# The names in libonnxruntime_providers_cuda.so of 1.31.1, those that this project uses.
KNOWN = {
    "device_id", "use_tf32", "cudnn_conv_algo_search", "arena_extend_strategy", "gpu_mem_limit",
    "enable_cuda_graph",
}  # fmt: skip
# What 1.31.1 says, to the letter.
ON_THE_CPU = (
    "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to the "
    "default CPU EP, but fallback to CPU EP has been explicitly disabled by the user."
)
NOTICE = "a notice of the provider\n"


class FakeRuntime:
    """The module. What a test changes is an attribute here."""

    __version__ = "1.31.1"
    GraphOptimizationLevel = real.GraphOptimizationLevel
    SessionOptions = real.SessionOptions
    RunOptions = real.RunOptions

    def __init__(self, folder: Path) -> None:
        self.__file__ = str(folder / "__init__.py")
        self.sessions: list[FakeSession] = []
        self.preloaded = False
        self.nodes_on_cpu = 0  # in the profile
        self.refuses: Exception | None = None
        self.registers: list[str] | None = None  # instead of what was asked for
        self.OrtValue = FakeValue

    def get_available_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        self.preloaded = True
        print("Failed to load libcublas.so.13")

    def InferenceSession(
        self, path: str, options: Any, *, providers: Sequence[Any], enable_fallback: int = 1
    ) -> Any:
        if providers[0][0] == "CPUExecutionProvider":
            return real.InferenceSession(path, options, providers=providers)
        assert self.preloaded, "CUDA of the nvidia-* wheels would not be found"
        assert enable_fallback == 0, "it would be opened again on the CPU"
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        ((name, told),) = providers
        unknown = set(told) - KNOWN
        if unknown or not all(isinstance(value, str) for value in told.values()):
            raise RuntimeError(f"Invalid EP option: {unknown or told}")
        os.write(1, NOTICE.encode())
        if self.refuses is not None:
            raise self.refuses
        session = FakeSession(self, path, options, name, told)
        self.sessions.append(session)
        return session


class FakeSession:
    def __init__(
        self, runtime: FakeRuntime, path: str, options: Any, name: str, told: Mapping[str, str]
    ) -> None:
        own = real.SessionOptions()
        own.log_severity_level, own.intra_op_num_threads = 3, 1
        own.enable_profiling = options.enable_profiling
        own.profile_file_prefix = options.profile_file_prefix
        self.runtime, self.name, self.told = runtime, name, told
        self.real = real.InferenceSession(path, own, providers=["CPUExecutionProvider"])
        self.graphs: dict[str, list[int]] = {}
        self.bindings: list[FakeBinding] = []
        self._inside = threading.Lock()

    def get_providers(self) -> list[str]:
        return self.runtime.registers or [self.name, "CPUExecutionProvider"]

    def run(self, names: list[str], feed: Mapping[str, Any]) -> Any:
        return self.real.run(names, feed)

    def io_binding(self) -> FakeBinding:
        self.bindings.append(FakeBinding())
        return self.bindings[-1]

    def run_with_iobinding(self, bound: FakeBinding, options: Any) -> None:
        names = [output.name for output in self.real.get_outputs()]
        assert set(bound.inputs) == {tensor.name for tensor in self.real.get_inputs()}
        assert set(bound.outputs) == set(names)
        if self.told.get("enable_cuda_graph") == "1":
            assert self._inside.acquire(blocking=False), "two threads in a CUDA graph"
            try:
                self._replayed(bound, options.get_run_config_entry("gpu_graph_id"))
            finally:
                self._inside.release()
        feed = {name: value.buffer for name, value in bound.inputs.items()}
        for name, answer in zip(names, self.real.run(names, feed), strict=True):
            assert bound.outputs[name].buffer.shape == answer.shape
            bound.outputs[name].buffer[:] = answer

    def _replayed(self, bound: FakeBinding, graph: str) -> None:
        addresses = [
            value.buffer.ctypes.data for value in (*bound.inputs.values(), *bound.outputs.values())
        ]
        assert graph not in ("0", "-1")
        assert self.graphs.setdefault(graph, addresses) == addresses, "the graph was moved"

    def end_profiling(self) -> str:
        file = Path(self.real.end_profiling())
        events = json.loads(file.read_text())
        kernels = [event["args"] for event in events if event.get("args", {}).get("provider")]
        for kernel in kernels[self.runtime.nodes_on_cpu :]:
            kernel["provider"] = self.name
        file.write_text(json.dumps(events))
        return str(file)


class FakeBinding:
    def __init__(self) -> None:
        self.inputs: dict[str, FakeValue] = {}
        self.outputs: dict[str, FakeValue] = {}

    def bind_ortvalue_input(self, name: str, value: FakeValue) -> None:
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: FakeValue) -> None:
        self.outputs[name] = value


class FakeValue:
    """A tensor on the GPU. Unlike the real one, `numpy` hands out the memory itself: a trap."""

    def __init__(self, shape: Sequence[int], dtype: Any) -> None:
        self.buffer = np.zeros(shape, dtype)

    @classmethod
    def ortvalue_from_shape_and_type(
        cls, shape: Sequence[int], dtype: Any, device_type: str, device_id: int
    ) -> FakeValue:
        assert (device_type, device_id) == ("cuda", 0)
        return cls(shape, dtype)

    def update_inplace(self, data: Any) -> None:
        assert data.flags.c_contiguous
        assert (data.dtype, data.shape) == (self.buffer.dtype, self.buffer.shape)
        self.buffer[:] = data

    def numpy(self) -> Any:
        return self.buffer
