"""CLIP's two halves: the text half is left out, but for the scale of its cosines."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

from vit_edge.bundle.architecture import LARGEST_SCALE
from vit_edge.checkpoints.tensors import LazyTensor
from vit_edge.errors import CheckpointError

log = logging.getLogger(__name__)


def left_out(
    stored: Mapping[str, LazyTensor], text: Sequence[str], where: str
) -> dict[str, LazyTensor]:
    """Leave the text half's tensors out, and say so once.

    Args:
        stored: What the file has.
        text: What the names of the text half begin with.
        where: The path to name in the log.
    """
    kept = {name: tensor for name, tensor in stored.items() if not name.startswith(tuple(text))}
    parts = sorted({name.split(".")[0] for name in stored.keys() - kept.keys()})
    if parts:
        count = len(stored) - len(kept)
        log.info("%s: %d tensors left out, the text half: %s", where, count, ", ".join(parts))
    return kept


def scale_of(stored: Mapping[str, LazyTensor], where: str) -> float | None:
    """The factor of cosines that a CLIP was trained with, exp(logit_scale); None: it has none.

    Raises:
        CheckpointError: It is not one number, or none that a scale can be.
    """
    if "logit_scale" not in stored:
        return None
    tensor = stored["logit_scale"]
    if math.prod(tensor.shape) != 1:
        shape = list(tensor.shape)
        raise CheckpointError(f"{where}: logit_scale: expected one number, found shape {shape}")
    logarithm = float(tensor.read())
    if not logarithm <= math.log(LARGEST_SCALE) or math.exp(logarithm) == 0:
        raise CheckpointError(f"{where}: logit_scale: {logarithm} is the logarithm of no scale")
    return math.exp(logarithm)
