"""The options an engine is built with. None decides precision: that is in the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from vit_edge.backends import _options as shared
from vit_edge.backends.trt.library import Name
from vit_edge.errors import UsageError

Compatibility = Literal["none", "ampere-plus", "same-compute-capability"]
LEVELS = range(6)  # of the builder's optimization; its own default is 3


class Profile(NamedTuple):
    """The batch sizes that kernels are picked for."""

    least: int
    best: int
    most: int

    def __str__(self) -> str:
        return f"{self.least},{self.best},{self.most}"


def split(profiles: Sequence[Profile], images: int) -> list[int]:
    """The sizes of the runs that answer a batch: each as large as a profile allows.

    Args:
        profiles: One of them begins at batch size 1.
        images: How many there are.
    """
    sizes = []
    while images:
        sizes.append(max(n for p in profiles if (n := min(images, p.most)) >= p.least))
        images -= sizes[-1]
    return sizes


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(shared.BuildOptions):
    """The GPU and the TensorRT to use.

    Attributes:
        device: Which GPU, as CUDA counts them.
        library: "tensorrt" or "tensorrt_rtx"; by default what is installed, the full one first.
    """

    device: int = 0
    library: Name | None = None


@dataclass(frozen=True, kw_only=True)
class LoadOptions(DeviceOptions):
    """The options an engine is opened with.

    Attributes:
        contexts: How many batches run at the same time, each with buffers of its own: for several
            threads, or for a batch that is split.
        cuda_graphs: Record what a batch size launches, and replay it: less work for the CPU.
    """

    contexts: int = 1
    cuda_graphs: bool = True


@dataclass(frozen=True, kw_only=True)
class BuildOptions(DeviceOptions):
    """The options an engine is built with; each but the last two is part of its key.

    Attributes:
        profiles: Batch sizes as "least,best,most"; several are separated by spaces, and a batch
            runs in the narrowest that holds it. By default one of 1, 1 and the bundle's limit:
            kernels are the fastest at the middle size.
        workspace_mb: Most scratch memory of one layer, in MB (10**6 bytes). By default TensorRT's
            own limit, all of the GPU's memory; an eighth, at most 1 GB, on a board that shares it
            with the CPU.
        optimization_level: 0 (quick build) to 5 (tries most); TensorRT's default is 3.
        tf32: Multiply float32 with 10 bits of mantissa, as TensorRT does unless told not to: off
            here, since float32 would not be float32 (1e-3 instead of 1e-6).
        version_compatible: The plan also runs in later TensorRT versions of the same major number.
            It then carries code for the CPU, which is run when it is opened. For `trtexec` and
            Triton: `load` takes engines of the version that is here only.
        hardware_compatibility: The plan also runs on other GPUs: all since Ampere, or those of the
            same compute capability. Costs speed; not on a Jetson. Likewise: `load` takes engines
            that were built on the GPU that is here.
        dla_core: Run on this Deep Learning Accelerator what it can run, and the rest on the GPU;
            which layers that is, is in the engine's record. TensorRT up to 10.7, and 11.4.1 on AGX
            Orin. FP16: it takes INT8 with calibration tables, which our graphs have not.
        compute_capability: Build for another GPU than the one here, such as "SM86"; TensorRT-RTX
            only. Such an engine is for carrying away, and is not found by `load`.
        timing_cache: Keep what was timed for the next build on this device.
        tactic_memory_mb: Most memory for trying kernels, in MB; by default TensorRT's own, half of
            what is free on a board that shares it with the CPU.
    """

    profiles: str | None = None
    workspace_mb: int | None = None
    optimization_level: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatibility: Compatibility = "none"
    dla_core: int | None = None
    compute_capability: str | None = None
    timing_cache: bool = True
    tactic_memory_mb: int | None = None

    def check(self, max_batch: int) -> None:
        """Refuse values that mean nothing.

        Args:
            max_batch: The bundle's limit.

        Raises:
            UsageError: Every value that is wrong, and what is allowed.
        """
        problems = []
        if self.library is not None and self.library not in get_args(Name):
            problems.append(f"library must be {' or '.join(get_args(Name))}, not {self.library!r}")
        for name in ("workspace_mb", "tactic_memory_mb"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name} must be at least 1, not {value}")
        level = self.optimization_level
        if level is not None and level not in LEVELS:
            problems.append(f"optimization_level must lie in 0..{LEVELS[-1]}, not {level}")
        if self.hardware_compatibility not in get_args(Compatibility):
            allowed = ", ".join(get_args(Compatibility))
            asked = self.hardware_compatibility
            problems.append(f"hardware_compatibility must be one of {allowed}, not {asked!r}")
        if self.dla_core is not None and self.dla_core < 0:
            problems.append(f"dla_core must be at least 0, not {self.dla_core}")
        if self.library == "tensorrt_rtx" and self.version_compatible:
            problems.append("TensorRT-RTX has no version_compatible plans; leave it out")
        if self.dla_core is not None and self.hardware_compatibility != "none":
            problems.append("dla_core and hardware_compatibility exclude each other")
        try:
            self.profile_list(max_batch)
        except UsageError as error:
            problems.append(str(error))
        if problems:
            raise UsageError("\n".join(problems))

    def profile_list(self, max_batch: int) -> list[Profile]:
        """The profiles, read; by default one for all batch sizes, the fastest at one image.

        Raises:
            UsageError: They are none, or leave batch size 1 out, without which no batch can be
                split.
        """
        if self.profiles is None:
            # a DLA takes fixed shapes only
            return [Profile(1, 1, max_batch if self.dla_core is None else 1)]
        try:
            profiles = [Profile(*map(int, text.split(","))) for text in self.profiles.split()]
        except (ValueError, TypeError):
            profiles = []
        if not profiles or any(not 1 <= p.least <= p.best <= p.most <= max_batch for p in profiles):
            raise UsageError(
                f"profiles {self.profiles!r}: expected least,best,most with 1 <= least <= best <= "
                f"most <= {max_batch}, the bundle's largest batch; several separated by spaces"
            )
        if self.dla_core is not None and any(p.least != p.most for p in profiles):
            raise UsageError(
                f"profiles {self.profiles!r}: a DLA takes fixed batch sizes only, such as 1,1,1"
            )
        if min(p.least for p in profiles) > 1:
            raise UsageError(f"profiles {self.profiles!r}: one of them must begin at batch size 1")
        return profiles

    def key_parts(self) -> dict[str, str]:
        """The options that were chosen and that an engine depends on, as text."""
        chosen: dict[str, Any] = dataclasses.asdict(self)
        for name in ("engines_dir", "device", "library", "timing_cache", "tactic_memory_mb"):
            del chosen[name]  # found by other parts of the key, or no part of what comes out
        defaults = dataclasses.asdict(BuildOptions())
        return {name: str(value) for name, value in chosen.items() if value != defaults[name]}
