"""NVIDIA GPUs, as the driver tells: asked by ctypes, before any runtime that needs them is touched.

TensorRT and its relatives do not raise without a working driver, they crash; so this comes first.
Calls and attribute numbers: cuda.h, CUDA Driver API (docs.nvidia.com/cuda/cuda-driver-api).
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vit_edge.machine.cgroups import ROOT, read
from vit_edge.machine.memory import readable_size

LIBRARY = "libcuda.so.1"  # the driver's; JetPack and the container toolkit put it on the path

_NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_MULTIPROCESSORS, _INTEGRATED, _MAJOR, _MINOR = 16, 18, 75, 76  # CUdevice_attribute


_FORKED = (
    "no CUDA here: this process was forked from one that has used it, which CUDA does not survive; "
    'start it with multiprocessing\'s "spawn" method'
)


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        index: As CUDA counts the GPUs that this process may see.
        name: Such as "NVIDIA H200", or "Orin" on every board with that chip.
        compute_capability: Such as (8, 7).
        multiprocessors: How many are switched on: Orin's power modes change it.
        memory_bytes: All of it; on an integrated GPU that of the whole board.
        integrated: Whether it shares the CPU's memory, as on a Jetson.
    """

    index: int
    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    integrated: bool

    @property
    def sm(self) -> str:
        """The compute capability as compilers write it: SM87."""
        return "SM{}{}".format(*self.compute_capability)

    def __str__(self) -> str:
        shared = " shared with the CPU" if self.integrated else ""
        size = readable_size(self.memory_bytes)
        return f"{self.name} ({self.sm}, {self.multiprocessors} multiprocessors, {size}{shared})"


class Gpus(NamedTuple):
    """The GPUs found, or why there is none."""

    found: tuple[Gpu, ...]
    cuda: str | None  # the newest CUDA version the driver serves, such as "13.2"; None: no driver
    reason: str  # empty if there is one

    @property
    def text(self) -> str:
        """Describe them in a line, or say why there is none."""
        listed = "; ".join(map(str, self.found))
        return f"{listed}; the driver serves CUDA {self.cuda}" if listed else self.reason


class _RefusedError(Exception):
    """A call of the driver's that did not end well."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(call, code)
        self.call, self.code = call, code


def kernel_driver(root: Path = ROOT) -> str:
    """Read the version of the driver that the kernel has loaded; empty if it has none."""
    version = read(root / "sys/module/nvidia/version").strip()
    if version:
        return version
    text = read(root / "proc/driver/nvidia/version")
    match = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return match[1] if match else ""


def gpus(library: Any = None) -> Gpus:
    """Ask the driver for its GPUs. It opens no context on them, and takes no memory there.

    Args:
        library: In place of libcuda, for tests.

    Returns:
        The GPUs; none, with the reason, where the driver is absent, too old, a stub, or refuses.
    """
    if library is None:
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            return Gpus((), None, f"no NVIDIA driver: {error}")
    cuda: str | None = None
    try:
        number = ctypes.c_int()
        _call(library, "cuDriverGetVersion", ctypes.byref(number))
        cuda = f"{number.value // 1000}.{number.value % 1000 // 10}"
        _call(library, "cuInit", 0)
        _call(library, "cuDeviceGetCount", ctypes.byref(number))
        devices = tuple(_gpu(library, index) for index in range(number.value))
    except AttributeError as error:
        return Gpus((), cuda, f"{LIBRARY} is no NVIDIA driver: {error}")
    except _RefusedError as refusal:
        if refusal.code == _NO_DEVICE:
            return Gpus((), cuda, _none_visible(cuda))
        if refusal.code == _NOT_INITIALIZED and refusal.call == "cuInit":
            return Gpus((), cuda, _FORKED)
        name = _name(library, refusal.code)
        return Gpus((), cuda, f"the NVIDIA driver does not work: {refusal.call}: {name}")
    return Gpus(devices, cuda, "" if devices else _none_visible(cuda))


def _gpu(library: Any, index: int) -> Gpu:
    device, size = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    _call(library, "cuDeviceGet", ctypes.byref(device), index)
    _call(library, "cuDeviceGetName", name, len(name), device)
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(size), device)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        _call(library, "cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    return Gpu(
        index=index,
        name=name.value.decode("utf-8", "replace"),
        compute_capability=(attribute(_MAJOR), attribute(_MINOR)),
        multiprocessors=attribute(_MULTIPROCESSORS),
        memory_bytes=size.value,
        integrated=bool(attribute(_INTEGRATED)),
    )


def _call(library: Any, name: str, *arguments: Any) -> None:
    code = getattr(library, name)(*arguments)
    if code != 0:
        raise _RefusedError(name, code)


def _name(library: Any, code: int) -> str:
    text = ctypes.c_char_p()
    if library.cuGetErrorName(code, ctypes.byref(text)) == 0 and text.value:
        return f"{text.value.decode()} ({code})"
    return f"error {code}"


def _none_visible(cuda: str | None) -> str:
    return (
        f"the NVIDIA driver (CUDA {cuda}) shows no GPU to this process: see CUDA_VISIBLE_DEVICES, "
        "or docker run --gpus all (--runtime nvidia on a Jetson)"
    )
