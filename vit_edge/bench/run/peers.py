"""Somebody else's way to run a model, that takes turns with ours in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from vit_edge.bench.results.runs import PEER_PREFIX
from vit_edge.bench.run.plan import Sampling

Measure = Callable[[Sampling, int, int], Mapping[str, Any]]  # as Peer.measure


PREFIX = PEER_PREFIX


class Peer(Protocol):
    """What takes turns; benchmarks/competitors.py has real ones."""

    def entry(self) -> dict[str, Any]:
        """What is kept of it, nothing measured yet: see `new_entry`."""
        ...

    def measure(self, sampling: Sampling, samples: int, turn: int, /) -> Mapping[str, Any]:
        """Measure in a fresh process.

        Args:
            sampling: How long.
            samples: How many at least.
            turn: Which process of it this is; in the first, 0, answers are compared, too.

        Returns:
            As session.measure; perhaps `model_bytes`, where they are not known before.

        Raises:
            Exception: It failed, or died.
        """
        ...


def new_entry(
    name: str, backend: str, batch: int, stage: str, bundle: Mapping[str, Any] | None
) -> dict[str, Any]:
    """An entry of a run, as those of configurations.

    Args:
        name: What it is called in tables.
        backend: PREFIX with a name, or one of ours.
        batch: Images of one run.
        stage: What a query covers, as of plan.Configuration.
        bundle: What it runs: variant, precision, model_bytes, image_hw, multiply_adds; its name and
            model_sha256 where it has any.
    """
    return {
        "name": name,
        "backend": backend,
        "options": {},
        "batch": batch,
        "scenario": "single-stream",
        "stage": stage,
        "queries_per_second": None,  # of a scenario that is no more; readers ask for it
        "bundle": bundle,
        "facts": {},
        "parity": None,
        "failed": None,
        "processes": [],
    }
