"""The shared libraries that ONNX Runtime's GPU providers are linked with, and which are missing.

ONNX Runtime says which library it did not find on stderr only, and goes on without the provider.
So the provider's own file is asked what it is linked with (its ELF header; nothing is run).
"""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path
from typing import Any, NamedTuple

from vit_edge.backends.ort.use import Provider
from vit_edge.errors import BackendError

PROVIDER_FILES: dict[Provider, str] = {
    "cuda": "libonnxruntime_providers_cuda.so",
    "tensorrt": "libonnxruntime_providers_tensorrt.so",
}

_PT_LOAD, _PT_DYNAMIC = 1, 2  # elf.h, as the following
_DT_NEEDED, _DT_STRTAB = 1, 5
_ELF64_LITTLE = b"\x7fELF\x02\x01"


class _Segment(NamedTuple):
    """A program header of ELF64: Elf64_Phdr."""

    kind: int
    flags: int
    offset: int
    address: int
    physical: int
    file_bytes: int
    memory_bytes: int
    align: int


def provider_file(runtime: Any, provider: Provider) -> Path:
    """Where the wheel has a provider's code."""
    return Path(runtime.__file__).parent / "capi" / PROVIDER_FILES[provider]


def needed(file: Path) -> list[str]:
    """The libraries that a shared library is linked with: its DT_NEEDED.

    Raises:
        ValueError: No ELF file of 64 bits, little-endian.
        OSError: It cannot be read.
    """
    with file.open("rb") as stream:

        def read(offset: int, size: int) -> bytes:
            stream.seek(offset)
            return stream.read(size)

        if read(0, 6) != _ELF64_LITTLE:
            raise ValueError(f"{file}: no shared library of 64 bits")
        (table,) = struct.unpack("<Q", read(32, 8))  # e_phoff
        size, count = struct.unpack("<HH", read(54, 4))  # e_phentsize, e_phnum
        headers = [
            _Segment(*struct.unpack("<IIQQQQQQ", read(table + n * size, 56))) for n in range(count)
        ]
        dynamic = next(header for header in headers if header.kind == _PT_DYNAMIC)
        entries = list(struct.iter_unpack("<QQ", read(dynamic.offset, dynamic.file_bytes)))
        address = next(value for tag, value in entries if tag == _DT_STRTAB)
        home = next(
            header
            for header in headers
            if header.kind == _PT_LOAD and 0 <= address - header.address < header.file_bytes
        )
        strings = address - home.address + home.offset
        names = [read(strings + value, 256) for tag, value in entries if tag == _DT_NEEDED]
    return [name.partition(b"\0")[0].decode() for name in names]


def missing(runtime: Any, provider: Provider) -> list[str]:
    """The libraries of a provider that are not found here, or that the loader refuses and why."""
    file = provider_file(runtime, provider)
    try:
        names = needed(file)
    except (OSError, ValueError, StopIteration, struct.error) as error:
        return [f"{file.name} ({error})"]
    reasons = []
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError as error:
            absent = str(error).startswith(f"{name}: cannot open shared object file")
            reasons.append(name if absent else f"{name} ({error})")
    return reasons


def preload(runtime: Any) -> None:
    """Load CUDA and cuDNN from the nvidia-* wheels, where they are: the loader finds no wheels."""
    if hasattr(runtime, "preload_dlls"):  # onnxruntime 1.21
        runtime.preload_dlls()


def tensorrt_version(runtime: Any) -> str:
    """The version of the TensorRT that the provider is linked with, such as "10.3.0".

    Raises:
        BackendError: It is not here; TensorRT of another major version does not do.
    """
    file = provider_file(runtime, "tensorrt")
    try:
        name = next(name for name in needed(file) if name.startswith("libnvinfer.so."))
    except (OSError, ValueError, StopIteration, struct.error) as error:
        raise BackendError(
            f"onnxruntime {runtime.__version__}: its TensorRT provider cannot be read: {error!r}. "
            'Install it again: pip install --force-reinstall "vit-edge[gpu]"'
        ) from error
    try:
        number: int = ctypes.CDLL(name).getInferLibVersion()
    except (OSError, AttributeError) as error:
        major = name.rpartition(".")[2]
        raise BackendError(
            f"onnxruntime {runtime.__version__}'s TensorRT provider needs TensorRT {major} "
            f"({error}). Another major version does not do: with TensorRT 11 use backend trt, "
            f"which does without onnxruntime; or put TensorRT {major}'s libraries on "
            "LD_LIBRARY_PATH"
        ) from error
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"  # NvInferVersion.h, from 10.0
