"""Answers that others are compared with: the model in float64, one block in float64 at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vit_edge.models.merging import Tokens
from vit_edge.models.vit import Outputs, ViT

ReferenceDtype = Literal["float64", "float32"]


def reference_outputs(vit: ViT, pixels: NDArray[np.float32], dtype: ReferenceDtype) -> Outputs:
    """Run the model in `dtype` with at most one module's weights converted at any moment.

    Args:
        vit: The model; its float32 weights are left as they are.
        pixels: float32[N, channels, H, W].
        dtype: float64 leaves rounding to the compared side alone.

    Returns:
        The outputs in `dtype`.
    """
    kind = torch.float64 if dtype == "float64" else torch.float32
    with torch.inference_mode():
        x = torch.from_numpy(np.ascontiguousarray(pixels)).to(kind)
        with converted(vit.embedding, kind):
            tokens = Tokens(vit.embedding(x))
        for block in vit.blocks:
            with converted(block, kind):
                tokens = block(tokens)
        with converted(vit.readout, kind):
            outputs: Outputs = vit.readout(tokens)
    return outputs


@contextlib.contextmanager
def converted(module: nn.Module, kind: torch.dtype) -> Iterator[None]:
    """Let a module compute in another dtype for the length of the block."""
    originals: dict[nn.Parameter, Tensor] = {p: p.data for p in module.parameters()}
    try:
        for parameter, data in originals.items():
            parameter.data = data.to(kind)
        yield
    finally:
        for parameter, data in originals.items():
            parameter.data = data
