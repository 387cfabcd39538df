"""Foreign checkpoints in, our names out.

A source is one module of this folder; its file name is its name on the command line. It exports

    recognises(path: Path) -> bool
        Whether a bare path holds this kind of checkpoint, by what is in it.
    load(reference: str, request: Request) -> Checkpoint
        Read it. `reference` is what stands behind the colon of SOURCE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_edge.manifest import Architecture, CheckpointRecord, PositionMethod, Preprocessing
from vit_edge.variants import Variant

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Request:
    """What the user asked of a checkpoint beside where it is."""

    variant: Variant | None = None  # None: found out from the checkpoint
    image_hw: tuple[int, int] | None = None  # None: the checkpoint's own size
    position_method: PositionMethod | None = None  # None: the source's own
    revision: str | None = None  # of a hub repository


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in our own terms, ready for models.vit."""

    variant: str  # the row's name, or the folder's where the shape is in no row
    architecture: Architecture
    weights: Mapping[str, Tensor]  # float32, exactly models.vit.parameter_shapes(architecture)
    labels: tuple[str, ...]  # one per class; empty without a head
    preprocessing: Preprocessing
    record: CheckpointRecord
