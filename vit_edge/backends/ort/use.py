"""How ONNX Runtime runs a model: the options of `load`, checked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from vit_edge.errors import UsageError

Provider = Literal["cpu", "cuda", "tensorrt"]
# How MatMulNBits, which weight-only precisions become, computes: 0 in float32, 4 with inputs
# rounded to int8 by blocks. 4 is the runtime's own default, and a fifth faster: base in 4 bits
# takes 334 and 268 ms on one AVX512-VNNI thread, float32 328.
AccuracyLevel = Literal[0, 4]
DEFAULT_LEVEL: AccuracyLevel = 4

PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


@dataclass(frozen=True)
class GpuUse:
    """How a session runs on a GPU.

    Attributes:
        device: Which GPU, as CUDA counts those this process may see.
        gpu_memory_bytes: CUDA provider: what its arena may take; cuDNN's own memory comes on top.
            None: all there is.
        cuda_graph: CUDA provider: record each batch size's kernels once and launch them together.
            Runs of several threads then take turns.
        workspace_bytes: TensorRT provider: what one layer may take besides its tensors. The
            default is ONNX Runtime's own.
        optimization_level: TensorRT provider: from 0, built fastest, to 5, searched longest. The
            default is TensorRT's own.
        optimum_batch: TensorRT provider: the batch size that kernels are picked for; all from 1 to
            the bundle's limit run.
    """

    device: int = 0
    gpu_memory_bytes: int | None = None
    cuda_graph: bool = False
    workspace_bytes: int = 1 << 30
    optimization_level: int = 3
    optimum_batch: int = 1

    def check(self, provider: Provider) -> None:
        """Refuse values that mean nothing, or nothing to this provider.

        Raises:
            UsageError: The value and what is allowed.
        """
        for name in (field.name for field in dataclasses.fields(self)):
            value = getattr(self, name)
            if value != getattr(GpuUse, name) and provider not in _MEANT_FOR[name]:
                raise UsageError(
                    f"{name}={value!r} is for provider {' and '.join(_MEANT_FOR[name])}, not "
                    f"{provider}"
                )
        if self.device < 0:
            raise UsageError(f"device must be 0 or more, not {self.device}")
        for name in ("gpu_memory_bytes", "workspace_bytes", "optimum_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")
        if not 0 <= self.optimization_level <= 5:
            raise UsageError(f"optimization_level must be 0 to 5, not {self.optimization_level}")


_MEANT_FOR: dict[str, tuple[Provider, ...]] = {
    "device": ("cuda", "tensorrt"),
    "gpu_memory_bytes": ("cuda",),
    "cuda_graph": ("cuda",),
    "workspace_bytes": ("tensorrt",),
    "optimization_level": ("tensorrt",),
    "optimum_batch": ("tensorrt",),
}


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
            raise UsageError(f"no provider {self.provider!r}; there are: {', '.join(PROVIDERS)}")
        self.gpu.check(self.provider)
        if self.accuracy_level not in (0, 4):
            raise UsageError(
                f"accuracy_level must be 0 (float32) or 4 (int8), not {self.accuracy_level!r}"
            )
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UsageError(f"micro_batch must be at least 1, not {self.micro_batch}")
