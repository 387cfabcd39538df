"""A CUDA driver and runtime in Python: device memory is host memory, streams are lists of calls.

Stands in for libcuda and libcudart where `ctypes.CDLL` is replaced by the one here. It does what
the real ones do that matters: work put in a stream happens when the stream is synchronized and not
before; what is captured does not happen at all; memory that was freed is gone; and every
allocation is counted. Environment: FAKE_GPUS (how many, default 1; 0: a driver without a GPU),
FAKE_GPU_MEMORY (bytes each, default 8e9).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, ILLEGAL_ADDRESS = 0, 1, 2, 700
NO_DEVICE, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 100, 900, 901
POISON = 0xCD  # what fresh memory holds

REAL_CDLL = ctypes.CDLL


@dataclass
class Stream:
    device: int
    waiting: list[Callable[[], None]] = field(default_factory=list)
    captured: list[Callable[[], None]] | None = None
    capturing_thread: int = 0

    def put(self, call: Callable[[], None]) -> None:
        (self.waiting if self.captured is None else self.captured).append(call)


class State:
    """Everything that is allocated, in this process."""

    def __init__(self) -> None:
        self.initialised = False
        self.device: dict[int, tuple[Any, int]] = {}  # address -> memory, GPU
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launchable: dict[int, list[Callable[[], None]]] = {}
        self.contexts = 0  # counted by the fake TensorRT
        self.calls: list[str] = []
        self.fail: dict[str, int] = {}  # name of a call -> the error it shall return
        self.errors: list[str] = []  # misuse found when the work was done
        self.serial = 0x1000
        self.local = threading.local()

    def live(self) -> dict[str, int]:
        """What was not given back."""
        kinds = ("device", "pinned", "streams", "graphs", "launchable")
        counts = {kind: len(getattr(self, kind)) for kind in kinds} | {"contexts": self.contexts}
        return {kind: count for kind, count in counts.items() if count}

    def handle(self) -> int:
        self.serial += 16
        return self.serial

    def current(self) -> int:
        return int(getattr(self.local, "device", 0))

    def memory_at(self, address: int, size: int) -> bool:
        """Whether this memory, of GPU or host, is allocated."""
        blocks = [(a, m) for a, (m, _) in list(self.device.items())] + list(self.pinned.items())
        return any(a <= address and address + size <= a + len(m) for a, m in blocks)


STATE = State()


def gpu_count() -> int:
    return int(os.environ.get("FAKE_GPUS", "1"))


def gpu_memory() -> int:
    return int(float(os.environ.get("FAKE_GPU_MEMORY", "8e9")))


def give(out: Any, value: int) -> None:
    """Write to where a byref() points."""
    out._obj.value = value


class Function:
    """One entry of a library; has the attributes that ctypes functions have."""

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        self.name, self.call = name, call
        self.argtypes: Any = None
        self.restype: Any = None

    def __call__(self, *arguments: Any) -> Any:
        STATE.calls.append(self.name)
        if self.argtypes is not None:
            assert len(arguments) == len(self.argtypes), f"{self.name}{arguments}"
        if self.name in STATE.fail:
            if self.name == "cudaStreamEndCapture":  # ends it all the same
                STATE.streams[arguments[0]].captured = None
            return STATE.fail[self.name]
        return self.call(*arguments)


class Library:
    """A library with the functions that its class defines under CUDA's names."""

    def __init__(self) -> None:
        for name in dir(self):
            if name.startswith("cu"):
                setattr(self, name, Function(name, getattr(self, name)))


class Libcuda(Library):
    def cuInit(self, flags: int) -> int:
        if gpu_count() == 0:
            return NO_DEVICE
        STATE.initialised = True
        return SUCCESS

    def cuDriverGetVersion(self, out: Any) -> int:
        give(out, 13020)
        return SUCCESS

    def cuDeviceGetCount(self, out: Any) -> int:
        give(out, gpu_count())
        return SUCCESS

    def cuDeviceGet(self, out: Any, index: int) -> int:
        give(out, index)
        return SUCCESS

    def cuDeviceGetName(self, text: Any, size: int, device: Any) -> int:
        text.value = f"Fake GPU {device.value}".encode()[:size]
        return SUCCESS

    def cuDeviceTotalMem_v2(self, out: Any, device: Any) -> int:
        give(out, gpu_memory())
        return SUCCESS

    def cuDeviceGetAttribute(self, out: Any, attribute: int, device: Any) -> int:
        known = {16: 8, 18: int(os.environ.get("FAKE_GPU_INTEGRATED", "0")), 75: 8, 76: 7}
        give(out, known[attribute])
        return SUCCESS

    def cuGetErrorName(self, code: int, out: Any) -> int:
        out._obj.value = {NO_DEVICE: b"CUDA_ERROR_NO_DEVICE"}.get(code, b"CUDA_ERROR_UNKNOWN")
        return SUCCESS


class Libcudart(Library):
    def cudaGetErrorString(self, code: int) -> bytes:
        return {OUT_OF_MEMORY: b"out of memory"}.get(code, b"some error")

    def cudaGetLastError(self) -> int:
        return SUCCESS

    def cudaSetDevice(self, device: int) -> int:
        if not 0 <= device < gpu_count():
            return 101
        STATE.local.device = device
        return SUCCESS

    def cudaMemGetInfo(self, free: Any, total: Any) -> int:
        used = sum(len(memory) for memory, _ in STATE.device.values())
        give(free, gpu_memory() - used)
        give(total, gpu_memory())
        return SUCCESS

    def cudaMalloc(self, out: Any, size: int) -> int:
        if self._capturing_here():
            return CAPTURE_UNSUPPORTED
        if sum(len(m) for m, _ in STATE.device.values()) + size > gpu_memory():
            return OUT_OF_MEMORY
        address, memory = self._memory(size)
        STATE.device[address] = (memory, STATE.current())
        give(out, address)
        return SUCCESS

    def cudaFree(self, address: int) -> int:
        return SUCCESS if STATE.device.pop(address, None) else INVALID_VALUE

    def cudaMallocHost(self, out: Any, size: int) -> int:
        if self._capturing_here():
            return CAPTURE_UNSUPPORTED
        address, STATE.pinned[address] = self._memory(size)
        give(out, address)
        return SUCCESS

    def cudaFreeHost(self, address: int) -> int:
        return SUCCESS if STATE.pinned.pop(address, None) is not None else INVALID_VALUE

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> int:
        to_device = kind == 1
        if (target in STATE.device) != to_device or (source in STATE.pinned) != to_device:
            return INVALID_VALUE

        def copy() -> None:
            if STATE.memory_at(target, size) and STATE.memory_at(source, size):
                ctypes.memmove(target, source, size)
            else:
                STATE.errors.append("copied memory that is not allocated")

        return self._put(stream, copy)

    def cudaStreamCreateWithFlags(self, out: Any, flags: int) -> int:
        assert flags == 1
        handle = STATE.handle()
        STATE.streams[handle] = Stream(STATE.current())
        give(out, handle)
        return SUCCESS

    def cudaStreamSynchronize(self, stream: int) -> int:
        found = STATE.streams.get(stream)
        if found is None:
            return INVALID_VALUE
        if found.captured is not None:
            return CAPTURE_UNSUPPORTED
        while found.waiting:
            found.waiting.pop(0)()
        return ILLEGAL_ADDRESS if STATE.errors else SUCCESS

    def cudaStreamDestroy(self, stream: int) -> int:
        return SUCCESS if STATE.streams.pop(stream, None) else INVALID_VALUE

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> int:
        found = STATE.streams.get(stream)
        if found is None or found.captured is not None or found.waiting:
            return INVALID_VALUE
        found.captured, found.capturing_thread = [], threading.get_ident()
        return SUCCESS

    def cudaStreamEndCapture(self, stream: int, out: Any) -> int:
        found = STATE.streams[stream]
        if found.captured is None:
            return INVALID_VALUE
        handle = STATE.handle()
        STATE.graphs[handle], found.captured = found.captured, None
        give(out, handle)
        return SUCCESS

    def cudaGraphInstantiateWithFlags(self, out: Any, graph: int, flags: int) -> int:
        handle = STATE.handle()
        STATE.launchable[handle] = list(STATE.graphs[graph])
        give(out, handle)
        return SUCCESS

    def cudaGraphLaunch(self, graph: int, stream: int) -> int:
        if graph not in STATE.launchable:
            return INVALID_VALUE
        for call in STATE.launchable[graph]:
            self._put(stream, call)
        return SUCCESS

    def cudaGraphDestroy(self, graph: int) -> int:
        return SUCCESS if STATE.graphs.pop(graph, None) is not None else INVALID_VALUE

    def cudaGraphExecDestroy(self, graph: int) -> int:
        return SUCCESS if STATE.launchable.pop(graph, None) is not None else INVALID_VALUE

    def _put(self, stream: int, call: Callable[[], None]) -> int:
        found = STATE.streams.get(stream)
        if found is None or found.device != STATE.current():
            return INVALID_VALUE
        found.put(call)
        return SUCCESS

    def _memory(self, size: int) -> tuple[int, Any]:
        memory = (ctypes.c_ubyte * max(size, 1))()
        ctypes.memset(memory, POISON, len(memory))
        return ctypes.addressof(memory), memory

    def _capturing_here(self) -> bool:
        here = threading.get_ident()
        return any(
            stream.captured is not None and stream.capturing_thread == here
            for stream in STATE.streams.values()
        )


def CDLL(name: Any, *arguments: Any, **options: Any) -> Any:
    """In place of ctypes.CDLL."""
    if str(name).startswith("libcuda.so"):
        if os.environ.get("FAKE_GPUS") == "no driver":
            raise OSError("libcuda.so.1: cannot open shared object file")
        return Libcuda()
    if "libcudart.so" in str(name):
        return Libcudart()
    return REAL_CDLL(name, *arguments, **options)


def install() -> None:
    """Replace ctypes.CDLL for good; for child processes."""
    ctypes.CDLL = CDLL  # type: ignore[misc, assignment]
