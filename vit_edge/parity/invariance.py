"""An image's answer must not depend on when it is asked for, nor on what else is in its batch.

Compared are a candidate's answers with its own: no reference is needed, and quantization noise does
not hide a leak.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_edge.bundle.manifest import Manifest
from vit_edge.images.preprocess import input_from_resized
from vit_edge.parity.compare import Reference, Runs
from vit_edge.parity.limits import Limit
from vit_edge.parity.result import Check

# int8-dynamic has no limit between batches, since its scales are those of the batch; but the same
# images have the same scales, and only float32 sums may run in another order.
ROUNDING = 1e-5

Answers = Mapping[str, NDArray[np.float32]]


def check_invariance(
    backend: Runs, reference: Reference, manifest: Manifest, limit: Limit
) -> list[Check]:
    """Run the same images again, and in other places of other batches.

    Args:
        backend: The candidate.
        reference: Its images are used, its answers not.
        manifest: How the input follows from them; the largest batch is tried.
        limit: What the precision allows between batches.
    """
    allowed = allowed_between_runs(limit)
    size = manifest.max_batch
    indices = [index % len(reference) for index in range(size)]
    batch = input_from_resized(reference.images(indices), manifest)
    first = _kept(backend.run(batch))
    again = backend.run(batch)
    checks = [_check("repeatability", "the same batch twice", first, again, allowed, size)]
    if size > 1:
        turned = backend.run(np.ascontiguousarray(batch[::-1]))
        moved = {name: values[::-1] for name, values in turned.items()}
        checks.append(
            _check("placement", "the same images in reverse order", first, moved, allowed, size)
        )
    return checks


def allowed_between_runs(limit: Limit) -> float:
    """How far two answers to one image may lie apart, of their largest value."""
    bounds = limit.logits.as_dict()
    return bounds.get("batch_relative", bounds.get("relative", ROUNDING))


def largest_relative(first: Answers, second: Answers) -> float:
    """The largest difference of two answers, of the largest value of the output that it is in."""
    return max((_relative(first[output], second[output]) for output in first), default=math.inf)


def _kept(answers: Answers) -> Answers:
    """A backend that reuses its buffers must not overwrite what it is compared with."""
    return {name: values.copy() for name, values in answers.items()}


def _check(
    name: str, words: str, first: Answers, second: Answers, allowed: float, size: int
) -> Check:
    worst = largest_relative(first, second)
    difference = f"{words}, batch {size}: differs by {worst:.2g} of the largest value"
    return Check(name, worst <= allowed, f"{difference}, allowed {allowed:.2g}")


def _relative(left: NDArray[Any], right: NDArray[Any]) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(left.astype(np.float64) - right.astype(np.float64))
        scale = float(np.abs(left).max(initial=0))
    same_place = ~np.isfinite(left) & ~np.isfinite(right)  # judged elsewhere
    worst = float(np.where(same_place, 0.0, difference).max(initial=0))
    if not math.isfinite(worst) or (worst and not scale):
        return math.inf
    return worst / scale if worst else 0.0


def failed(checks: Sequence[Check]) -> list[str]:
    """What did not pass, in words."""
    return [f"{check.name}: {check.detail}" for check in checks if not check.passed]
