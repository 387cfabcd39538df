"""Reference models with random weights."""

from __future__ import annotations

import numpy as np
import torch

from vit_edge.bundle.architecture import Architecture
from vit_edge.models.vit import ViT, parameter_shapes, vit_from_weights


def random_vit(architecture: Architecture, seed: int = 0, scale: float = 0.1) -> ViT:
    """Weights of a normal distribution."""
    rng = np.random.default_rng(seed)
    weights = {
        name: torch.from_numpy(rng.standard_normal(shape, np.float32) * np.float32(scale))
        for name, shape in parameter_shapes(architecture).items()
    }
    return vit_from_weights(architecture, weights)
