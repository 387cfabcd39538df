"""Random weights that behave like trained ones: their logits depend on the image."""

from __future__ import annotations

from pathlib import Path

from vit_edge.checkpoints import Checkpoint, Request
from vit_edge.checkpoints.assemble import Foreign, checkpoint_from
from vit_edge.checkpoints.draw import drawn_tensors
from vit_edge.checkpoints.labels import default_labels
from vit_edge.checkpoints.request import refuse_key, refuse_revision
from vit_edge.checkpoints.tensors import Rule
from vit_edge.errors import UsageError


def recognises(path: Path) -> bool:
    """Never: random weights must be asked for by name."""
    return False


def load(reference: str, request: Request) -> Checkpoint:
    """Draw the weights of a variant.

    Args:
        reference: The seed, an integer from 0 on. Equal seeds give equal weights everywhere.
        request: Must name a variant.

    Raises:
        UsageError: No seed, no variant, or a revision.
    """
    if not (reference.isascii() and reference.isdigit()):
        raise UsageError(f"seeded:N needs a seed, an integer such as 0; got {reference!r}")
    row = request.variant
    if row is None:
        raise UsageError("seeded weights need a variant: --variant NAME")
    refuse_revision(request.revision, f"seeded:{reference}")
    refuse_key(request.key, f"seeded:{reference}")
    tensors = drawn_tensors(row.architecture, int(reference))
    foreign = Foreign(
        source=f"seeded:{int(reference)}",
        where=f"seeded:{int(reference)}",
        name=row.name,
        architecture=row.architecture,
        rules=tuple(Rule(name, tensor.shape, name) for name, tensor in tensors.items()),
        tensors=tensors,
        labels=default_labels(row.num_classes),
        preprocessing=row.preprocessing_at,
        position_method="bicubic",
    )
    return checkpoint_from(foreign, request)
