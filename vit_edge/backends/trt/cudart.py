"""The few calls of the CUDA runtime that an engine needs, by ctypes: no torch, no pycuda.

Names, numbers and meanings: driver_types.h and cuda_runtime_api.h, the same in CUDA 12 and 13
(docs.nvidia.com/cuda/cuda-runtime-api).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vit_edge.errors import BackendError, ResourceError
from vit_edge.machine.cuda import gpus

HOST_TO_DEVICE = 1  # cudaMemcpyKind
DEVICE_TO_HOST = 2
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_UNLOADING = 4  # cudaErrorCudartUnloading: the process is ending
_NON_BLOCKING = 1  # cudaStreamNonBlocking: not ordered after the stream that all share
_THREAD_LOCAL = 1  # cudaStreamCaptureModeThreadLocal: other threads may allocate meanwhile

_MAJORS = (13, 12, 11)  # of libcudart.so.N, the newest first

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_size_t
_OUT = ctypes.POINTER(ctypes.c_void_p)
# Without them ctypes passes a pointer as an int of 32 bits.
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cudaSetDevice": (ctypes.c_int,),
    "cudaMemGetInfo": (ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)),
    "cudaMalloc": (_OUT, _SIZE),
    "cudaFree": (_POINTER,),
    "cudaMallocHost": (_OUT, _SIZE),
    "cudaFreeHost": (_POINTER,),
    "cudaMemcpyAsync": (_POINTER, _POINTER, _SIZE, ctypes.c_int, _POINTER),
    "cudaStreamCreateWithFlags": (_OUT, ctypes.c_uint),
    "cudaStreamSynchronize": (_POINTER,),
    "cudaStreamDestroy": (_POINTER,),
    "cudaStreamBeginCapture": (_POINTER, ctypes.c_int),
    "cudaStreamEndCapture": (_POINTER, _OUT),
    "cudaGraphInstantiateWithFlags": (_OUT, _POINTER, ctypes.c_ulonglong),
    "cudaGraphLaunch": (_POINTER, _POINTER),
    "cudaGraphDestroy": (_POINTER,),
    "cudaGraphExecDestroy": (_POINTER,),
    "cudaGetLastError": (),
}


class CudaError(BackendError):
    """A call of the CUDA runtime failed."""


class Memory(NamedTuple):
    """Of a GPU."""

    free_bytes: int
    total_bytes: int


class Cudart:
    """The CUDA runtime on one GPU. Every call raises where CUDA returns an error."""

    def __init__(self, library: Any, device: int) -> None:
        """Use `open_cudart`."""
        self._library = library
        self._device = device
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        library.cudaGetErrorString.argtypes = (ctypes.c_int,)
        library.cudaGetErrorString.restype = ctypes.c_char_p

    def use_device(self) -> None:
        """Make the GPU the one of this thread: each has its own."""
        self._call("cudaSetDevice", self._device)

    def memory(self) -> Memory:
        """Return the free bytes, and all bytes."""
        free, total = _SIZE(), _SIZE()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return Memory(free.value, total.value)

    def allocate(self, size_bytes: int) -> int:
        """Memory of the GPU; its address."""
        return self._given("cudaMalloc", size_bytes)

    def free(self, address: int) -> None:
        """Give it back."""
        self._call("cudaFree", address)

    def allocate_pinned(self, size_bytes: int) -> int:
        """Memory of the host that the GPU copies from and to by itself; its address."""
        return self._given("cudaMallocHost", size_bytes)

    def free_pinned(self, address: int) -> None:
        """Give it back."""
        self._call("cudaFreeHost", address)

    def copy(self, target: int, source: int, size_bytes: int, kind: int, stream: int) -> None:
        """Put a copy in the stream."""
        self._call("cudaMemcpyAsync", target, source, size_bytes, kind, stream)

    def create_stream(self) -> int:
        """A stream of its own."""
        return self._given("cudaStreamCreateWithFlags", _NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Wait until all that was put in the stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        """Give it back."""
        self._call("cudaStreamDestroy", stream)

    def begin_capture(self, stream: int) -> None:
        """From here on record what this thread puts in the stream, instead of running it."""
        self._call("cudaStreamBeginCapture", stream, _THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """Make what was recorded ready to be launched."""
        graph = self._given_last("cudaStreamEndCapture", stream)
        try:
            return self._given("cudaGraphInstantiateWithFlags", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def abandon_capture(self, stream: int) -> None:
        """End a recording that failed, and forget its error."""
        graph = ctypes.c_void_p()
        if self._library.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 0 and graph.value:
            self._library.cudaGraphDestroy(graph.value)
        self._library.cudaGetLastError()

    def launch(self, graph: int, stream: int) -> None:
        """Put what was recorded in the stream, at once."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Give it back."""
        self._call("cudaGraphExecDestroy", graph)

    def _given(self, name: str, *arguments: int) -> int:
        """Call a function whose first argument is where to put the result."""
        result = ctypes.c_void_p()
        self._call(name, ctypes.byref(result), *arguments)
        return result.value or 0

    def _given_last(self, name: str, *arguments: int) -> int:
        result = ctypes.c_void_p()
        self._call(name, *arguments, ctypes.byref(result))
        return result.value or 0

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code in (0, _UNLOADING):
            return
        text = self._library.cudaGetErrorString(code) or b"unknown error"
        self._library.cudaGetLastError()  # or the next call reports it again
        message = f"{name}: {text.decode('utf-8', 'replace')} (CUDA error {code})"
        if code == _OUT_OF_MEMORY:
            raise ResourceError(
                f"the GPU's memory ran out: {message}. Run smaller batches, or fewer contexts, or "
                "close what else uses it"
            )
        raise CudaError(
            f"{message}. After a fault on the GPU nothing more runs in this process: start it anew"
        )


def open_cudart(device: int = 0) -> Cudart:
    """Find and load the CUDA runtime.

    Args:
        device: Which GPU, as CUDA counts them.

    Raises:
        BackendError: It is not there, or does not load.
    """
    driver = gpus().cuda
    reasons = []
    for name in _candidates(_MAJORS[0] if driver is None else int(driver.partition(".")[0])):
        try:
            return Cudart(ctypes.CDLL(name), device)
        except (OSError, AttributeError) as error:
            reasons.append(str(error))
    raise BackendError(
        "the CUDA runtime was not found: install it (apt install cuda-cudart-13-2, or pip install "
        "nvidia-cuda-runtime), or add its folder to LD_LIBRARY_PATH:\n  " + "\n  ".join(reasons)
    )


def _candidates(newest: int) -> Iterator[str]:
    """Names and paths to try: the loader's, those of pip's wheels, the toolkit's.

    Args:
        newest: The major version of CUDA that the driver serves; newer ones load, and then fail.
    """
    names = [f"libcudart.so.{major}" for major in _MAJORS if major <= newest]
    yield from names
    folders = [
        folder
        for entry in sys.path
        for pattern in ("nvidia/cu*/lib", "nvidia/cuda_runtime/lib")
        for folder in sorted(Path(entry).glob(pattern), reverse=True)
    ]
    for folder in (*folders, Path("/usr/local/cuda/lib64")):
        for name in names:
            if (folder / name).exists():
                yield str(folder / name)
