"""Each configuration's share of what the machine can reach, in arithmetic and in memory."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vit_edge import cli
from vit_edge.bench.results.compare import differences, measured, same_machine
from vit_edge.bench.results.results import samples
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


def shares_of(run: Mapping[str, Any], roofline: Mapping[str, Any]) -> list[Share]:
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
    check_machine(run, roofline)
    limits = roofline["roofline"]["limits"]
    each = (share_of(entry, limits) for entry in run["configurations"])
    return [share for share in each if share is not None]


def check_machine(run: Mapping[str, Any], roofline: Mapping[str, Any]) -> None:
    """Refuse shares of another machine's limits.

    Args:
        run: Of configurations.
        roofline: The facts of where the limits are those of, as `facts`.

    Raises:
        InputError: The machines differ.
    """
    if not same_machine(run, roofline):
        told = "\n  ".join(differences(run, roofline, {"facts": {}}, {"facts": {}}))
        raise InputError(f"the roofline was measured on another machine:\n  {cli.printable(told)}")


def rows(found: Sequence[Share]) -> list[tuple[str, ...]]:
    """Shares as a table."""

    def told(rate: float | None, share: float | None) -> tuple[str, str]:
        return (
            "-" if rate is None else f"{rate / 1e9:.1f}",
            "-" if share is None else f"{share:.0%}",
        )

    heading = ("", "product", "GMAC/s", "of limit", "weights GB/s", "of limit")
    lines = [
        (
            share.name, share.kind or "-",
            *told(share.multiply_adds_per_s, share.of_products),
            *told(share.weight_bytes_per_s, share.of_bandwidth),
        )
        for share in found
    ]  # fmt: skip
    return [heading, *lines]


def product_kind(entry: Mapping[str, Any]) -> str | None:
    """Whose limit counts: by the bundle's precision and what the runtime was told to compute in."""
    precision, facts = entry["bundle"]["precision"], entry["facts"]
    if precision in ("int4", "int8-weights"):
        return _BY_ACCURACY_LEVEL.get(facts.get("accuracy_level"))
    if precision == "fp32" and str(facts.get("execution_precision")).startswith("bf16"):
        return "bf16"
    return _PRODUCTS.get(precision)


def share_of(entry: Mapping[str, Any], limits: Mapping[str, float | None]) -> Share | None:
    """How near one configuration comes to the limits of the machine that it was measured on.

    Args:
        entry: The configuration.
        limits: Those of `peaks.measure`.

    Returns:
        Its shares; None where its latency is not that of a model on a CPU.
    """
    if not _counts(entry):
        return None
    each = [statistics.median(taken) for taken in samples(entry) if taken]
    runs_per_s = 1e3 / statistics.median(each)
    bundle = entry["bundle"]
    one_image = bundle.get("multiply_adds")  # None: a graph from another exporter
    rate = None if one_image is None else one_image * entry["batch"] * runs_per_s
    kind = product_kind(entry)
    read = bundle["model_bytes"] * runs_per_s
    products = limits.get(kind) if kind is not None else None
    return Share(
        entry["name"], kind, rate, _of(rate, products), read, _of(read, limits.get("read"))
    )


def _counts(entry: Mapping[str, Any]) -> bool:
    on_gpu = entry["backend"] == "trt" or str(entry["facts"].get("provider", "CPU"))[:3] != "CPU"
    return measured(entry) and entry["stage"] == "model" and not on_gpu and bool(entry["bundle"])


def _of(rate: float | None, limit: float | None) -> float | None:
    return None if rate is None or limit is None else rate / limit
