"""Somebody else's way to run a model, that takes turns with ours in one run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from vit_edge.bench.percentiles import samples_needed
from vit_edge.bench.plan import Sampling
from vit_edge.errors import VitEdgeError

_LOG = logging.getLogger(__name__)


class Peer(Protocol):
    """What takes turns; benchmarks/competitors.py has real ones."""

    def entry(self) -> dict[str, Any]:
        """What is kept of it, nothing measured yet: see `new_entry`."""
        ...

    def measure(self, sampling: Sampling, samples: int, *, check: bool) -> dict[str, Any]:
        """Measure in a fresh process.

        Args:
            sampling: How long.
            samples: How many at least.
            check: Compare the answers with the reference's.

        Returns:
            As session.measure.

        Raises:
            VitEdgeError: It failed, or died.
        """
        ...


def new_entry(
    name: str, backend: str, batch: int, stage: str, bundle: Mapping[str, Any] | None
) -> dict[str, Any]:
    """An entry of a run, as those of configurations.

    Args:
        name: What it is called in tables.
        backend: "peer:NAME".
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
        "queries_per_second": None,
        "bundle": bundle,
        "facts": {},
        "parity": None,
        "failed": None,
        "processes": [],
    }


def take_turn(peer: Peer, entry: dict[str, Any], sampling: Sampling, turn: int) -> None:
    """One process of a peer; what it came to is put into its entry, a failure too."""
    _LOG.info("%d of %d: %s", turn + 1, sampling.processes, entry["name"])
    needed = samples_needed(sampling.percentile, strict=sampling.strict)
    try:
        value = peer.measure(sampling, -(-needed // sampling.processes), check=turn == 0)
    except VitEdgeError as error:
        entry["failed"] = str(error).partition("\n")[0]
        _LOG.warning("%s: %s", entry["name"], entry["failed"])
        return
    entry["facts"] = value.pop("facts")
    entry["parity"] = value.pop("parity") or entry["parity"]
    entry["processes"].append(value)
