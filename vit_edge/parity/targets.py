"""What a comparison must reach: bounds on the statistics of vit_edge.parity.statistics by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vit_edge.bundle.manifest import Scores
from vit_edge.errors import UsageError
from vit_edge.parity.intervals import trials_to_prove
from vit_edge.parity.statistics import LARGEST_DB

# A reference whose first class leads its second by less than this (median over the images, in
# spreads of its logits) decides so little that agreement is a lottery: a seeded testing, tiny and
# small lead by 0.32, 0.23 and 0.29; vit-cifar10 by 0.76 on its own test images and by 0.44 on the
# package's photos, the outlier checkpoint by 0.55.
DECIDED = 0.4
LOGITS = "logits"  # the output that classifies; every other is compared as plain numbers
NON_FINITE = "non_finite"  # how many values are NaN or Inf: none may be
AGREEMENTS = ("top1_agreement", "top5_agreement")
# What unlabelled images, each answered once, do not tell.
GATE_ALONE = {"accuracy", "accuracy_drop", "batch_relative"}
# Statistics that need no classes: they hold of features, and of logits that are values.
OF_VALUES = {
    "cosine_mean", "cosine_min", "sqnr_db", "sqnr_centred_db", "relative", "relative_median",
    "batch_relative",
}  # fmt: skip


# Statistics of the one class that softmax names; of sigmoid scores each is decided by itself.
OF_ONE_CLASS = {"top5_agreement", "accuracy", "accuracy_drop"}


def decides(summary: Mapping[str, Any]) -> bool:
    """Whether the reference decides clearly enough for agreement with it to mean something."""
    lead = summary.get("reference_margin_median")
    return lead is not None and lead >= DECIDED


@dataclass(frozen=True)
class Statistic:
    """A statistic that can be bounded."""

    words: str
    direction: Literal["at least", "at most"]
    lowest: float  # of the bounds that make sense
    highest: float
    form: str = "{:.3g}"
    interval: str | None = None  # the name of its confidence interval
    trials: str = "images"  # what that interval counts

    def holds(self, value: float, bound: float) -> bool:
        """Compare; a NaN never holds."""
        return value >= bound if self.direction == "at least" else value <= bound

    def written(self, value: float) -> str:
        """A value with its unit."""
        return self.form.format(value)


_DB = (-LARGEST_DB, LARGEST_DB)
STATISTICS: dict[str, Statistic] = {
    "top1_agreement": Statistic(
        "top-1 agreement", "at least", 0, 1, "{:.2%}", "top1_agreement_interval"
    ),
    "top5_agreement": Statistic(
        "top-5 agreement", "at least", 0, 1, "{:.2%}", "top5_agreement_interval"
    ),
    "rank_correlation_mean": Statistic(
        "mean rank correlation, top 10", "at least", -1, 1, "{:.4f}"
    ),
    "margin_weighted_flips": Statistic("margin-weighted flips", "at most", 0, math.inf),
    "flip_margin_max": Statistic("the largest margin of a flip", "at most", 0, math.inf),
    "kl_mean": Statistic("mean KL, nats", "at most", 0, math.inf),
    "kl_median": Statistic("median KL, nats", "at most", 0, math.inf),
    "kl_max": Statistic("largest KL, nats", "at most", 0, math.inf),
    "cosine_mean": Statistic("mean cosine", "at least", -1, 1, "{:.6g}"),
    "cosine_min": Statistic("least cosine", "at least", -1, 1, "{:.6g}"),
    "sqnr_db": Statistic("SQNR", "at least", *_DB, "{:.1f} dB"),
    "sqnr_centred_db": Statistic("centred SQNR", "at least", *_DB, "{:.1f} dB"),
    "relative": Statistic("max |diff| / max |reference|", "at most", 0, math.inf),
    "relative_median": Statistic(
        "the median image's max |diff| / max |reference|", "at most", 0, math.inf
    ),
    "batch_relative": Statistic("max |diff| between batch sizes", "at most", 0, math.inf),
    "accuracy": Statistic("accuracy", "at least", 0, 1, "{:.2%}", "accuracy_interval", "labelled"),
    "accuracy_drop": Statistic(
        "the drop in accuracy", "at most", -1, 1, "{:+.2%}", "accuracy_drop_interval", "labelled"
    ),
}


def words_of(name: str, summary: Mapping[str, Any]) -> str:
    """Name a statistic; of sigmoid scores, agreement is that on every class."""
    if name == "top1_agreement" and summary.get("scores") == "sigmoid":
        return "agreement on every class"
    return STATISTICS[name].words


@dataclass(frozen=True)
class Proof:
    """Whether a bound on a rate holds beyond the chance of the draw."""

    statistic: str
    bound: float
    interval: tuple[float, float]  # 95 %
    holds: bool  # the whole interval lies on the right side
    images_needed: int | None  # at the rate found; None where the rate itself misses the bound


@dataclass(frozen=True)
class Target:
    """Bounds that must all hold."""

    bounds: tuple[tuple[str, float], ...]  # statistic, bound

    def missed(self, summary: Mapping[str, Any]) -> list[str]:
        """Tell every bound that does not hold, in words.

        Args:
            summary: Of a Difference or a LogitComparison.

        Returns:
            One sentence each; empty if all hold.
        """
        missed = []
        for name, bound in self.bounds:
            statistic, value = STATISTICS[name], summary.get(name)
            asked = f"{statistic.direction} {statistic.written(bound)}"
            if value is None:
                words = words_of(name, summary)
                missed.append(f"{words} must be {asked}, but {_absence(name, summary)}")
            elif not statistic.holds(value, bound):
                words = words_of(name, summary)
                missed.append(f"{words} is {statistic.written(value)}, allowed {asked}")
        return missed

    def of_values(self) -> Target:
        """The bounds that need no classes."""
        return Target(tuple(bound for bound in self.bounds if bound[0] in OF_VALUES))

    def for_scores(self, scores: Scores) -> Target:
        """The bounds that mean something of what is made of the logits."""
        if scores == "none":
            return self.of_values()
        unknown = OF_ONE_CLASS if scores == "sigmoid" else set()
        return Target(tuple(bound for bound in self.bounds if bound[0] not in unknown))

    def on_calibration(self) -> Target:
        """The bounds that a search can see, whose images have no labels; the gate holds all."""
        return Target(tuple(bound for bound in self.bounds if bound[0] not in GATE_ALONE))

    def without_rates(self) -> Target:
        """The bounds that a few images can hold or miss."""
        return Target(tuple(b for b in self.bounds if STATISTICS[b[0]].interval is None))

    def judged(self, summary: Mapping[str, Any]) -> Target:
        """Without bounds on agreement, where the reference does not decide (see DECIDED)."""
        if decides(summary):
            return self
        unclear = {name for name in AGREEMENTS if name in summary}  # values have none: it is missed
        return Target(tuple(bound for bound in self.bounds if bound[0] not in unclear))

    def refuted(self, summary: Mapping[str, Any]) -> list[str]:
        """Tell every bound that surely does not hold, in words.

        As `missed`, but a rate counts as missed only where its whole confidence interval misses:
        one flip on 16 images says nothing about 99 %.
        """
        open_questions = {proof.statistic for proof in self.open(summary)}
        bounds = tuple(bound for bound in self.bounds if bound[0] not in open_questions)
        return Target(bounds).missed(summary)

    def open(self, summary: Mapping[str, Any]) -> list[Proof]:
        """Bounds on rates that neither hold nor miss with their whole confidence interval."""
        return [
            proof
            for proof in self.proved(summary)
            if not proof.holds
            and any(STATISTICS[proof.statistic].holds(end, proof.bound) for end in proof.interval)
        ]

    def proved(self, summary: Mapping[str, Any]) -> list[Proof]:
        """Tell for every bound on a rate whether its confidence interval holds it too."""
        return [
            _proof(name, bound, summary)
            for name, bound in self.bounds
            if STATISTICS[name].interval and summary.get(name) is not None
        ]

    def as_dict(self) -> dict[str, float]:
        """The bounds by name, ready for JSON."""
        return dict(self.bounds)


def parse_target(text: str) -> Target:
    """Read bounds as they are typed.

    Args:
        text: "top1_agreement=0.99,sqnr_centred_db=20"; whether a bound is the least or the most
            allowed follows from the statistic.

    Returns:
        The target, in the order typed.

    Raises:
        UsageError: An unknown or repeated statistic, or a bound outside its range: all listed.
    """
    bounds: dict[str, float] = {}
    problems = []
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals:
            problems.append(f"{part.strip()!r} is not NAME=NUMBER")
            continue
        if name not in STATISTICS:
            problems.append(f"{name!r} is no statistic; there are: {', '.join(STATISTICS)}")
            continue
        if name in bounds:
            problems.append(f"{name} is given twice")
        bounds[name], problem = _bound(name, number)
        problems += problem
    if problems:
        raise UsageError(
            f"target {text!r}: {len(problems)} problem(s):\n  " + "\n  ".join(problems)
        )
    return Target(tuple(bounds.items()))


def target_from(asked: str | Target | None) -> Target | None:
    """Read bounds that may be read already.

    Raises:
        UsageError: As parse_target; or it is neither text nor a Target.
    """
    if isinstance(asked, str):
        return parse_target(asked)
    if asked is not None and not isinstance(asked, Target):
        raise UsageError(f"--target must be such as 'top1_agreement=0.99', not {asked!r}")
    return asked


def _bound(name: str, text: str) -> tuple[float, list[str]]:
    statistic = STATISTICS[name]
    try:
        value = float(text)
    except ValueError:
        return math.nan, [f"{name}: {text!r} is no number"]
    if not (math.isfinite(value) and statistic.lowest <= value <= statistic.highest):
        return value, [f"{name}: {text} is not in {statistic.lowest}..{statistic.highest}"]
    return value, []


def _absence(name: str, summary: Mapping[str, Any]) -> str:
    """Say why a statistic has no value."""
    if name in {"accuracy", "accuracy_drop"}:
        kind = summary.get("scores", "softmax")
        return "the images have no labels" if kind == "softmax" else f"scores are by {kind}"
    if name not in summary:
        return "this output has no such statistic"
    if summary["non_finite"]:
        return "there are NaN or Inf"
    if summary["images"] < 2:
        return f"it needs two images or more, there are {summary['images']}"
    return "the reference answers the same for every image"


def _proof(name: str, bound: float, summary: Mapping[str, Any]) -> Proof:
    statistic, value = STATISTICS[name], summary[name]
    low, high = summary[str(statistic.interval)]
    holds = statistic.holds(low if statistic.direction == "at least" else high, bound)
    trials = summary[statistic.trials]
    needed: int | None
    if holds:
        needed = trials
    elif not statistic.holds(value, bound) or value == bound:
        needed = None
    elif name == "accuracy_drop":  # the interval narrows with the root of the number of images
        needed = math.ceil(trials * ((high - value) / (bound - value)) ** 2)
    else:
        needed = trials_to_prove(value, bound)
    return Proof(name, bound, (low, high), holds, needed)
