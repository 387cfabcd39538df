"""Rescaling and rounding one Linear at a time, by what is known of its input."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vit_edge.quantize.formats.blocks import BlockFormat, BlockWeight, rounded
from vit_edge.quantize.linears import Linear, constant
from vit_edge.quantize.rescale.awq import Choice, choose
from vit_edge.quantize.rescale.folding import Group
from vit_edge.quantize.rounding.gptq import gptq
from vit_edge.quantize.rounding.moments import Moment

Rounding = Literal["gptq", "nearest"]


@dataclass(frozen=True)
class Rounded:
    """A Linear, rounded."""

    weight: BlockWeight
    bias: NDArray[np.float32] | None  # corrected; None where there is none to correct
    error: float | None  # of what comes out: mean square, relative to its variance


def rescale(
    group: Group, seen: dict[str, Moment], kind: BlockFormat, *, correct_bias: bool
) -> dict[str, Choice]:
    """Choose and fold the scale of a group; the moments of its inputs follow.

    Args:
        group: Its weights are changed, exactly.
        seen: Moments by the name of the value; those of the group's inputs are replaced.
        kind: The integers, and how long a block is.
        correct_bias: Whether biases will take the mean of what is lost.

    Returns:
        The choice, by the name of each of the group's Linears.
    """
    corrected = correct_bias and all(linear.bias is not None for linear in group.linears)

    def error(weight: NDArray[np.float32], moment: Moment) -> float:
        wrong = weight - kind.nearest(weight, kind.covering(weight))
        of_weights = output_error(wrong, moment.covariance if corrected else moment.second)
        return of_weights + input_noise(weight, moment, kind.block)

    choice = choose(group, seen[str(group.linears[0].undivided.name)], error)
    group.fold(choice.scale, np.zeros_like(choice.scale))
    for name in {str(linear.undivided.name) for linear in group.linears}:
        seen[name] = seen[name].rescale(choice.scale)
    return {linear.name: choice for linear in group.linears}


def widen(linear: Linear, narrow: BlockFormat) -> Rounded:
    """Round a Linear's weights to 8 bits in the same blocks, each by itself: enough at this width.

    Args:
        linear: Its weights are read, not changed.
        narrow: The format of fewer bits.
    """
    weight, kind = linear.matrix().astype(np.float32), dataclasses.replace(narrow, bits=8)
    return Rounded(rounded(weight, kind.covering(weight), kind), bias=None, error=None)


def output_error(wrong: NDArray[np.float32], covariance: NDArray[np.float32]) -> float:
    """The mean square of x E summed over the outputs: tr(E^T C E), for E float32[in, out]."""
    return float(np.vdot(wrong, covariance @ wrong))


def input_noise(weight: NDArray[np.float32], moment: Moment, block: int) -> float:
    """Estimate what int8 inputs add to `output_error`: MatMulNBits rounds each token's by blocks.

    A block's step is its largest |x| / 127, the mean square of its rounding a twelfth of the
    step's. The mean of the largest x^2 is taken as the Euclidean norm of the channels' mean
    squares: exact where one channel stands out, and 5.7 variances for 32 normal channels alike.

    Args:
        weight: float32[in, out].
        moment: Of the input.
        block: Channels that share a step.
    """
    starts = range(0, len(weight), block)
    largest = np.sqrt(np.add.reduceat(moment.mean_square**2, starts))
    gain = np.add.reduceat(np.square(weight, dtype=np.float64).sum(axis=1), starts)
    return float(largest @ gain) / (12 * 127**2)


def round_linear(
    linear: Linear, moment: Moment, kind: BlockFormat, rounding: Rounding, *, correct_bias: bool
) -> Rounded:
    """Round one Linear. Where its bias takes the mean, only the covariance counts.

    Args:
        linear: Its weights are read, not changed.
        moment: Of its input.
        kind: The integers, and how long a block is.
        rounding: How each weight finds its level.
        correct_bias: Whether the bias takes the mean of what is lost.
    """
    weight = np.ascontiguousarray(linear.matrix(), np.float32)
    old_bias = linear.bias if correct_bias else None
    covariance = moment.second if old_bias is None else moment.covariance
    grid = kind.fitting(weight, np.diag(covariance))
    if rounding == "gptq":
        blocks = gptq(weight, covariance, grid, kind)
    else:
        blocks = rounded(weight, grid, kind)
    wrong = weight - blocks.dequantize()
    bias = None
    if old_bias is not None:
        bias = (constant(old_bias) + moment.mean @ wrong).astype(np.float32)
    exact = output_error(weight, moment.covariance)
    return Rounded(blocks, bias, output_error(wrong, covariance) / max(exact, 1e-30))
