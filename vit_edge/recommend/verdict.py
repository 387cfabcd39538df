"""The verdict on offers: which one to ship, the next one, and why each of the others lost."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vit_edge.bench.results.compare import compared
from vit_edge.build.choose import Measured, rank
from vit_edge.errors import VitEdgeError
from vit_edge.machine import child
from vit_edge.recommend.offers import Offer, Terms

_LOG = logging.getLogger(__name__)

_JUDGE_TIMEOUT_S = 3600.0  # thousands of images on a small board


class Verdict(NamedTuple):
    """The bundle to ship, and why."""

    ship: Offer | None
    runner_up: Offer | None
    others: tuple[tuple[Offer, str], ...]  # why each lost
    terms: Terms
    left_out: tuple[str, ...] = ()  # entries of results that say nothing here, with the reason

    def lines(self) -> list[str]:
        """The answer, as text."""
        lines = []
        if self.ship is not None:
            lines.append(f"ship       {self.ship.name}: {_merits(self.ship, self.terms)}")
        if self.ship is not None and self.runner_up is not None:
            lines.append(
                f"runner-up  {self.runner_up.name}: {_merits(self.runner_up, self.terms)}; "
                f"{_against(self.runner_up, self.ship)}"
            )
        return lines + [f"lost       {one.name}: {reason}" for one, reason in self.others]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        terms = self.terms
        return {
            "terms": terms._asdict() | {"target": terms.target and terms.target.as_dict()},
            "ship": _as_dict(self.ship),
            "runner_up": _as_dict(self.runner_up),
            "lost": [(_as_dict(one) or {}) | {"why": reason} for one, reason in self.others],
            "left_out": list(self.left_out),
        }


def decide(offers: Sequence[Offer], terms: Terms, golden: Path | None = None) -> Verdict:
    """Pick the fastest offer that is surely within the terms, and the next one.

    Args:
        offers: What was measured.
        terms: What is asked.
        golden: Images with the reference's answers that decide about answers, in place of what was
            compared when it was measured. They are tried from the fastest offer on, until two hold.

    Returns:
        The verdict; `ship` is None where nothing fits.
    """
    known = list(offers)
    order = rank([one.setup for one in known], terms.batch)
    fit: list[int] = []
    seen: set[int] = set()
    for index in order:
        seen.add(index)
        if golden is not None:
            known[index] = _judge(known[index], golden, terms)
        if known[index].setup.usable and not known[index].doubts:
            fit.append(index)
        if len(fit) == 2:
            break
    best, second = ([known[index] for index in fit] + [None, None])[:2]
    lost = [index for index in range(len(known)) if index not in fit]
    lost.sort(key=lambda index: (len(known[index].setup.faults), _latency_ms(known[index], terms)))
    others = tuple(
        (known[index], _why(known[index], best, terms, passed_over=index not in seen))
        for index in lost
    )
    return Verdict(best, second, others, terms)


def _judge(one: Offer, golden: Path, terms: Terms) -> Offer:
    """An offer, judged by other images."""
    _LOG.info("comparing the answers of %s on %s", one.name, golden)
    try:
        parity = child.call_in_child(
            "vit_edge.bench.run.session:judge",
            one.configuration(terms.batch),
            golden,
            timeout_s=_JUDGE_TIMEOUT_S,
        )
    except VitEdgeError as error:
        setup = dataclasses.replace(one.setup, refused=str(error).partition("\n")[0])
        return dataclasses.replace(one, setup=setup)
    return one.with_parity(parity, terms.target)


def _why(one: Offer, best: Offer | None, terms: Terms, *, passed_over: bool) -> str:
    """Say why an offer lost; what was passed over need not have been looked at closer."""
    if one.setup.faults:
        return "; ".join(one.setup.faults)
    if one.doubts and not passed_over:
        return f"INCONCLUSIVE: {'; '.join(one.doubts)}"
    return f"{_merits(one, terms)}; {_against(one, best)}"


def _merits(one: Offer, terms: Terms) -> str:
    merits = [
        f"{terms.percentile_name} {_latency_ms(one, terms):.4g} ms at most",
        f"{one.setup.peak_rss_bytes / 1e6:.0f} MB at most",
        one.proven,
    ]
    return ", ".join(text for text in merits if text)


def _against(one: Offer, best: Offer | None) -> str:
    """Say how much slower it is than the best one, by the measured medians."""
    if best is None:
        return "slower"
    if one.entry is None or one.run is None or best.entry is None or best.run is None:
        return "slower"
    comparison = compared(one.entry, best.entry, one.run, best.run)
    value, low, high = comparison.ratio
    text = f"{value:.3g}x its median latency, 95 % {low:.3g}-{high:.3g}"
    return text if comparison.decided else f"cannot tell which is faster ({text})"


def _latency_ms(one: Offer, terms: Terms) -> float:
    return one.setup.latency_ms.get(terms.batch, math.inf)


def _as_dict(one: Offer | None) -> dict[str, Any] | None:
    if one is None:
        return None
    setup: Measured = one.setup
    return {
        "bundle": str(one.bundle.path),
        "backend": setup.backend,
        "options": dict(setup.options),
        "latency_at_most_ms": next(iter(setup.latency_ms.values()), None),
        "memory_at_most_bytes": setup.peak_rss_bytes or None,
        "facts": dict(setup.facts),
        "faults": setup.faults,
        "doubts": list(one.doubts),
        "proven": one.proven,
    }
