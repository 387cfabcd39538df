"""The version of vit_edge, and those of the runtimes that are installed."""

from __future__ import annotations

import platform

from vit_edge import __version__

# Distributions that bring a runtime; torch runs the reference.
_RUNTIMES = (
    "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-cu12", "tensorrt-cu13",
    "tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "torch",
)  # fmt: skip


def versions() -> str:
    """Two lines: vit-edge and its version; Python and the runtimes with theirs."""
    from importlib import metadata  # takes longer to import than all else here

    there = [f"Python {platform.python_version()}"]
    for name in _RUNTIMES:
        try:
            there.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    if len(there) == 1:
        there.append('no runtime (pip install "vit-edge[cpu]")')
    return f"vit-edge {__version__}\n{', '.join(there)}"
