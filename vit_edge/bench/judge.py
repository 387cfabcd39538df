"""`bench compare` and `bench check`: what two results say of each other."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_edge import cli
from vit_edge.bench import results
from vit_edge.bench.compare import (
    Comparison,
    compared,
    differences,
    matching,
    measured,
    same_machine,
)
from vit_edge.errors import InputError, ParityError, UsageError


class RegressionError(ParityError):
    """Something got slower by more than was allowed."""


def main(argv: list[str]) -> int:
    """Compare, or check, from the command line."""
    made = (_compare_parser if argv[0] == "compare" else _check_parser)()
    arguments = made.parse_args(argv[1:])
    return cli.guarded(lambda: (_compare if argv[0] == "compare" else _check)(arguments))


def percent(text: str) -> float:
    """Read 5% or 0.05.

    Raises:
        UsageError: It is neither.
    """
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise UsageError(f"{text!r} is no share; write 5% or 0.05")
    return number


def _compare_parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m vit_edge.bench compare",
        description="Compare the newest runs of two results, configuration by configuration; or, "
        "with one file, the configurations of its newest run among each other, paired by turn.",
        epilog="example: python -m vit_edge.bench compare before.json after.json",
    )
    made.add_argument("first", type=Path, metavar="A", help="results")
    made.add_argument("second", type=Path, nargs="?", metavar="B", help="results, compared with A")
    made.add_argument("--json", action="store_true", help="print the comparisons as JSON")
    return made


def _check_parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m vit_edge.bench check",
        description="Exit with code 4 if a configuration of the newest run is slower than in the "
        "baseline: significantly, and by more than is allowed.",
        epilog="example: python -m vit_edge.bench check now.json --baseline main.json "
        "--max-regression 5%%",
    )
    made.add_argument("results", type=Path, metavar="RESULTS")
    made.add_argument("--baseline", type=Path, required=True, metavar="FILE", help="results")
    made.add_argument(
        "--max-regression", default="5%", metavar="SHARE", help="of the latency; default: 5%%"
    )
    made.add_argument(
        "--across-machines",
        action="store_true",
        help="compare although the machines differ; what differs is told",
    )
    made.add_argument("--json", action="store_true", help="print the comparisons as JSON")
    return made


def _compare(arguments: argparse.Namespace) -> int:
    run = results.last(arguments.first)
    if arguments.second is None:
        entries = [entry for entry in run["configurations"] if measured(entry)]
        found = [
            compared(entry, other, run, run) for other, entry in itertools.combinations(entries, 2)
        ]
        if not found:
            raise InputError(f"{arguments.first}: its newest run has nothing to compare")
    else:
        newer = results.last(arguments.second)
        found = _of_both(newer, run, arguments.second, arguments.first)
        _tell_differences(newer, run)
    _show(found, arguments.json)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    allowed = percent(arguments.max_regression)
    run, base = results.last(arguments.results), results.last(arguments.baseline)
    if not same_machine(run, base) and not arguments.across_machines:
        told = "\n  ".join(differences(run, base, {"facts": {}}, {"facts": {}}))
        raise InputError(
            f"{arguments.baseline} was measured on another machine:\n  {told}\nMeasure a baseline "
            "on this one, or insist with --across-machines"
        )
    found = _of_both(run, base, arguments.results, arguments.baseline)
    _tell_differences(run, base)
    _show(found, arguments.json)
    slower = [one for one in found if one.decided and one.ratio.value > 1 + allowed]
    if slower:
        raise RegressionError(
            f"{len(slower)} of {len(found)} configurations got slower by more than {allowed:.0%}:"
            + "".join(f"\n  {one}" for one in slower)
        )
    unsure = [one for one in found if not one.decided and one.ratio.high > 1 + allowed]
    for one in unsure:
        print(f"open: {one.name}: measure more (--processes): {one.ratio.high:.3g}x is possible")
    print(f"no regression over {allowed:.0%} in {len(found)} configurations")
    return 0


def _of_both(
    run: Mapping[str, Any], base: Mapping[str, Any], first: Path, second: Path
) -> list[Comparison]:
    pairs = matching(run, base)
    if not pairs:
        raise InputError(f"{first} and {second} have no configuration in common")
    return [compared(entry, other, run, base) for entry, other in pairs]


def _tell_differences(run: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    for entry, other in matching(run, base):
        for text in differences(run, base, entry, other):
            print(f"differs: {text}")
        break


def _show(found: list[Comparison], as_json: bool) -> None:
    if as_json:
        print(json.dumps([one._asdict() for one in found], indent=2))
        return
    for one in found:
        print(one)
