"""The step of an export that merges tokens, and what it does to the answers.

The bundle's reference is the model that merges. Against it every backend is compared, there and on
the device. What merging itself changes is measured here, once, against the model without it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vit_edge.bundle.architecture import Architecture
from vit_edge.bundle.manifest import Manifest, Scores
from vit_edge.errors import ParityError
from vit_edge.export.draft import load_images, progress, reference_answers
from vit_edge.export.golden_set import GoldenSet
from vit_edge.export.plan import Plan
from vit_edge.export.recipe import judged_scores, target_for
from vit_edge.export.schedule import (
    BATCH,
    DEFAULT_TARGET,
    Merging,
    choose,
    shared,
    tries_images,
)
from vit_edge.export.source import CheckpointSource, Source
from vit_edge.parity.compare import Runs, as_json, compare_answers
from vit_edge.parity.limits import merging_limit
from vit_edge.parity.logits import LogitComparison
from vit_edge.parity.statistics import Difference
from vit_edge.parity.targets import LOGITS, Target, parse_target

_LOG = logging.getLogger(__name__)

# Of the blocks' tokens: what merging has to save at least to pay for its own steps. Two a block of
# vit-cifar10 save 13 % of them and no time (benchmarks/merging.py).
LEAST_SAVED = 0.14
# Products of integers are cheap, and merging's own steps stay float: a fifth saved there takes 0.98
# of the time, and DINOv2-small's sixth 0.94.
LEAST_SAVED_INT8 = 0.22


@dataclass(frozen=True)
class Merged:
    """What was merged, and what that changed."""

    record: Mapping[str, Any]  # for parity.json
    unmerged: GoldenSet | None  # answers without it; None: a bundle was lowered that has only that

    def judge(
        self, backend: Runs, manifest: Manifest, target: Target | None, facts: Mapping[str, str]
    ) -> dict[str, Any]:
        """Compare the finished graph with the model that does not merge.

        Returns:
            The record, with what was found.

        Raises:
            ParityError: More changed than is allowed, or than the target does.
        """
        if self.unmerged is None:
            return dict(self.record)
        limit = merging_limit(judged_scores(manifest))
        comparison = compare_answers(
            backend,
            self.unmerged,
            manifest,
            batches=[manifest.max_batch],
            limit=limit,
            target=target,
        )
        if comparison.problems:
            raise ParityError(
                "with its tokens merged the model answers something else than without; nothing "
                "was published:\n  " + "\n  ".join(comparison.problems)
            )
        return {**self.record, "against_unmerged": as_json(comparison, facts)}


def merge_tokens(
    plan: Plan, merging: Merging, source: Source, golden: GoldenSet, scratch: Path
) -> tuple[GoldenSet, Merged]:
    """Let the source merge tokens, and measure what that changes.

    Args:
        plan: Of the export.
        merging: How many, or that it is to be chosen.
        source: The model, merging nothing; it does from here on.
        golden: The model's answers before.
        scratch: A folder for images and answers.

    Returns:
        The answers with merging, and what they are worth.

    Raises:
        UsageError: It cannot merge so many, or no schedule holds the target.
    """
    if not isinstance(source, CheckpointSource):
        raise AssertionError("the plan refuses other exporters' graphs")
    architecture = source.vit.architecture
    chosen: dict[str, Any] = {}
    if merging.counts is None:
        counts, chosen = _choose(plan, source, scratch)
    else:
        counts = merging.resolved(architecture)
    source.merge_tokens(counts)
    saved = saved_part(source.vit.architecture)
    _LOG.info("merging %d of %d patches: %s", sum(counts), architecture.patches, list(counts))
    integers = plan.recipe.precision in ("int8", "int8-dynamic")
    if saved < (LEAST_SAVED_INT8 if integers else LEAST_SAVED):
        _LOG.warning(
            "merging saves %.0f %% of the blocks' work, and its own steps take about as much: "
            "measure whether it pays, vit-edge bench",
            100 * saved,
        )
    merged = reference_answers(source, golden, scratch)
    record = {
        "asked": plan.recipe.merge_tokens,
        "merged_tokens": list(counts),
        "tokens": list(source.vit.architecture.block_tokens),
        "saved_part_of_blocks": round(saved, 4),
        "by_merging_alone": _changes(merged, golden, source.facts.scores),
        **chosen,
    }
    return merged, Merged(record, golden)


def saved_part(architecture: Architecture) -> float:
    """The part of the blocks' work on tokens that merging saves; of attention's squares none."""
    entering = architecture.block_tokens
    return 1 - sum(entering[1:]) / (architecture.depth * architecture.tokens)


def _choose(
    plan: Plan, source: CheckpointSource, scratch: Path
) -> tuple[tuple[int, ...], dict[str, Any]]:
    asked = target_for(plan.recipe, source.facts) or Target(())
    target = asked.on_calibration()
    if asked.bounds and not target.bounds:
        target = parse_target(DEFAULT_TARGET)
        _LOG.info("the schedule is chosen by %s; the gate holds the rest", DEFAULT_TARGET)
    if plan.quantizer is not None:
        target = shared(target)
    if plan.calibration is None:
        raise AssertionError("the plan asks for images")
    calibration = load_images(plan.calibration, source.facts.preprocessing, scratch)
    pixels = list(calibration.batches(BATCH))
    with progress("merging", tries_images(source.vit.architecture, len(calibration))) as bar:
        found = choose(source.vit, pixels, target, judged_scores(source.facts), bar.update)
    record = {
        "target": target.as_dict(),
        "calibration": calibration.as_dict(),
        "on_calibration": found.summary,
    }
    return found.counts, {"chosen": record}


def _changes(merged: GoldenSet, golden: GoldenSet, scores: Scores) -> dict[str, Any]:
    """Compare the reference's answers with and without merging, output by output."""
    found = {}
    for output, expected in golden.expected.items():
        indices = np.arange(len(golden))
        if output == LOGITS:
            logits = LogitComparison(scores)
            logits.add(indices, merged.expected[output], expected, golden.classes)
            found[output] = logits.summary()
        else:
            plain = Difference()
            plain.add(indices, merged.expected[output], expected)
            found[output] = plain.summary()
    return found
