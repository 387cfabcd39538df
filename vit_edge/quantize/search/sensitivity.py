"""The Linears that suffer, and how many must stay in float, by the calibration images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.bundle.manifest import Scores
from vit_edge.errors import ParityError
from vit_edge.graphs.sections import SharedRuns
from vit_edge.graphs.workspace import Workspace
from vit_edge.parity.logits import LogitComparison
from vit_edge.parity.targets import Target
from vit_edge.quantize import Progress, Task
from vit_edge.quantize.calibration import Calibration, answering_batch
from vit_edge.quantize.search.journal import Journal

# Of the cost of all in float: the part that may stay there though no target asks for it. Of few
# Linears each does a large share of the damage, and most of a small file would stay in float.
LARGEST_PART = 0.25

# (names of the Linears to quantize) -> the graph with those quantized
Variant = Callable[[Sequence[str]], onnx_ir.Model]


class Share(NamedTuple):
    """The noise that one Linear adds to the answers."""

    name: str
    noise: float  # mean square difference of the output when it alone is quantized
    share: float  # of the sum over all Linears


class Trial(NamedTuple):
    """One try at the whole graph."""

    kept_float: tuple[str, ...]
    missed: tuple[str, ...]  # bounds of the target, in words; empty if it holds
    summary: dict[str, object]


@dataclass(frozen=True)
class SearchSettings:
    """The choices of every search.

    Attributes:
        keep_float: What is not quantized in any case.
        float_share: What does more than this share of the damage stays in float; a Linear that
            costs a tenth of the costliest in float has to do a tenth of that. Without a target,
            no more than a quarter of all weights and time goes there.
        float_budget: How many may stay in float for that or for the target; a cheap one counts for
            its part of the costliest.
        sensitivity_images: On how many images the damage is measured.
    """

    keep_float: tuple[str, ...] = ()
    float_share: float = 0.25
    float_budget: int = 4
    sensitivity_images: int = 32

    def problems(self) -> list[str]:
        """List everything that cannot be followed; empty if nothing."""
        problems = []
        if self.float_budget < 0:
            problems.append(f"float_budget must not be negative, not {self.float_budget}")
        if not 0 < self.float_share <= 1:
            problems.append(f"float_share must lie between 0 and 1, not {self.float_share}")
        if self.sensitivity_images < 1:
            problems.append(f"sensitivity_images must be at least 1, not {self.sensitivity_images}")
        return problems


def judged_output(model: onnx_ir.Model) -> str:
    """The output by which variants are compared: the logits, or whatever comes first."""
    names = [str(output.name) for output in model.graph.outputs]
    return "logits" if "logits" in names else names[0]


class Judge:
    """Compares variants with the float graph, by its judged output."""

    def __init__(
        self,
        workspace: Workspace,
        model: onnx_ir.Model,
        calibration: Calibration,
        entries: Mapping[str, str] | None = None,
        scores: Scores = "softmax",
    ) -> None:
        """Run the float graph once.

        Args:
            workspace: Runs graphs.
            model: The float graph.
            calibration: The images.
            entries: See Workspace.session.
            scores: What is made of the logits.
        """
        self._scores = scores
        self._workspace = workspace
        self._entries = entries
        self._output = judged_output(model)
        self._calibration = calibration
        self._batch = answering_batch(calibration)
        self.reference = self.answers(model, len(calibration))

    def answers(self, model: onnx_ir.Model, images: int) -> NDArray[np.float32]:
        """float32[images, ...]: what a graph answers to the first images."""
        batches = self._calibration.first(images).batches(self._batch)
        answers = self._workspace.answers(model, batches, self._output, self._entries)
        return np.concatenate(list(answers))

    def noises(self, base: onnx_ir.Model, images: int) -> Callable[[onnx_ir.Model], float]:
        """Return what measures a variant: its mean square difference from the float graph.

        Args:
            base: The variant in which nothing is quantized. What others share with it runs once,
                as long as they come in the order of the graph.
            images: How many to measure by; all where there are fewer.
        """
        batches = list(self._calibration.first(images).batches(self._batch))
        runs = SharedRuns(self._workspace, base, batches, self._entries)

        def noise(model: onnx_ir.Model) -> float:
            difference = runs.answers(model, self._output) - self.reference[:images]
            return float(np.square(difference, dtype=np.float64).mean())

        return noise

    def summary(self, model: onnx_ir.Model) -> dict[str, object]:
        """Every statistic over all calibration images."""
        comparison = LogitComparison(self._scores)
        answers = self.answers(model, len(self.reference))
        comparison.add(np.arange(len(answers)), answers, self.reference)
        return comparison.summary()


def shares(
    judge: Judge,
    variant: Variant,
    names: Sequence[str],
    images: int,
    journal: Journal,
    progress: Progress,
) -> list[Share]:
    """Measure every Linear alone, the worst first.

    Noise that arises in different places adds up nearly independently, so the sum of the parts is
    close to the whole. The cost of one Linear is seen without the others covering it.
    """
    with progress("sensitivity", len(names), "Linear") as bar:
        noise = judge.noises(variant([]), images)
        for name in names:
            if name not in journal.values:
                journal.add(name, noise(variant([name])))
            bar.update(1)
    found = {name: journal.values[name] for name in names}
    total = sum(found.values()) or 1.0
    ranked = sorted(names, key=lambda name: -found[name])
    return [Share(name, found[name], found[name] / total) for name in ranked]


def by_cost(ranked: Sequence[Share], costs: Mapping[str, float]) -> list[Share]:
    """Sort by the noise that each unit of cost takes away, the best bargain first."""
    return sorted(ranked, key=lambda share: -share.noise / costs.get(share.name, 1.0))


def disproportionate(
    ranked: Sequence[Share], largest_share: float, costs: Mapping[str, float]
) -> int:
    """Count those that do more than their share of the damage that is left each time.

    Args:
        ranked: The best bargain first.
        largest_share: What one of cost 1 may do.
        costs: In (0, 1]; 1 where nothing is said.
    """
    left = sum(share.noise for share in ranked)
    for count, share in enumerate(ranked):
        if share.noise <= largest_share * costs.get(share.name, 1.0) * left:
            return count
        left -= share.noise
    return len(ranked)


def modest(costs: Sequence[float]) -> int:
    """Count those that together cost no more than LARGEST_PART of all, in their order."""
    return int((np.cumsum(costs) <= LARGEST_PART * sum(costs) + 1e-9).sum())


def tries(costs: Sequence[float], first: int, budget: float) -> list[int]:
    """Return how many stay in float at each try: about one unit of cost more each time.

    Args:
        costs: In the order in which they are spent.
        first: How many stay in float at the first try.
        budget: What all of them may cost.
    """
    spent = np.concatenate([[0.0], np.cumsum(costs)])
    affordable = int(np.searchsorted(spent, budget + 1e-9, side="right")) - 1
    counts = [min(first, affordable)]
    while counts[-1] < affordable:
        limit = spent[counts[-1]] + 1 + 1e-9
        further = int(np.searchsorted(spent, limit, side="right")) - 1
        counts.append(min(max(further, counts[-1] + 1), affordable))
    return counts


def search(
    judge: Judge,
    variant: Variant,
    order: Sequence[str],
    target: Target | None,
    counts: Sequence[int],
    progress: Progress,
) -> list[Trial]:
    """Keep more and more Linears in float until the target holds.

    Args:
        judge: Compares.
        variant: Makes the graph.
        order: Names, the best bargain first.
        target: None: the first try is taken.
        counts: How many of them stay in float at each try.
        progress: Shows the tries.

    Returns:
        Every try; the last is the one that was chosen.

    Raises:
        ParityError: The target does not hold within the budget.
    """
    trials: list[Trial] = []
    with progress("search", len(counts), "graph") as bar:
        for kept in counts:
            summary = judge.summary(variant(order[kept:]))
            missed = () if target is None else tuple(target.judged(summary).missed(summary))
            trials.append(Trial(tuple(order[:kept]), missed, summary))
            bar.update(1)
            if not missed:
                return trials
    raise ParityError(
        f"even with {counts[-1]} of {len(order)} Linears in float, on the calibration "
        "images:\n  " + "\n  ".join(trials[-1].missed) + "\nAllow more of them in float (--set "
        f"float_budget=N) or ask for less; the worst are {', '.join(order[: counts[-1] + 3])}"
    )


def ranked_search(
    judge: Judge,
    variant: Variant,
    names: Sequence[str],
    task: Task,
    settings: SearchSettings,
    least: int = 0,
    costs: Mapping[str, float] = MappingProxyType({}),
) -> tuple[list[Share], list[Trial]]:
    """Measure what each Linear costs, keep the disproportionate in float, and more for the target.

    Args:
        judge: Compares.
        variant: Makes the graph.
        names: What may be quantized.
        task: Its journal keeps what was measured until the search has ended.
        settings: Of the search.
        least: How many stay in float at the first try, where the budget allows it.
        costs: Of each in float, in (0, 1]; 1 where nothing is said.

    Returns:
        The names by the noise they make, the worst first, and every try, the last one chosen.

    Raises:
        ParityError: The task's target does not hold within the budget.
    """
    journal = Journal(task.journal)
    images = settings.sensitivity_images
    ranked = shares(judge, variant, names, images, journal, task.progress)
    bargains = by_cost(ranked, costs)
    order = [share.name for share in bargains]
    prices = [costs.get(name, 1.0) for name in order]
    harmful = disproportionate(bargains, settings.float_share, costs)
    first = max(min(harmful, modest(prices)), least)
    counts = tries(prices, first, settings.float_budget)
    trials = search(judge, variant, order, task.parity_target, counts, task.progress)
    journal.finish()
    return ranked, trials


def record_of_search(task: Task, trials: Sequence[Trial]) -> dict[str, Any]:
    """Return what the manifest keeps of a search."""
    return {
        "parity_target": None if task.parity_target is None else task.parity_target.as_dict(),
        "trials": [
            {"kept_float": list(t.kept_float), "missed": list(t.missed), "summary": t.summary}
            for t in trials
        ],
    }


def record_of_cost(ranked: Sequence[Share], name: str) -> dict[str, float | None]:
    """Return what the manifest keeps of one Linear's cost; None for one that was not measured."""
    share = next((share for share in ranked if share.name == name), None)
    return {
        "noise": None if share is None else share.noise,
        "share": None if share is None else share.share,
    }
