"""Choosing how activations are rescaled before they are rounded.

The scale moves difficulty from activations to weights (SmoothQuant, arXiv:2211.10438, Eq. 4):

    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)

alpha is searched for each group by the error of what comes out of its Linears, and so is whether a
shift of each channel's middle to zero helps (arXiv:2304.09145). The scales that are tried come from
one half of the calibration images, the error from the other. A channel that is scaled to the full
range has nothing left for larger values, and only other images show what that costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_edge.quantize.formats.integers import Format, quantized_weight
from vit_edge.quantize.rescale.folding import Group
from vit_edge.quantize.rounding.samples import Sample

ALPHAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

# (sample of the input, weight float32[in, out]) -> squared error of the product, per row
Error = Callable[[Sample, NDArray[np.float32]], float]


class Choice(NamedTuple):
    """The scale and shift of one group."""

    alpha: float | None  # None: not at all
    shifted: bool
    scale: NDArray[np.float64]  # [C]
    shift: NDArray[np.float64]  # [C]
    error: float  # relative to no rescaling
    by_row: bool = False  # each row is divided by its own maximum besides


def written(choice: Choice | None) -> str:
    """A choice as a cell of a table."""
    alpha = "-" if choice is None or choice.alpha is None else f"{choice.alpha:.2f}"
    if choice is None:
        return alpha
    return alpha + " shifted" * choice.shifted + " rows" * choice.by_row


def rounding_error(kind: Format, largest: int, left: float = 1.0) -> Error:
    """Measure the loss when an input is rounded over its whole range, and its weights by output.

    Args:
        kind: Of the input.
        largest: Of the weights; see `quantized_weight`.
        left: How much of each weight's error counts: less than 1 where weights make up for each
            other afterwards, so that more difficulty may be moved to them.
    """

    def error(sample: Sample, weight: NDArray[np.float32]) -> float:
        ends = float(sample.fit_low.min()), float(sample.fit_high.max())
        scale_and_zero = kind.parameters(*ends)
        rounded = kind.fake(sample.rows, *scale_and_zero)
        rounded = rounded @ (
            weight + np.float32(left) * (quantized_weight(weight, largest).dequantize() - weight)
        )
        rounded -= sample.rows @ weight
        return sample.squared(rounded)

    return error


def choose(group: Group, sample: Sample, error: Error, alphas: Sequence[float] = ALPHAS) -> Choice:
    """Find the scale and shift that leave the least error.

    Args:
        group: Its weights are read, not changed.
        sample: Of what enters its Linears.
        error: What rounding does to a Linear; the sum over the group's Linears is minimised.
        alphas: To be tried, beside leaving the group as it is.
    """
    weights = [linear.matrix().astype(np.float32) for linear in group.linears]
    largest_weight = np.max([np.abs(w).max(axis=1) for w in weights], axis=0).astype(np.float64)
    unscaled = sum(error(sample, weight) for weight in weights)
    ones, zeros = np.ones(len(sample.low)), np.zeros(len(sample.low))
    best = Choice(None, False, ones, zeros, 1.0)
    for shifted in [False, True] if group.can_shift else [False]:
        shift, reach = _centre(sample.fit_low, sample.fit_high, shifted)
        for alpha in alphas:
            scale = smoothing_scale(reach, largest_weight, alpha)
            moved = sample.rescale(scale, shift)
            total = sum(
                error(moved, (weight * scale[:, None]).astype(np.float32)) for weight in weights
            )
            relative = total / unscaled if unscaled else 1.0
            if relative < best.error:
                best = Choice(alpha, shifted, scale, shift, relative)
    if best.alpha is None:
        return best
    shift, reach = _centre(sample.low, sample.high, best.shifted)  # now from all images
    return best._replace(scale=smoothing_scale(reach, largest_weight, best.alpha), shift=shift)


def _centre(
    low: NDArray[np.float32], high: NDArray[np.float32], shifted: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The shift of each channel, and how far the channel reaches from there."""
    wide_low, wide_high = low.astype(np.float64), high.astype(np.float64)
    shift = (wide_low + wide_high) / 2 if shifted else np.zeros(len(low))
    return shift, np.maximum(np.abs(wide_low - shift), np.abs(wide_high - shift))


def smoothing_scale(
    reach: NDArray[np.floating], largest_weight: NDArray[np.floating], alpha: float
) -> NDArray[np.float64]:
    """SmoothQuant's scale of each channel; 1 for channels that are always zero.

    Args:
        reach: float[C], the largest |x| of each channel.
        largest_weight: float[C], the largest |w| that meets it.
        alpha: 0 leaves the difficulty in the activations, 1 moves all of it to the weights.
    """
    dead = (reach < 1e-9) | (largest_weight < 1e-9)
    x, w = np.where(dead, 1, reach), np.where(dead, 1, largest_weight)
    scale = x.astype(np.float64) ** alpha / w.astype(np.float64) ** (1 - alpha)
    scale /= np.exp(np.log(scale[~dead]).mean()) if (~dead).any() else 1.0
    return np.where(dead, 1.0, scale)
