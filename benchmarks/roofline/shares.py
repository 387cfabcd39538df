"""Each configuration's share of what the machine can reach, in arithmetic and in memory."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vit_edge import cli
from vit_edge.bench.results.compare import machine_differences, same_machine
from vit_edge.bench.results.runs import Entry, Facts, Run
from vit_edge.errors import InputError

# The kind of product that a precision's Linears are multiplied by. What is not here has no kernel
# of its own on CPUs (fp16 and fp8 are computed in float32), or is measured by nothing.
_PRODUCTS = {"fp32": "fp32", "bf16": "bf16", "int8": "int8", "int8-dynamic": "int8"}
# Of weights alone: accuracy level 4 rounds inputs to int8, 0 multiplies in float32.
_BY_ACCURACY_LEVEL = {"4": "int8", "0": "fp32"}


class Share(NamedTuple):
    """One configuration against the limits; None where there is nothing to compare with."""

    name: str
    kind: str | None  # of product, whose limit counts
    multiply_adds_per_s: float | None
    of_products: float | None
    weight_bytes_per_s: float  # each run reads all weights
    of_bandwidth: float | None


def shares_of(run: Run, roofline: Run) -> list[Share]:
    """How near each configuration of a run comes to the limits of its machine.

    By the median latency of one run, so for what is measured back to back. Multiply-adds are those
    of the whole model, see bench/run/operations.py. That flatters graphs that leave some out
    exactly, by 7 % of a 12-block model at most.

    Args:
        run: Of configurations.
        roofline: A run of `peaks.measure`.

    Raises:
        InputError: They are of different machines.
    """
    check_machine(run.facts, roofline.facts)
    limits = {} if roofline.roofline is None else roofline.roofline.limits
    each = (share_of(entry, limits) for entry in run.configurations)
    return [share for share in each if share is not None]


def check_machine(run: Facts, roofline: Facts) -> None:
    """Refuse shares of another machine's limits.

    Args:
        run: Of a run of configurations.
        roofline: Of where the limits are those of.

    Raises:
        InputError: The machines differ.
    """
    if not same_machine(run, roofline):
        facts = "\n  ".join(machine_differences(run, roofline))
        raise InputError(f"the roofline was measured on another machine:\n  {cli.printable(facts)}")


def rows(found: Sequence[Share]) -> list[tuple[str, ...]]:
    """Shares as a table."""

    def cells(rate: float | None, share: float | None) -> tuple[str, str]:
        return (
            "-" if rate is None else f"{rate / 1e9:.1f}",
            "-" if share is None else f"{share:.0%}",
        )

    heading = ("", "product", "GMAC/s", "of limit", "weights GB/s", "of limit")
    lines = [
        (
            share.name, share.kind or "-",
            *cells(share.multiply_adds_per_s, share.of_products),
            *cells(share.weight_bytes_per_s, share.of_bandwidth),
        )
        for share in found
    ]  # fmt: skip
    return [heading, *lines]


def product_kind(entry: Entry) -> str | None:
    """Whose limit counts: by the bundle's precision and what the runtime was told to compute in."""
    precision, facts = entry.model.precision, entry.facts
    if precision in ("int4", "int8-weights"):
        return _BY_ACCURACY_LEVEL.get(str(facts.get("accuracy_level")))
    if precision == "fp32" and str(facts.get("execution_precision")).startswith("bf16"):
        return "bf16"
    return _PRODUCTS.get(precision)


def share_of(entry: Entry, limits: Mapping[str, float | None]) -> Share | None:
    """How near one configuration comes to the limits of the machine that it was measured on.

    Args:
        entry: The configuration.
        limits: Those of `peaks.measure`.

    Returns:
        Its shares; None where its latency is not that of a model on a CPU.
    """
    if not _counts(entry):
        return None
    each = [statistics.median(taken) for taken in entry.samples if taken]
    runs_per_s = 1e3 / statistics.median(each)
    model = entry.model
    one_image = model.multiply_adds  # None: a graph from another exporter
    rate = None if one_image is None else one_image * entry.batch * runs_per_s
    kind = product_kind(entry)
    read = model.model_bytes * runs_per_s
    products = limits.get(kind) if kind is not None else None
    return Share(entry.name, kind, rate, _of(rate, products), read, _of(read, limits.get("read")))


def _counts(entry: Entry) -> bool:
    on_gpu = entry.backend == "trt" or str(entry.facts.get("provider", "CPU"))[:3] != "CPU"
    return entry.measured and entry.stage == "model" and not on_gpu


def _of(rate: float | None, limit: float | None) -> float | None:
    return None if rate is None or limit is None else rate / limit
