"""How many tokens each block merges: as it was asked for, or chosen on calibration images.

What merging costs depends on the block by orders of magnitude. The first blocks see keys that are
much alike and mean little; the last have few tokens left that matter. So `choose` measures each
block by itself, takes the noises to add up, and merges where a saved multiply-add adds the least of
it. One number, the price of noise, then makes a schedule; bisection finds the most that it may
save while the target holds, each try run in full.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vit_edge.bundle.architecture import Architecture
from vit_edge.bundle.manifest import Scores
from vit_edge.errors import UsageError
from vit_edge.models.merging import Tokens
from vit_edge.models.vit import Block, Outputs, ViT, with_merging
from vit_edge.parity.logits import LogitComparison
from vit_edge.parity.targets import STATISTICS, Target

AUTO = "auto"
DEFAULT_TARGET = "top1_agreement=0.99"
# What is asked for anyway: where less is left, more answers change than a hundred images show.
FLOOR_DB = 20.0
MEASURED_IMAGES = 32  # by which the blocks' noises are measured
_PARTS = (1 / 64, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the patches: where a block's noise is measured
_TRIES = 7  # of whole schedules: the saving is known to a hundredth of its range
BATCH = 8  # images at a time

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Merging:
    """What was asked for."""

    counts: tuple[int, ...] | None  # of each block; one number: of every block; None: to be chosen

    def resolved(self, architecture: Architecture) -> tuple[int, ...]:
        """Return how many tokens each block merges.

        Raises:
            UsageError: More than there are, or not one number a block.
        """
        assert self.counts is not None
        counts = self.counts
        if len(counts) == 1:
            counts = _everywhere(counts[0], architecture)
        if not any(counts):
            raise UsageError(
                f"--merge-tokens: nothing can be merged of {architecture.patches} patch(es) in "
                f"{architecture.depth} block(s); leave it out"
            )
        problems = dataclasses.replace(architecture, merged_tokens=counts).problems()
        if problems:
            raise UsageError("--merge-tokens: " + "; ".join(problems))
        return counts


def parse_merging(text: str) -> Merging:
    """Read "auto", "8" or "0,0,8,8".

    Raises:
        UsageError: It is none of these, or nothing would be merged.
    """
    if text.strip().lower() == AUTO:
        return Merging(None)
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        raise UsageError(
            f"--merge-tokens: {text!r} is neither {AUTO}, nor how many tokens every block merges, "
            "such as 8, nor one number a block, such as 0,0,8,8"
        )
    counts = tuple(int(part) for part in parts)
    if not any(counts):
        raise UsageError("--merge-tokens: nothing would be merged; leave it out")
    return Merging(counts)


def merging_blocks(architecture: Architecture) -> int:
    """Count the blocks that can merge: not the last where only its class token is read."""
    return architecture.depth - architecture.class_token_alone


def _everywhere(count: int, architecture: Architecture) -> tuple[int, ...]:
    """As many in every block as there are pairs left."""
    counts, patches = [0] * architecture.depth, architecture.patches
    for block in range(merging_blocks(architecture)):
        counts[block] = min(count, patches // 2)
        patches -= counts[block]
    return tuple(counts)


class Chosen(NamedTuple):
    """A schedule, and what it does to the calibration images."""

    counts: tuple[int, ...]
    summary: dict[str, object]


def choose(
    vit: ViT,
    pixels: Sequence[NDArray[np.float32]],
    target: Target,
    scores: Scores,
    progress: Progress = lambda images: None,
) -> Chosen:
    """Choose how many tokens each block merges, so that a target holds on calibration images.

    Args:
        vit: The model; it merges nothing.
        pixels: float32[<= 8, channels, H, W] each; see `calibration_batches`.
        target: What must hold of the answers, against those without merging.
        scores: What is made of the logits.
        progress: Called with the number of images done since the last call.

    Returns:
        The schedule.

    Raises:
        UsageError: Not even the smallest schedule holds the target.
    """
    expected = _answers(vit, pixels, progress)
    shape = vit.architecture
    noises = block_noises(vit, pixels, expected, progress)
    best: Chosen | None = None
    floored = Target((*target.bounds, ("sqnr_centred_db", FLOOR_DB)))
    low, high = 0.0, 1.0  # parts of the largest saving: the lower one holds
    for _ in range(_TRIES):
        middle = (low + high) / 2
        counts = _saving(shape, noises, middle)
        found = _answers(with_merging(vit, counts), pixels, progress)
        summary = _summary(found, expected, scores)
        if any(counts) and not floored.judged(summary).missed(summary):
            best, low = Chosen(counts, summary), middle
        else:
            high = middle
    if best is None:
        raise UsageError(
            f"--merge-tokens {AUTO}: no schedule that was tried keeps the target "
            f"{target.as_dict()}: this model needs its tokens. Leave the option out, or ask for "
            "less with --target"
        )
    return best


def tries_images(architecture: Architecture, images: int) -> int:
    """How many images `choose` runs, for a progress bar; a part of the model counts as that."""
    blocks = merging_blocks(architecture)
    measured = min(images, MEASURED_IMAGES) * blocks * len(_PARTS)
    return images * (1 + _TRIES) + measured


def shared(target: Target) -> Target:
    """Half of what a target allows: the other half is for the lower precision that follows."""
    return Target(tuple((name, _half(name, bound)) for name, bound in target.bounds))


def _half(name: str, bound: float) -> float:
    if name.endswith("_db"):
        return bound + 10 * math.log10(2)
    return (bound + 1) / 2 if STATISTICS[name].direction == "at least" else bound / 2


def block_noises(
    vit: ViT,
    pixels: Sequence[NDArray[np.float32]],
    expected: NDArray[np.float32],
    progress: Progress,
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Measure each block's merging by itself.

    Returns:
        For each block: numbers of tokens, and the mean square difference of the answers where it
        alone merges so many.
    """
    count = min(MEASURED_IMAGES, sum(map(len, pixels)))
    blocks = [block for block in vit.blocks if isinstance(block, Block)]
    grid = sorted({max(1, int(part * vit.architecture.patches)) for part in _PARTS})
    grid = [tokens for tokens in grid if tokens <= vit.architecture.patches // 2]
    found = []
    with torch.inference_mode():
        measured = pixels[: -(-count // BATCH)]
        entering = [Tokens(vit.embedding(torch.from_numpy(batch))) for batch in measured]
        count = sum(map(len, measured))
        for position in range(merging_blocks(vit.architecture)):
            noises = []
            for tokens in grid:
                blocks[position].merged = tokens
                answers = [_from_block(vit, blocks[position:], each) for each in entering]
                difference = np.concatenate(answers) - expected[:count]
                noises.append(float(_centred(difference).mean()))
                progress(count)
            blocks[position].merged = 0
            found.append((np.array(grid), np.array(noises)))
            entering = [blocks[position](each) for each in entering]
    return found


def _saving(
    shape: Architecture,
    noises: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]],
    part: float,
) -> tuple[int, ...]:
    """The schedule of least noise that saves a part of what merging can save."""
    worth = [_worth(shape, position) for position in range(len(noises))]
    most = sum(w * c for w, c in zip(worth, _everywhere(shape.patches, shape), strict=False))
    low, high = 1e-12, 1e12  # of noise for a token's worth; more of it merges more
    counts = (0,) * shape.depth
    for _ in range(60):
        price = math.sqrt(low * high)
        counts = _schedule(shape, noises, worth, price)
        if sum(w * c for w, c in zip(worth, counts, strict=False)) > part * most:
            high = price
        else:
            low = price
    return _schedule(shape, noises, worth, low)


def _schedule(
    shape: Architecture,
    noises: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]],
    worth: Sequence[float],
    price: float,
) -> tuple[int, ...]:
    """Merge in each block while a token is worth more than its noise."""
    counts, patches = [0] * shape.depth, shape.patches
    for position, (grid, noise) in enumerate(noises):
        tokens = np.arange(grid[-1] + 1)
        cost = np.interp(tokens, [0, *grid], [0, *noise])
        best = int(np.argmin(cost - price * worth[position] * tokens))
        counts[position] = min(best, patches // 2)
        patches -= counts[position]
    return tuple(counts)


def _worth(shape: Architecture, position: int) -> float:
    """How many blocks a token that is merged here is spared: this one's MLP, and all behind."""
    mlp = 2 * shape.mlp_dim / (4 * shape.width + 2 * shape.mlp_dim)
    return mlp + merging_blocks(shape) - 1 - position


def _answers(
    vit: ViT, pixels: Sequence[NDArray[np.float32]], progress: Progress
) -> NDArray[np.float32]:
    """float32[images, classes], or features where there is no head."""
    found = []
    with torch.inference_mode():
        for batch in pixels:
            found.append(_judged(vit(torch.from_numpy(batch))))
            progress(len(batch))
    return np.concatenate(found)


def _from_block(vit: ViT, blocks: Sequence[Block], tokens: Tokens) -> NDArray[np.float32]:
    for block in blocks:
        tokens = block(tokens)
    return _judged(vit.readout(tokens))


def _judged(outputs: Outputs) -> NDArray[np.float32]:
    answers = outputs.features if outputs.logits is None else outputs.logits
    return answers.numpy()


def _centred(difference: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squares, without what all classes have in common."""
    centred: NDArray[np.float64] = difference.astype(np.float64)
    centred -= centred.mean(axis=1, keepdims=True)
    return np.square(centred)


def _summary(
    found: NDArray[np.float32], expected: NDArray[np.float32], scores: Scores
) -> dict[str, object]:
    """Every statistic; of agreement the lower of what was counted and what the noise predicts.

    A hundred images count flips in steps of one percent. The noise and the margins of all of them
    predict the rate more finely.
    """
    comparison = LogitComparison(scores)
    comparison.add(np.arange(len(found)), found, expected)
    summary: dict[str, object] = comparison.summary()
    counted = summary.get("top1_agreement")
    if isinstance(counted, float) and scores == "softmax":
        summary["top1_agreement"] = min(counted, predicted_agreement(found, expected))
    return summary


def predicted_agreement(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """How many of the first classes stay first under normal noise of the size that was found."""
    classes = expected.shape[1]
    if classes < 2:
        return 1.0
    second, first = np.partition(expected, -2, axis=1)[:, -2:].T
    # of the difference of two logits, from what is left of their noise without its mean
    spread = math.sqrt(2 * float(_centred(found - expected).mean()) * classes / (classes - 1))
    margins = (first - second) / max(spread, 1e-30) / math.sqrt(2)
    return float(np.mean([(1 + math.erf(margin)) / 2 for margin in margins]))
