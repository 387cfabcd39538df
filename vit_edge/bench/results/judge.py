"""`bench compare` and `bench check`: what two results say of each other.

Comparisons and the verdict are on stdout (with --json the comparisons alone); what is to be known
of them is on stderr.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vit_edge import cli
from vit_edge.bench.results import results, table
from vit_edge.bench.results.compare import (
    Comparison,
    Unpaired,
    alike,
    compared,
    digits,
    machine_differences,
    matched,
    same_machine,
)
from vit_edge.bench.results.percentiles import samples_needed
from vit_edge.bench.results.runs import Entry, Run
from vit_edge.errors import InputError, ParityError, UsageError


class RegressionError(ParityError):
    """Something got slower by more than was allowed, or was not measured any more."""


class Newest(NamedTuple):
    """The newest run of a file."""

    path: Path
    run: Run


def main(argv: list[str]) -> int:
    """Compare, or check, from the command line."""
    if argv[0] == "compare":
        return cli.guarded(lambda: _compare(compare_parser().parse_args(argv[1:])))
    return cli.guarded(lambda: _check(check_parser().parse_args(argv[1:])))


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


def compare_parser() -> cli.Parser:
    """The command line of compare."""
    parser = cli.Parser(
        "bench compare",
        "Compare the newest runs of two results, configuration by configuration; or, "
        "with one file, those configurations of its newest run that do the same work, paired by "
        "turn.",
        "example: vit-edge bench compare before.json after.json",
    )
    parser.add_argument("first", type=Path, metavar="A", help="results")
    parser.add_argument(
        "second", type=Path, nargs="?", metavar="B", help="results, compared with A"
    )
    return _with_common(parser)


def check_parser() -> cli.Parser:
    """The command line of check."""
    parser = cli.Parser(
        "bench check",
        "Exit with code 4 if the newest run is surely slower than the baseline by "
        "more than is allowed, in any configuration; or lacks one, or failed in it, or was "
        "interrupted.",
        "example: vit-edge bench check now.json --baseline main.json --max-regression 5%",
    )
    parser.add_argument("results", type=Path, metavar="RESULTS")
    parser.add_argument("--baseline", type=Path, required=True, metavar="FILE", help="results")
    parser.add_argument(
        "--max-regression", default="5%", metavar="SHARE", help="of the latency; default: 5%%"
    )
    parser.add_argument(
        "--across-machines",
        action="store_true",
        help="compare although the machines differ; what differs is told",
    )
    return _with_common(parser)


def _with_common(parser: cli.Parser) -> cli.Parser:
    parser.add_argument(
        "--percentile", type=float, default=0.5, metavar="Q", help="of latencies; default: 0.5"
    )
    cli.add_json(parser)
    return parser


def _compare(arguments: argparse.Namespace) -> int:
    first = Newest(arguments.first, results.last(arguments.first))
    if arguments.second is None:
        found = _among(first, arguments.percentile)
        _show(found, [str(one) for one in found], arguments.json)
        return 0
    second = Newest(arguments.second, results.last(arguments.second))
    found, others = _of_both(second, first, arguments.percentile)
    _tell_unpaired(others, second, first)
    _show(found, [one.of_files(second.path, first.path) for one in found], arguments.json)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    allowed = percent(arguments.max_regression)
    now = Newest(arguments.results, results.last(arguments.results))
    base = Newest(arguments.baseline, results.last(arguments.baseline))
    if not same_machine(now.run.facts, base.run.facts) and not arguments.across_machines:
        facts = "\n  ".join(machine_differences(now.run.facts, base.run.facts))
        raise InputError(
            f"{base.path} was measured on another machine:\n  {cli.printable(facts)}\nMeasure a "
            "baseline on this one, or insist with --across-machines"
        )
    found, others = _of_both(now, base, arguments.percentile)
    lost = [one for one in others if one.theirs is None]
    _tell_unpaired([one for one in others if one.theirs is not None], now, base)
    _show(found, [one.of_files(now.path, base.path) for one in found], arguments.json)
    slower = [one for one in found if one.ratio.low > 1 + allowed]
    for one in found:
        if one.ratio.low <= 1 + allowed < one.ratio.high:
            high = digits(one.ratio.high)
            _tell(f"open: {one.name}: up to {high}x is possible: measure more (--processes)")
    problems = [] if now.run.complete else ["its newest run was interrupted"]
    problems += [_line(f"{one.name}: {one.ours}") for one in lost]
    problems += [_line(one.of_files(now.path, base.path)) for one in slower]
    if problems:
        raise RegressionError(
            f"{now.path} falls behind {base.path}: {len(slower)} of {len(found)} configurations "
            f"got slower by more than {100 * allowed:g}%, {len(lost)} are lost:"
            + "".join(f"\n  {text}" for text in problems)
        )
    verdict = f"no regression over {100 * allowed:g}% in {len(found)} configurations"
    print(verdict, file=sys.stderr if arguments.json else sys.stdout)
    return 0


def _among(newest: Newest, percentile: float) -> list[Comparison]:
    """The configurations of one run that do the same work.

    Raises:
        InputError: No two of them do.
    """
    _tell_warnings([newest])
    run = newest.run
    entries = [entry for entry in newest.run.configurations if entry.measured]
    pairs = [
        (entry, other)
        for other, entry in itertools.combinations(entries, 2)
        if alike(other) == alike(entry)
    ]
    if not pairs:
        raise InputError(
            f"{newest.path}: its newest run has nothing to compare: no two configurations of the "
            "same variant, image size, batch, scenario and stage were measured"
        )
    _check_samples([(newest.path, entry) for pair in pairs for entry in pair], percentile)
    return [compared(entry, other, run, run, percentile) for entry, other in pairs]


def _of_both(
    now: Newest, base: Newest, percentile: float
) -> tuple[list[Comparison], list[Unpaired]]:
    """What both have measured, compared; and what one of them has not.

    Raises:
        InputError: No configuration is named in both.
    """
    _tell_warnings([now, base])
    pairs, others = matched(now.run, base.run)
    names = [{entry.name for entry in one.run.configurations} for one in (now, base)]
    if names[0].isdisjoint(names[1]):
        raise InputError(f"{now.path} and {base.path} have no configuration in common")
    paths = (now.path, base.path)
    _check_samples([one for pair in pairs for one in zip(paths, pair, strict=True)], percentile)
    found = [compared(*pair, now.run, base.run, percentile) for pair in pairs]
    for text in dict.fromkeys(text for one in found for text in one.differences):
        _tell(f"differs: {text}")
    _tell("one run each: what differs from hour to hour is not in the intervals")
    return found, others


def _check_samples(entries: Iterable[tuple[Path, Entry]], percentile: float) -> None:
    """Refuse a percentile that would be an extreme and no percentile.

    Raises:
        UsageError: It is none, or has too few samples; how many there are.
    """
    if not 0 < percentile < 1:
        raise UsageError(f"--percentile must lie between 0 and 1, not {percentile:g}")
    needed = samples_needed(percentile)
    counts = {f"{path}: {entry.name}": sum(map(len, entry.samples)) for path, entry in entries}
    few = [_line(f"{name}: {count:,}") for name, count in counts.items() if count < needed]
    if few:
        raise UsageError(
            f"percentile {percentile:g} needs {needed:,} samples over all processes; there are:"
            + "".join(f"\n  {text}" for text in few)
            + f"\nMeasure with --percentile {max(percentile, 1 - percentile):g}"
        )


def _tell_warnings(newest: Sequence[Newest]) -> None:
    for path, run in dict(newest).items():
        for text in table.warnings(run):
            _tell(f"{path}: {text}")


def _tell_unpaired(others: Sequence[Unpaired], now: Newest, base: Newest) -> None:
    for one in others:
        sides = [(now.path, one.ours), (base.path, one.theirs)]
        faults = "; ".join(f"in {path} {fault}" for path, fault in sides if fault is not None)
        _tell(f"not compared: {one.name}: {faults}")


def _show(found: Sequence[Comparison], lines: Sequence[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps([one.as_dict() for one in found], indent=2, allow_nan=False))
        return
    for line in lines:
        print(_line(line))


def _tell(text: str) -> None:
    print(_line(text), file=sys.stderr)


def _line(text: str) -> str:
    """Text with names of others', that shall neither steer the terminal nor pass for more lines."""
    return cli.printable(text.replace("\n", " "))
