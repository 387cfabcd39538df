"""How ONNX Runtime runs a model: the options of `load`, checked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from vit_edge.errors import UsageError

# TensorRT has a backend of its own; a recipe or a command line that asks for it here is told so.
Provider = Annotated[Literal["cpu", "cuda"], "for TensorRT use --backend trt"]
# How MatMulNBits, which weight-only precisions become, computes: 0 in float32, 4 with inputs
# rounded to int8 by blocks. 4 is the runtime's own default, and a fifth faster: base in 4 bits
# takes 334 and 268 ms on one AVX512-VNNI thread, float32 328.
AccuracyLevel = Literal[0, 4]
DEFAULT_LEVEL: AccuracyLevel = 4

PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}


@dataclass(frozen=True)
class GpuUse:
    """How a session runs on a GPU.

    Attributes:
        device: Which GPU, as CUDA counts those this process may see.
        gpu_memory_bytes: What the arena may take; cuDNN's own memory comes on top.
            None: all there is.
        cuda_graph: Record each batch size's kernels once and launch them together.
            Runs of several threads then take turns.
    """

    device: int = 0
    gpu_memory_bytes: int | None = None
    cuda_graph: bool = False

    def check(self, provider: Provider) -> None:
        """Refuse values that mean nothing, or nothing to this provider.

        Raises:
            UsageError: The value and what is allowed.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default and provider != "cuda":
                raise UsageError(f"{field.name}={value!r} is for provider cuda, not {provider}")
        if self.device < 0:
            raise UsageError(f"device must be 0 or more, not {self.device}")
        if self.gpu_memory_bytes is not None and self.gpu_memory_bytes < 1:
            raise UsageError(f"gpu_memory_bytes must be at least 1, not {self.gpu_memory_bytes}")


@dataclass(frozen=True)
class Use:
    """How a session runs.

    Attributes:
        threads: Of one run.
        provider: What must run the graph, every node of it.
        accuracy_level: Of weight-only precisions: 4 rounds inputs to int8 by blocks, 0 does not.
        spinning: Threads that wait for work keep a core busy for a moment. 6 % faster at batch 1
            (base INT8, two cores); without it the cores are free for others at once.
        arena: Memory is kept between runs, and laid out beforehand. Up to 6 % faster; without it a
            process holds less.
        micro_batch: Run at most so many images at once; None: the whole batch. On two cores base
            INT8 is 7 % faster one by one than in eights, in less memory; tiny models are not.
        gpu: See `GpuUse`.
    """

    threads: int
    provider: Provider = "cpu"
    accuracy_level: AccuracyLevel = DEFAULT_LEVEL
    spinning: bool = True
    arena: bool = True
    micro_batch: int | None = None
    gpu: GpuUse = GpuUse()

    def check(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            UsageError: The value and what is allowed.
        """
        if self.threads < 1:
            raise UsageError(f"threads must be at least 1, not {self.threads}")
        if self.provider not in PROVIDERS:
            raise UsageError(
                f"no provider {self.provider!r}; there are: {', '.join(PROVIDERS)}; "
                "for TensorRT use --backend trt"
            )
        self.gpu.check(self.provider)
        if self.accuracy_level not in (0, 4):
            raise UsageError(
                f"accuracy_level must be 0 (float32) or 4 (int8), not {self.accuracy_level!r}"
            )
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UsageError(f"micro_batch must be at least 1, not {self.micro_batch}")
