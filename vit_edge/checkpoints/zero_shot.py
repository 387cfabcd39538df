"""`--text-embeddings FILE.npy`: CLIP's zero-shot head, one embedded text a class."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit_edge.bundle.architecture import LARGEST_SCALE, Architecture
from vit_edge.checkpoints.fields import MAX_CLASSES
from vit_edge.checkpoints.text import refuse_pointer
from vit_edge.errors import CheckpointError, UsageError

log = logging.getLogger(__name__)

USUAL_SCALE = 100.0  # where CLIP's training clips its own, and where it ends (arXiv:2103.00020)
_HEAD, _BIAS, _PROJECTION = "readout.head.weight", "readout.head.bias", "readout.projection.weight"
_LENGTHS = (1e-9, 1e9)  # of an embedding: its squares stay far inside float32
_SHOWN = 5
Rows = NDArray[np.float32] | NDArray[np.float64]


def embeddings_of(embeddings: Path | None, labels: Path | None, scale: float | None) -> Rows | None:
    """Read what was asked for, before a weight is; None: no zero-shot head.

    Raises:
        UsageError: Embeddings without labels, a scale without embeddings, or one that is none.
        CheckpointError: As read_embeddings.
    """
    if scale is not None and embeddings is None:
        raise UsageError("--logit-scale is for a head of --text-embeddings; give them, too")
    if scale is not None and not 0 < scale <= LARGEST_SCALE:
        raise UsageError(f"--logit-scale must lie above 0 and up to {LARGEST_SCALE:g}, not {scale}")
    if embeddings is not None and labels is None:
        raise UsageError(
            "--text-embeddings needs --labels FILE: the names of its rows, in their order"
        )
    return None if embeddings is None else read_embeddings(embeddings)


def with_text_head(
    architecture: Architecture,
    weights: dict[str, Tensor],
    rows: Rows,
    scale: float | None,
    where: str,
) -> Architecture:
    """Give a model a head that compares its features with texts, in `weights`.

    Args:
        architecture: The model as it is; a head that it has gives way.
        weights: Its weights; changed.
        rows: Embedded texts [classes, D], of any length.
        scale: Of the cosines: the user's or the checkpoint's. None: 100 is assumed, and said.
        where: The checkpoint, to name in errors.

    Raises:
        CheckpointError: They are those of another model.
    """
    architecture = _without_head(architecture, weights, rows.shape[1], where)
    if rows.shape[1] != architecture.features_dim:
        turned = rows.shape[0] == architecture.features_dim
        hint = "; they seem to be transposed" if turned else ""
        raise CheckpointError(
            f"--text-embeddings: {rows.shape[0]} rows of {rows.shape[1]} values, but the features "
            f"of {where} have {architecture.features_dim}{hint}. Make the embeddings with the text "
            "half of the same checkpoint: one row a class"
        )
    if scale is None:
        scale = USUAL_SCALE
        log.warning(
            "%s: holds no logit_scale: %g is assumed, with which CLIP's training ends. "
            "--logit-scale says it", where, scale,
        )  # fmt: skip
    weights[_HEAD] = torch.from_numpy(rows.T.copy())
    return dataclasses.replace(architecture, num_classes=len(rows), logit_scale=scale)


def read_embeddings(path: Path) -> Rows:
    """Read [classes, D]: float64 where the file has it, for the reference alone, or else float32.

    Raises:
        CheckpointError: No .npy of two axes of numbers; a row holds NaN, or has no direction.
    """
    array = _open(path)
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise CheckpointError(
            f"{path}: found {array.dtype}{list(array.shape)}, expected floating-point numbers "
            "[classes, width]: one row a class"
        )
    if len(array) > MAX_CLASSES:
        raise CheckpointError(f"{path}: {len(array)} rows; at most {MAX_CLASSES} are supported")
    with np.errstate(over="ignore", invalid="ignore"):
        rows: Rows = np.array(array, np.float64 if array.dtype.itemsize > 4 else np.float32)
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    for bad, what in (
        (~np.isfinite(rows).all(axis=1), "hold NaN or infinite values"),
        (lengths == 0, "are all zeros, which is no direction"),
        ((lengths < _LENGTHS[0]) | (lengths > _LENGTHS[1]), "have lengths of no embedding"),
    ):
        if bad.any():
            shown = ", ".join(map(str, np.flatnonzero(bad)[:_SHOWN]))
            more = f" and {bad.sum() - _SHOWN} more" if bad.sum() > _SHOWN else ""
            raise CheckpointError(f"{path}: rows {shown}{more} (counted from 0) {what}")
    return rows


def _open(path: Path) -> NDArray[Any]:
    """Map a .npy; of data alone, never of code."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; --text-embeddings needs a .npy")
    refuse_pointer(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as .npy of numbers: {error}. Write it with "
            "numpy.save(FILE, embeddings), an array float32[classes, width]"
        ) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise CheckpointError(f"{path}: an archive of arrays; save one array with numpy.save")
    return array


def _without_head(
    architecture: Architecture, weights: dict[str, Tensor], width: int, where: str
) -> Architecture:
    """Take a head off, and what stands before it alone.

    timm keeps CLIP's projection as a head without a bias: of embeddings as wide, it is one.
    """
    classes = architecture.num_classes
    weights.pop("readout.pre_logits.weight", None)
    weights.pop("readout.pre_logits.bias", None)
    bare = dataclasses.replace(architecture, num_classes=0, pre_logits_dim=None, logit_scale=None)
    if not classes:
        return bare
    head, bias = weights.pop(_HEAD), weights.pop(_BIAS, None)
    plain = architecture.projection_dim is None and architecture.pre_logits_dim is None
    if plain and classes == width and bias is not None and not bias.any():
        log.info("%s: its head without a bias is taken for CLIP's projection", where)
        weights[_PROJECTION] = head
        return dataclasses.replace(bare, projection_dim=width)
    log.warning("%s: its head of %d classes gives way to the text embeddings", where, classes)
    return bare
