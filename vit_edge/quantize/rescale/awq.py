"""Scaling that protects the weights that matter: AWQ (arXiv:2306.00978).

Weights that meet strong inputs are made larger, and the inputs smaller, before rounding:

    s_j = rms(x_j)^exponent          (x / s) (s W) = x W

AWQ takes the mean of |x_j|. The root mean square serves as well, and comes with the covariance,
which gives the true error of the output for each exponent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_edge.quantize.rescale.folding import Group
from vit_edge.quantize.rounding.moments import Moment

EXPONENTS = tuple(round(0.1 * step, 1) for step in range(11))  # AWQ searches 20 of 0..1


class Choice(NamedTuple):
    """The scale of one group."""

    exponent: float
    scale: NDArray[np.float64]  # [C]
    error: float  # relative to no rescaling


# (weight float32[in, out], moment of the input) -> mean square error of the product
Error = Callable[[NDArray[np.float32], Moment], float]


def choose(group: Group, moment: Moment, error: Error) -> Choice:
    """Find the exponent that leaves the least error.

    Args:
        group: Its weights are read, not changed.
        moment: Of what enters its Linears.
        error: What rounding does to a Linear; the sum over the group's Linears is minimised.
    """
    weights = [linear.matrix().astype(np.float32) for linear in group.linears]
    strength = np.sqrt(moment.mean_square)
    candidates = []
    for exponent in EXPONENTS:
        scale = scale_of(strength, exponent)
        moved = moment.rescale(scale)
        scaled = (np.multiply(weight, scale[:, None], dtype=np.float32) for weight in weights)
        total = sum(error(weight, moved) for weight in scaled)
        candidates.append((total, exponent, scale))
    least, exponent, scale = min(candidates, key=lambda candidate: candidate[0])
    return Choice(exponent, scale, least / candidates[0][0] if candidates[0][0] > 0 else 1.0)


def scale_of(strength: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    """float64[C] with a geometric mean of 1; channels that are always zero count as average ones.

    Args:
        strength: float64[C], the root mean square of each channel.
        exponent: 0 leaves all as it is, 1 makes all channels equally strong.
    """
    alive = strength > strength.max() * 1e-6
    if not alive.any():
        return np.ones_like(strength)
    logarithm = np.log(strength, where=alive, out=np.zeros_like(strength))
    logarithm = np.where(alive, logarithm - logarithm[alive].mean(), 0.0)
    return np.asarray(np.exp(exponent * logarithm))
