"""Random weights whose logits depend on the image.

The usual initialisation gives logits that are nearly constant: photos differ mostly in their low
frequencies, so all patches look alike after LayerNorm, and biases and positions outweigh the rest.
Here, in closed form and without any data:

* The patch filters are white noise, filtered by the whitener of the classic model of images: an
  AR(1) process along each axis with correlation 0.95 (A. K. Jain, Fundamentals of Digital Image
  Processing, 1989, section 2.9). Patches then differ from each other as much as they can.
* The class token, positions and biases are small, so that they matter but do not dominate.
* The rows of fc2 sum to zero over the hidden units: GELU's positive mean adds no constant.
* The head is scaled for logits with a standard deviation of about _LOGIT_STD.

Only elementwise operations on PCG64 draws, one stream per tensor keyed by seed and name: the
weights depend neither on the order of reading nor on torch, BLAS or the machine.
"""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit_edge.bundle.architecture import Architecture
from vit_edge.checkpoints.tensors import LazyTensor
from vit_edge.models.vit import parameter_shapes

_PIXEL_CORRELATION = 0.95
_PIXEL_STD = 0.5  # of a photo scaled to -1..1
_SMALL = 0.01  # class token and biases, against tokens of about 1
_POSITION = 0.1
_NORM = 0.1  # of LayerNorm weights around 1
_ATTENTION_GAIN = 1.5  # of q and k each: scores with a standard deviation of about 2
_KERNEL_GAIN = 0.35  # the same for Performer, whose features are exp(-|k|^2 / 2) large
_LOGIT_STD = 6.0


def drawn_tensors(architecture: Architecture, seed: int) -> dict[str, LazyTensor]:
    """Every parameter of `parameter_shapes(architecture)`, drawn when it is read."""
    return {
        name: LazyTensor(
            shape, "float32", functools.partial(_draw, name, shape, seed, architecture)
        )
        for name, shape in parameter_shapes(architecture).items()
    }


def _draw(name: str, shape: tuple[int, ...], seed: int, architecture: Architecture) -> Tensor:
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, key])))
    noise = random.standard_normal(shape, dtype=np.float32)
    kind = ".".join(piece for piece in name.split(".")[-2:] if not piece.isdigit())
    if kind == "patch.weight":
        noise = _whitening(noise)
    if kind == "fc2.weight":
        noise -= noise.mean(axis=0, dtype=np.float64).astype(np.float32)
    if kind == "qkv.weight":
        performer = "patch" in name and architecture.tokenizer == "t2t-performer"
        noise[:, : 2 * shape[1] // 3] *= _KERNEL_GAIN if performer else _ATTENTION_GAIN
    noise *= _gain(kind, shape, architecture.depth)
    if "norm" in kind and kind.endswith("weight"):
        noise += 1
    return torch.from_numpy(noise)


def _gain(kind: str, shape: tuple[int, ...], depth: int) -> float:
    """The standard deviation of a parameter."""
    if kind == "patch.weight":  # [D, channels, P, P], for tokens of about 1
        innovation = _PIXEL_STD * (1 - _PIXEL_CORRELATION**2)
        return 1 / (innovation * math.sqrt(shape[1] * shape[2] * shape[3]))
    if kind == "embedding.position":
        return _POSITION
    if "norm" in kind and kind.endswith("weight"):
        return _NORM
    if kind.endswith(".kernel"):  # [1, dim, m]: T2T-ViT's features are sqrt(m) long
        return math.sqrt(shape[2] / shape[1])
    if not kind.endswith("weight"):
        return _SMALL
    keeps_scale = 1 / math.sqrt(shape[0])  # weights are [in, out]
    if kind in ("out.weight", "fc2.weight"):  # the last of a residual branch, of 2 x depth
        return keeps_scale / math.sqrt(depth)
    return keeps_scale * _LOGIT_STD if kind == "head.weight" else keeps_scale


def _whitening(filters: NDArray[np.float32]) -> NDArray[np.float32]:
    """Apply 1 - rho S along the rows and the columns of filters [D, channels, P, P]."""
    for axis in (2, 3):
        shifted = np.roll(filters, 1, axis)
        np.moveaxis(shifted, axis, 0)[0] = 0
        filters = filters - np.float32(_PIXEL_CORRELATION) * shifted
    return filters
