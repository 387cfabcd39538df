"""The shared libraries that ONNX Runtime's CUDA provider is linked with, and which are missing.

ONNX Runtime says which library it did not find on stderr only, and goes on without the provider.
So the provider's own file is asked what it is linked with (its ELF header; nothing is run).
"""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path
from typing import Any, NamedTuple

PROVIDER_FILE = "libonnxruntime_providers_cuda.so"

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


def provider_file(runtime: Any) -> Path:
    """Return the wheel's file with the provider's code."""
    return Path(runtime.__file__).parent / "capi" / PROVIDER_FILE


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


def missing(runtime: Any) -> list[str]:
    """The libraries of the provider that are not found here, or that the loader refuses and why."""
    file = provider_file(runtime)
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
