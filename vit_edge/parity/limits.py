"""What a comparison allows, and why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vit_edge.bundle.manifest import Manifest, Scores
from vit_edge.errors import UsageError
from vit_edge.parity.targets import LOGITS, NON_FINITE, Target, decides, words_of

# A flip needs noise of its margin's size in the difference of two logits, which has sqrt(2) of the
# noise of one. Of 2,000 images with 1,000 classes the largest such noise is about five standard
# deviations (a normal tail of 3e-7 among 2e6).
FLIP_DEVIATIONS = 5


@dataclass(frozen=True)
class Limit:
    """What one precision may change."""

    logits: Target
    others: Target  # features, tokens, pre_logits
    reason: str
    top1_agreement: float | None = None  # must lie within or below the interval found

    def problems(self, output: str, summary: Mapping[str, Any]) -> list[str]:
        """Tell what exceeds the limit.

        Agreement is refused only where its whole confidence interval lies below the limit, and
        where the reference itself decides. So 16 photos condemn what is surely bad, and 2,000
        images are strict. A flip that no allowed noise explains is refused on any number of images.

        Args:
            output: The name of the output.
            summary: Its statistics.

        Returns:
            One sentence each; empty if nothing does.
        """
        judged = list(self.judged(output, summary))
        if summary[NON_FINITE]:
            judged = judged[:1]  # what else is wrong follows from it
        return [sentence for _, missed in judged for sentence in missed]

    def judged(self, output: str, summary: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
        """Hold a summary against every bound: the statistic, and what is wrong with it."""
        if summary[NON_FINITE]:
            yield NON_FINITE, [f"{summary[NON_FINITE]} NaN or Inf"]
        for bound in (self.logits if output == LOGITS else self.others).bounds:
            yield bound[0], Target((bound,)).missed(summary)
        if self.top1_agreement is None or output != LOGITS or not decides(summary):
            return
        low, high = summary["top1_agreement_interval"]
        sentence = (
            f"{words_of('top1_agreement', summary)} is {summary['top1_agreement']:.2%} on "
            f"{summary['images']} images, "
            f"surely (95 %: {low:.2%} to {high:.2%}) less than {self.top1_agreement:.2%}"
        )
        yield "top1_agreement", [sentence] * (high < self.top1_agreement)

    def judges_agreement(self, summary: Mapping[str, Any]) -> bool:
        """Whether agreement is limited, and means something with this reference."""
        return self.top1_agreement is not None and decides(summary)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "logits": self.logits.as_dict(),
            "others": self.others.as_dict(),
            "top1_agreement_surely_below": self.top1_agreement,
            "reason": self.reason,
        }


def explained_margin(sqnr_db: float) -> float:
    """The largest margin of a flip, in spreads, that noise of this level explains."""
    return FLIP_DEVIATIONS * math.sqrt(2) * 10 ** (-sqnr_db / 20)


# What the head adds up, it also averages: features are 2 to 5 dB noisier than logits, tokens 3 to 6
# (vit-cifar10 and the outlier checkpoint, every row of the table below).
_HEAD_DB = 6.0


def _exact(relative: float, reason: str) -> Limit:
    bound = Target((("relative", relative),))
    return Limit(bound, bound, reason)


def _low(
    *,
    sqnr_db: float,
    top1_agreement: float,
    kl_median: float,
    batch_relative: float | None,
    reason: str,
) -> Limit:
    """The limit of a low precision, from its noise level, agreement and divergence."""
    logits = [
        ("sqnr_centred_db", sqnr_db),
        ("flip_margin_max", explained_margin(sqnr_db)),
        ("kl_median", kl_median),
    ]
    if batch_relative is not None:
        logits.append(("batch_relative", batch_relative))
    others = [("sqnr_centred_db", sqnr_db - _HEAD_DB)]
    return Limit(Target(tuple(logits)), Target(tuple(others)), reason, top1_agreement)


# fp32, measured against the reference: onnxruntime 1.31 is off by 3e-7 (vit-cifar10) to 3e-6
# (large, huge) in logits and features alike. What must not pass, on vit-cifar10: LayerNorm epsilon
# 1e-12 for 1e-6 3e-5, epsilon 1e-5 for 1e-6 3e-4, tanh GELU 7e-4, a dropped bias 3e-3
# (tests/parity/test_limits.py).
#
# The low precisions, simulated on the Linears alone: centred SQNR of the logits in dB, with the
# top-1 agreement on 400 images of CIFAR-10 in brackets.
#
#                                    vit-cifar10    outliers       seeded testing, tiny
#     fp16                           74  (100 %)    57  (100 %)    58, 54
#     bf16                           56  (100 %)    39  (99.8 %)   40, 36
#     int8, SmoothQuant              43  (99.8 %)   29  (98.5 %)   28, 24
#     int8, min/max                  40  (99.5 %)   8.6 (70.0 %)   28, 21
#     int8 weights, per channel      53  (100 %)    26  (95.8 %)   33, 28
#     int4 weights, rounded, block 32 32 (99.3 %)   6.8 (61.8 %)   9.4, 7.5
#     fp8, min/max                   34  (99.0 %)   14  (84.5 %)   19, 14
#
# What the recipes reach with scales and rounding searched, worst of five calibration seeds: int8
# 42 and 30 dB, int4 42 and 32, fp8 34 and 34, fp16 70, bf16 52 (docs/quantization.md). They stay
# above these limits by far; seeded weights, without structure that a recipe could use, do not.
#
# Between batch sizes, as real onnxruntime graphs of vit-cifar10: 0 with static INT8, 1.4e-2 with
# dynamic. The 16-bit formats round sums whose order may change: a few units in the last place.
LIMITS: dict[str, Limit] = {
    "fp32": _exact(1e-5, "float32 rounding over up to 32 blocks, a factor of about 3 to spare"),
    "fp16": _low(
        sqnr_db=45.0,
        top1_agreement=0.985,
        kl_median=1e-3,
        batch_relative=2e-3,
        reason="a significand of 11 bits leaves 54 dB and more; an overflow leaves less than 20",
    ),
    "bf16": _low(
        sqnr_db=30.0,
        top1_agreement=0.98,
        kl_median=1e-2,
        batch_relative=1e-2,
        reason="a significand of 8 bits leaves 36 dB and more",
    ),
    "int8": _low(
        sqnr_db=20.0,
        top1_agreement=0.96,
        kl_median=5e-2,
        batch_relative=5e-3,
        reason="smoothed, per-channel INT8 leaves 24 dB and more; min/max with outliers 9",
    ),
    "int8-dynamic": _low(
        sqnr_db=20.0,
        top1_agreement=0.96,
        kl_median=5e-2,
        batch_relative=None,
        reason="as int8; its scales, so its answers, depend on the whole batch: not limited",
    ),
    "int8-weights": _low(
        sqnr_db=24.0,
        top1_agreement=0.97,
        kl_median=2e-2,
        batch_relative=5e-3,
        reason="even one scale per channel leaves 26 dB and more",
    ),
    "int4": _low(
        sqnr_db=14.0,
        top1_agreement=0.94,
        kl_median=1e-1,
        batch_relative=5e-3,
        reason="rounding leaves 32 dB without outliers and 7 with them, where agreement is lost",
    ),
    "fp8": _low(
        sqnr_db=16.0,
        top1_agreement=0.94,
        kl_median=1e-1,
        batch_relative=1e-2,
        reason="a significand of 4 bits leaves 19 dB and more; 14 dB cost 15 % of the answers",
    ),
}

# Against the model whose tokens are not merged. DINOv2-small-cifar10 and vit-cifar10, a like number
# in every block: 0.4 of the tokens left at the end leave 21 and 17 dB, 93 % of the answers.
MERGING = _low(
    sqnr_db=14.0,
    top1_agreement=0.94,
    kl_median=1e-1,
    batch_relative=None,
    reason="what merging changes is chosen; below 14 dB it costs one answer in ten",
)
# In float32, against the reference that merges the same. The median image is as exact as without.
_MEDIAN = ("relative_median", LIMITS["fp32"].logits.as_dict()["relative"])
_MERGED_FP32 = Limit(
    Target((_MEDIAN, ("sqnr_centred_db", 30.0), ("flip_margin_max", explained_margin(30.0)))),
    Target((_MEDIAN, ("sqnr_centred_db", 30.0 - _HEAD_DB))),
    "float32 rounding, and one image in thousands where it decides what is merged",
    top1_agreement=0.99,
)

# Of a low precision, against the reference that merges the same: noise decides here and there.
_MERGED_DB = 6.0


def _merged(limit: Limit) -> Limit:
    """The limit of a low precision, where tokens are merged too."""
    sqnr_db = limit.logits.as_dict()["sqnr_centred_db"] - _MERGED_DB
    looser = {
        "sqnr_centred_db": sqnr_db,
        "flip_margin_max": explained_margin(sqnr_db),
        "kl_median": limit.logits.as_dict()["kl_median"] * 4,
    }
    bounds = {name: looser.get(name, bound) for name, bound in limit.logits.bounds}
    others = Target((("sqnr_centred_db", sqnr_db - _HEAD_DB),))
    return dataclasses.replace(limit, logits=Target(tuple(bounds.items())), others=others)


def limit_for(precision: str, scores: Scores = "softmax") -> Limit:
    """Look the limit up.

    Args:
        precision: Of a bundle.
        scores: What is made of its logits. Of values without classes only those bounds hold that
            speak of numbers.

    Raises:
        UsageError: No such precision.
    """
    if precision not in LIMITS:
        raise UsageError(f"no parity limit for precision {precision!r}; known: {list(LIMITS)}")
    return _for_scores(LIMITS[precision], scores)


def limit_of(manifest: Manifest) -> Limit:
    """Look up what a bundle may change of the reference's answers.

    Where tokens are merged, so are the reference's. Of two pairs that are equally close, rounding
    decides which one is merged: one image in thousands then answers something else in float32, and
    many do in a low precision.

    Raises:
        UsageError: No such precision.
    """
    architecture, precision = manifest.architecture, manifest.precision
    if architecture is None or not architecture.merged_tokens:
        return limit_for(precision, manifest.scores)
    if precision == "fp32":
        return _for_scores(_MERGED_FP32, manifest.scores)
    return _for_scores(_merged(LIMITS[precision]), manifest.scores)


def merging_judged(candidate: Manifest, reference: Manifest) -> bool:
    """Tell whether a comparison shows what merging changes: the candidate alone merges tokens."""
    ours, theirs = candidate.architecture, reference.architecture
    return bool(ours and ours.merged_tokens) and not (theirs and theirs.merged_tokens)


def merging_limit(scores: Scores) -> Limit:
    """Look up what the merging of tokens may change of the answers of the model without it."""
    return _for_scores(MERGING, scores)


def _for_scores(limit: Limit, scores: Scores) -> Limit:
    if scores != "none":
        return limit
    return dataclasses.replace(limit, logits=limit.logits.of_values(), top1_agreement=None)
