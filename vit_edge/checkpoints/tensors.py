"""Strict, frugal reading: every foreign tensor goes to one place in ours, one at a time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from vit_edge.bundle.architecture import Architecture
from vit_edge.checkpoints.text import one_line
from vit_edge.errors import CheckpointError
from vit_edge.models.vit import parameter_shapes

log = logging.getLogger(__name__)

_SHOWN = 20  # names of one kind in an error; a wrong prefix would otherwise print hundreds


@dataclass(frozen=True)
class LazyTensor:
    """A tensor of a file, not read yet."""

    shape: tuple[int, ...]
    dtype: str  # as the file calls it; "float32" needs no conversion
    read: Callable[[], Tensor]


Layout = Callable[[Tensor], Tensor]


def tensor_from_array(array: NDArray[Any]) -> Tensor:
    """Take an array of NumPy's into torch.

    torch has neither another byte order than this machine's nor floats longer than float64.
    """
    kind = np.dtype(np.float64) if array.dtype.char == "g" else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.ascontiguousarray(array, kind))


def as_stored(tensor: Tensor) -> Tensor:
    """The layout of a tensor that needs no change."""
    return tensor


def transposed(tensor: Tensor) -> Tensor:
    """[out, in] of torch to our [in, out]."""
    return tensor.t()


def of_convolution(tensor: Tensor) -> Tensor:
    """[out, in, 1, 1] of a convolution of single patches to our [in, out]."""
    return tensor.flatten(1).t()


@dataclass(frozen=True)
class Rule:
    """A foreign tensor goes to `ours`, or to one of `parts` slices of its last axis.

    `scale` names a foreign tensor, a factor for each channel of the last axis: layer scale
    (arXiv:2103.17239) is folded into the Linear before it. The product is rounded once.
    """

    theirs: str
    shape: tuple[int, ...]  # of the foreign tensor
    ours: str
    layout: Layout = as_stored
    part: int = 0
    parts: int = 1
    scale: str | None = None
    first_row: int | None = None  # in the second axis of `ours`, which holds several tensors' rows


def linear_rules(
    theirs: str, ours: str, inputs: int, outputs: int, scale: str | None = None
) -> list[Rule]:
    """The rules of a torch Linear with bias; `scale`: see Rule."""
    return [
        Rule(f"{theirs}.weight", (outputs, inputs), f"{ours}.weight", transposed, scale=scale),
        Rule(f"{theirs}.bias", (outputs,), f"{ours}.bias", scale=scale),
    ]


def zeros(*shape: int) -> LazyTensor:
    """Stand in for a bias that the source does not have."""
    return LazyTensor(shape, "float32", lambda: torch.zeros(shape))


def averaged_heads(first: LazyTensor, second: LazyTensor) -> LazyTensor:
    """One head for two tokens side by side that answers the mean of both heads (DeiT).

    Args:
        first: The weight [classes, D] or bias [classes] of the class token's head.
        second: That of the distillation token's.

    Returns:
        [classes, 2 D] or [classes]; halving is exact, the sum of biases is rounded once.
    """
    if len(first.shape) == 1:
        return LazyTensor(
            first.shape,
            "float32",
            lambda: ((first.read().double() + second.read().double()) / 2).float(),
        )
    shape = (first.shape[0], first.shape[1] + second.shape[1])
    return LazyTensor(
        shape, "float32", lambda: torch.cat([first.read(), second.read()], dim=1).float() / 2
    )


def with_one_head(
    stored: Mapping[str, LazyTensor], first: str, second: str, head: str
) -> dict[str, LazyTensor]:
    """Put one head, called `head`, in the place of the two whose answers DeiT averages."""
    merged = dict(stored)
    for leaf in ("weight", "bias"):
        if {f"{first}.{leaf}", f"{second}.{leaf}"} <= stored.keys():
            heads = merged.pop(f"{first}.{leaf}"), merged.pop(f"{second}.{leaf}")
            merged[f"{head}.{leaf}"] = averaged_heads(*heads)
    return merged


def norm_rules(theirs: str, ours: str, width: int) -> list[Rule]:
    """The rules of a torch LayerNorm."""
    return [Rule(f"{theirs}.{leaf}", (width,), f"{ours}.{leaf}") for leaf in ("weight", "bias")]


def prefix_rules(
    names: Iterable[str], stored: Mapping[str, LazyTensor], a: Architecture
) -> list[Rule]:
    """The rules of what stands in front of the patches; its rows become one tensor."""
    rules, start = [], 0
    for name in names:
        if name in stored:
            rows = prefix_rows(name, stored)
            shape = (1, rows, a.width)
            rules.append(Rule(name, shape, "embedding.cls_token", first_row=start))
            start += rows
    return rules


def prefix_rows(name: str, stored: Mapping[str, LazyTensor]) -> int:
    """Count the tokens that a tensor in front of the patches holds: registers alone are several."""
    if name not in stored:
        return 0
    shape = stored[name].shape
    return shape[1] if "reg" in name.rpartition(".")[2] and len(shape) == 3 else 1


def position_rule(name: str, stored: Mapping[str, LazyTensor], a: Architecture) -> Rule:
    """The rule of the positions.

    What stands in front of the patches may have none (timm's no_embed_class), which is a position
    of zero, or its class token alone has one (DINOv2 with registers).
    """
    patches = a.tokens - a.prefix_tokens
    shape = stored[name].shape if name in stored else ()
    rows = shape[1] if len(shape) == 3 else a.tokens
    first = rows - patches if rows - patches in (0, 1) else a.prefix_tokens

    def widened(position: Tensor) -> Tensor:
        front = functional.pad(position[:, :first], (0, 0, 0, a.prefix_tokens - first))
        return torch.cat([front, position[:, first:]], dim=1)

    layout = as_stored if first == a.prefix_tokens else widened
    return Rule(name, (1, patches + first, a.width), "embedding.position", layout)


def shape_of(
    name: str, axes: int, stored: Mapping[str, LazyTensor], where: str, otherwise: str
) -> tuple[int, ...]:
    """Return the shape of a tensor that must be there and have so many axes.

    Raises:
        CheckpointError: It is not so; the message ends in `otherwise`, what follows from that.
    """
    shape = stored[name].shape if name in stored else None
    if shape is None or len(shape) != axes:
        shown = "missing" if shape is None else f"of shape {list(shape)}, expected {axes} axes"
        raise CheckpointError(f"{where}: {name} is {shown}: {otherwise}")
    return shape


def square_side(patches: int) -> int | None:
    """The patches along one side of a square grid of so many; None if there is no such grid."""
    side = math.isqrt(max(patches, 0))
    return side if side and side * side == patches else None


def read_weights(
    architecture: Architecture,
    rules: Iterable[Rule],
    stored: Mapping[str, LazyTensor],
    where: str,
    ignored: Collection[str] = (),
) -> dict[str, Tensor]:
    """Read every tensor into float32 of our names and layouts.

    At any time one foreign tensor is alive beside the result.

    Args:
        architecture: The shape to fill.
        rules: One per foreign tensor; together they fill `parameter_shapes(architecture)`.
        stored: What the file has.
        where: The path to name in errors.
        ignored: Foreign names that are known to play no part in classification.

    Raises:
        CheckpointError: Keys are missing, left over or misshaped (all of them are listed), or a
            tensor holds NaN or infinities.
    """
    by_name = {rule.theirs: rule for rule in rules}
    check_keys(by_name.values(), stored, where, ignored)
    shapes = parameter_shapes(architecture)
    unfilled = sorted(shapes.keys() - {rule.ours for rule in by_name.values()})
    if unfilled:
        raise AssertionError(f"no rule fills {unfilled}")
    converted = sorted({stored[name].dtype for name in by_name} - {"float32"})
    if converted:
        log.info("%s: %s weights are converted to float32", where, ", ".join(converted))
    weights = {name: torch.empty(shape, dtype=torch.float32) for name, shape in shapes.items()}
    # a bar on a terminal, on stderr; nothing in a log
    for name, rule in tqdm(by_name.items(), "weights", unit="tensor", leave=False, disable=None):
        destination = weights[rule.ours].chunk(rule.parts, dim=-1)[rule.part]
        if rule.first_row is not None:
            destination = destination[:, rule.first_row :][:, : rule.shape[1]]
        tensor = rule.layout(stored[name].read())
        if rule.scale is not None:
            tensor = tensor.double() * stored[rule.scale].read().double()
        destination.copy_(tensor)
        if not torch.isfinite(destination).all():
            raise CheckpointError(
                f"{where}: {name} holds NaN or infinite values; such a checkpoint cannot be "
                "exported. Save it again from a training state that had not diverged."
            )
    return weights


def check_keys(
    rules: Collection[Rule],
    stored: Mapping[str, LazyTensor],
    where: str,
    ignored: Collection[str],
) -> None:
    """Account for every key on both sides.

    Raises:
        CheckpointError: Keys are missing, left over or misshaped; all of them are listed.
    """
    expected = {rule.theirs: rule.shape for rule in rules}
    expected |= {rule.scale: rule.shape[:1] for rule in rules if rule.scale}
    skipped = sorted(stored.keys() & set(ignored) - expected.keys())
    if skipped:
        log.info("%s: not needed for classification: %s", where, ", ".join(skipped))
    problems = _listed("missing", (f"{n} {list(expected[n])}" for n in expected.keys() - stored))
    extra = stored.keys() - expected.keys() - set(ignored)
    problems += _listed("not understood", (f"{n} {list(stored[n].shape)}" for n in extra))
    problems += _listed(
        "of another shape",
        (
            f"{n}: found {list(stored[n].shape)}, expected {list(expected[n])}"
            for n in expected.keys() & stored.keys()
            if stored[n].shape != expected[n]
        ),
    )
    if problems:
        raise CheckpointError(
            f"{where}: the tensors do not fit the model:\n  " + "\n  ".join(problems)
        )


def _listed(what: str, entries: Iterable[str]) -> list[str]:
    """One sorted, shortened list of a diff, or nothing."""
    lines = sorted(map(one_line, entries))
    if not lines:
        return []
    rest = [f"  ... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return [f"{what} ({len(lines)}):", *(f"  {line}" for line in lines[:_SHOWN]), *rest]
