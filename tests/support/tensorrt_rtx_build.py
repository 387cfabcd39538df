"""Build ONNX files with TensorRT-RTX on a machine without a GPU, by our own compiler.

It is TensorRT 11's parser and builder; what it refuses, TensorRT refuses. Engines cannot be run or
opened here. Tests that use it declare requires = ("tensorrt_rtx", ...).

    for build in builds(path, ["SM80", "SM89"]):
        assert build.errors == ()
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vit_edge import onnxfile
from vit_edge.backends.trt.compiler import Job, compile_plan
from vit_edge.backends.trt.library import open_library
from vit_edge.backends.trt.options import BuildOptions, Profile
from vit_edge.errors import BackendError
from vit_edge.machine import child

ALL = ("SM80", "SM86", "SM89", "SM120")  # names of tensorrt_rtx.ComputeCapability
BATCHES = Profile(1, 8, 32)
TIMEOUT_S = 300


class Build(NamedTuple):
    """What became of one ONNX file on one compute capability."""

    compute_capability: str
    errors: tuple[str, ...]  # our error, as text; empty: it was built
    plan_bytes: int  # 0 if it was not built
    layers: dict[str, int]  # "MATRIX_MULTIPLY HALF" -> how many layers make such a tensor


def builds(path: Path, compute_capabilities: Sequence[str] = ALL) -> list[Build]:
    """Build the file for each compute capability, in a child process.

    Args:
        path: An ONNX file with one input, whose only dynamic axis is the batch.
        compute_capabilities: Such as "SM80"; SM75 refuses FP32 and BF16, FP8 needs SM89.

    Raises:
        ResourceError: The child died.
    """
    return all_builds([(path, compute_capabilities)])[0]


def all_builds(wanted: Sequence[tuple[Path, Sequence[str]]]) -> list[list[Build]]:
    """As `builds`, of several files in one child: its start costs as much as a small build."""
    target = "tests.support.tensorrt_rtx_build:builds_here"
    timeout_s = TIMEOUT_S * len(wanted)
    return list(child.call_in_child(target, [*wanted], timeout_s=timeout_s))


def builds_here(wanted: Sequence[tuple[Path, Sequence[str]]]) -> list[list[Build]]:
    """The child's side of `all_builds`."""
    return [[built(path, name) for name in names] for path, names in wanted]


def built(path: Path, compute_capability: str) -> Build:
    library = open_library("tensorrt_rtx")
    options = BuildOptions(library="tensorrt_rtx", compute_capability=compute_capability)
    try:
        made = compile_plan(library, Job(path, *the_input(path), (BATCHES,), options))
    except BackendError as error:
        return Build(compute_capability, (str(error),), 0, {})
    return Build(compute_capability, (), len(made.plan), made.layers)


def the_input(path: Path) -> tuple[str, tuple[int, ...]]:
    """Name and image shape of a file's input; of a file that is none, anything."""
    try:
        (value,) = onnxfile.read_model(path).inputs
    except Exception:
        return "pixel_values", ()
    return value.name, tuple(size for size in value.shape[1:] if isinstance(size, int))
