"""The memory limits of a build, and what to try when it did not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from vit_edge.backends.trt.compiler import Job
from vit_edge.machine.cuda import Gpu

_MB = 10**6
_GB = 10**9
_SHARED_WORKSPACE = _GB  # most where the CPU shares it: 8 GB hold the system, too
_LEAST_WORKSPACE = 64 * _MB  # base needs 10 MB for its widest layer at batch 8


@dataclass(frozen=True)
class Attempt:
    """One way to build, and what is different from what was asked for."""

    job: Job
    change: str  # empty for the first


# What a build takes besides 350 MB, as multiples of the model file. Measured with TensorRT-RTX 1.7
# on tiny, base and large (docs/gpu.md): it holds weights in float32, and Q/DQ once more.
_TIMES_THE_FILE = {"fp32": 3.2, "fp16": 6.2, "bf16": 6.2, "int8": 17.0, "fp8": 29.0}


def host_bytes(model_bytes: int, precision: str) -> int:
    """Memory of the host that a build takes about; a guess for what was not measured."""
    return 350 * _MB + round(model_bytes * _TIMES_THE_FILE.get(precision, 17.0))


def with_limits(job: Job, gpu: Gpu | None, free_bytes: int) -> Job:
    """The limits that the options leave open, where the board shares its memory.

    Args:
        job: What to compile.
        gpu: Where; None for one that is not here.
        free_bytes: Memory that can be had now.
    """
    options = job.options
    shared = gpu is not None and gpu.integrated
    workspace = tactic = None
    if options.workspace_mb is not None:
        workspace = options.workspace_mb * _MB
    elif shared and gpu is not None:
        workspace = min(_SHARED_WORKSPACE, gpu.memory_bytes // 8)
    if options.tactic_memory_mb is not None:
        tactic = options.tactic_memory_mb * _MB
    elif shared:
        tactic = free_bytes // 2
    return dataclasses.replace(job, workspace_bytes=workspace, tactic_bytes=tactic)


def attempts(job: Job, free_bytes: int) -> Iterator[Attempt]:
    """Yield the job as asked, then with ever less memory to build in. The answers stay the same.

    Args:
        job: With its limits.
        free_bytes: Memory that can be had now.
    """
    yield Attempt(job, "")
    quarter = max(free_bytes // 4, _LEAST_WORKSPACE)
    workspace = min(job.workspace_bytes or quarter, quarter) // 2
    smaller = dataclasses.replace(
        job,
        workspace_bytes=max(workspace, _LEAST_WORKSPACE),
        tactic_bytes=min(job.tactic_bytes or quarter, quarter),
    )
    yield Attempt(smaller, "with half the workspace and a quarter of the memory to try kernels")
    least = dataclasses.replace(
        smaller,
        workspace_bytes=_LEAST_WORKSPACE,
        options=dataclasses.replace(job.options, optimization_level=0),
    )
    yield Attempt(least, "with 64 MB of workspace and optimization_level 0: a slower engine")
