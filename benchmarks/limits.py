"""What this machine's arithmetic and memory can reach, and each configuration's share of it.

    python benchmarks/limits.py [--backend ort,openvino] [--out FILE] [--share-of RESULTS]

Products of float32, bfloat16 and int8 numbers, and reading memory, by the runtimes' own kernels:
see roofline/. --share-of names results of this machine and adds how near each configuration of
their newest run comes to these limits. --out appends a run that holds the limits to results.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

import script
from roofline import peaks, shares
from roofline.peaks import Effort
from roofline.runtimes import RUNTIMES

from vit_edge import backends, cli
from vit_edge.bench.device import facts
from vit_edge.bench.results import results
from vit_edge.bench.results.runs import Roofline
from vit_edge.errors import UsageError
from vit_edge.strict import json_from_record


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument(
        "--backend",
        metavar="NAME,NAME",
        help=f"of {', '.join(RUNTIMES)}; default: all that are installed",
    )
    parser.add_argument("--seconds", type=float, default=Effort().at_least_s, help="of each size")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append to these results")
    parser.add_argument(
        "--share-of", type=Path, metavar="FILE", help="results: their newest run's shares, too"
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON on stdout")
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    """Measure, append, print."""
    installed = [name for name in RUNTIMES if name in backends.installed()]
    names = installed if arguments.backend is None else arguments.backend.split(",")
    if not names:
        raise UsageError(f"none of {', '.join(RUNTIMES)} is installed; vit_edge.doctor says more")
    against = None if arguments.share_of is None else results.last(arguments.share_of)
    if against is not None:  # before minutes of measuring
        shares.check_machine(against.facts, facts.run_facts())
    with contextlib.ExitStack() as stack:
        out = arguments.out
        save = (lambda _: None) if out is None else stack.enter_context(results.appending(out))
        limits = peaks.measure(names, Effort(at_least_s=arguments.seconds), script.command_line())
        save(limits)
    each = [] if against is None else shares.shares_of(against, limits)
    if arguments.json:
        printed = {"run": json_from_record(limits), "shares": [share._asdict() for share in each]}
        print(json.dumps(printed, indent=2))
        return 0
    print(cli.table([] if limits.roofline is None else rows(limits.roofline)))
    if each:
        print(cli.printable(f"\n{cli.table(shares.rows(each))}"))
    for text in limits.warnings:
        print(f"warning: {text}", file=sys.stderr)
    return 0


def rows(roofline: Roofline) -> list[tuple[str, ...]]:
    """The peaks as a table: billions a second."""
    lines: list[tuple[str, ...]] = [("", "backend", "reached", "", "at", "")]
    for peak in roofline.peaks:
        best = roofline.limits[peak.kind] == peak.per_second
        unit = "GB/s" if peak.kind == "read" else "GMAC/s"
        size = " x ".join(map(str, peak.size))
        rate = f"{peak.per_second / 1e9:.1f}"
        lines.append((peak.kind, peak.backend, rate, unit, size, "limit" if best else ""))
    missing = [kind for kind, limit in roofline.limits.items() if limit is None]
    return lines + [(kind, "-", "none has it", "", "", "") for kind in missing]


if __name__ == "__main__":
    sys.exit(main())
