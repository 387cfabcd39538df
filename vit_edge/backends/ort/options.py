"""How ONNX Runtime builds and runs a model: the options, declared and checked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from vit_edge.backends import _options as shared
from vit_edge.bundle import engines
from vit_edge.errors import UsageError
from vit_edge.machine import cpus

# TensorRT has a backend of its own; a recipe or a command line that asks for it here is told so.
Provider = Annotated[Literal["cpu", "cuda"], "for TensorRT use --backend trt"]
# How MatMulNBits, which weight-only precisions become, computes: 0 in float32, 4 with inputs
# rounded to int8 by blocks. 4 is the runtime's own default, and a fifth faster: base in 4 bits
# takes 334 and 268 ms on one AVX512-VNNI thread, float32 328.
AccuracyLevel = Literal[0, 4]

PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}
_FOR_CUDA = ("device", "gpu_memory_bytes", "cuda_graph")


@dataclass(frozen=True, kw_only=True)
class BuildOptions(shared.BuildOptions):
    """What packed weights depend on.

    Attributes:
        accuracy_level: Of weight-only precisions: 4 rounds inputs to int8 by blocks, 0 does not.
        provider: What must run the graph, every node of it. CUDA's compiles nothing.
    """

    accuracy_level: AccuracyLevel = 4
    provider: Provider = "cpu"

    def check(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            UsageError: The value and what is allowed.
        """
        if self.provider not in PROVIDERS:
            raise UsageError(
                f"no provider {self.provider!r}; there are: {', '.join(PROVIDERS)}; "
                "for TensorRT use --backend trt"
            )
        if self.accuracy_level not in (0, 4):
            raise UsageError(
                f"accuracy_level must be 0 (float32) or 4 (int8), not {self.accuracy_level!r}"
            )


@dataclass(frozen=True, kw_only=True)
class LoadOptions(BuildOptions):
    """How a session runs.

    Attributes:
        threads: Of one run; by default what affinity and cgroup allow.
        engine: Whether to use what `build` made: if it is there, never, or insist on it.
        spinning: Threads that wait for work keep a core busy for a moment. 6 % faster at batch 1
            (base INT8, two cores); without it the cores are free for others at once.
        arena: The tensors of a run have their places laid out beforehand. Without it each gives its
            place on after its last use: base INT8 holds a quarter less, in eights half.
        trim: Each tensor's memory goes back to the system after its last use: base answers within
            48 MB, at 2.5 times the CPU time. It sets a threshold of malloc for the whole process.
        micro_batch: Run at most so many images at once; None: the whole batch. On two cores base
            INT8 is 7 % faster one by one than in eights, in less memory; tiny models are not.
        device: CUDA: which GPU, as CUDA counts those this process may see.
        gpu_memory_bytes: CUDA: what the arena may take; cuDNN's own memory comes on top. None: all
            there is.
        cuda_graph: CUDA: record each batch size's kernels once and launch them together. Runs of
            several threads then take turns.
    """

    threads: int | None = None
    engine: engines.Use = "auto"
    spinning: bool = True
    arena: bool = True
    trim: bool = False
    micro_batch: int | None = None
    device: int = 0
    gpu_memory_bytes: int | None = None
    cuda_graph: bool = False

    @property
    def thread_count(self) -> int:
        """How many threads one run has."""
        return cpus.default_threads() if self.threads is None else self.threads

    def check(self) -> None:
        """Refuse values that mean nothing, or nothing to this provider.

        Raises:
            UsageError: The value and what is allowed.
        """
        super().check()
        engines.check_use(self.engine)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in _FOR_CUDA:
            value = getattr(self, name)
            if self.provider != "cuda" and value != defaults[name]:
                raise UsageError(f"{name}={value!r} is for provider cuda, not {self.provider}")
        if self.device < 0:
            raise UsageError(f"device must be 0 or more, not {self.device}")
        for name in ("threads", "micro_batch", "gpu_memory_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")
