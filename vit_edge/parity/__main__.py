"""vit-edge parity: does this backend, here, still compute the reference's answers?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from vit_edge import backends, cli
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.errors import VitEdgeError
from vit_edge.parity.api import parity
from vit_edge.parity.limits import Limit
from vit_edge.parity.result import (
    DIED,
    FAIL,
    INCONCLUSIVE,
    PASS,
    Memory,
    Result,
    Run,
    exit_code,
)
from vit_edge.parity.tables import exact_table, statistics_table
from vit_edge.parity.targets import STATISTICS, Target, parse_target
from vit_edge.report.write import write_report
from vit_edge.strict import json_from_record

_VERDICTS = {
    PASS: "parity holds",
    FAIL: "parity FAILED",
    INCONCLUSIVE: "parity INCONCLUSIVE",
    DIED: "parity FAILED: it died",
}


def parser() -> cli.Parser:
    """The command line."""
    options = cli.bundle_parser(
        "parity",
        "Compare backends with the reference's answers in golden.npz, each in a process of its "
        "own: the preprocessing of its probe files, every output at several batch sizes, and "
        "whether an image's answer depends on when and beside what it is asked.",
        "vit-edge parity bundles/base-patch16-224-fp32 --backend ort,openvino\n"
        "         vit-edge parity bundles/base-patch16-224-int8 --html parity.html\n"
        "         vit-edge parity bundles/cifar10 --against-url http://localhost:8000\n"
        "         vit-edge parity record BUNDLE --images DIR --out FILE   (--help)\n"
        "         vit-edge parity merge a.json b.json                     (--help)\n"
        "exit codes: 0 within the limits (or inconclusive, without --strict), 4 not",
    )
    options.add_argument(
        "-b", "--backend", default=backends.AUTO, metavar="NAME,...", help=cli.backend_help()
    )
    options.add_argument(
        "--against-url",
        metavar="URL",
        help="ask a running server of KServe's protocol instead, such as Triton or MLServer: "
        "http://HOST:PORT, or with /v2/models/NAME behind it",
    )
    options.add_argument(
        "--golden", type=Path, metavar="FILE", help="another golden file than the bundle's own"
    )
    options.add_argument(
        "--against",
        type=Path,
        metavar="BUNDLE2",
        help="take this bundle's answers for the reference, instead of those in the golden file",
    )
    options.add_argument(
        "--target",
        metavar="NAME=NUMBER,...",
        help="what the logits must reach besides the precision's limit; of "
        + ", ".join(STATISTICS),
    )
    options.add_argument(
        "--localize",
        action="store_true",
        help="find the block and the step in it where what fails leaves the fp32 bundle that "
        "--against names",
    )
    options.add_argument(
        "--memory-limit", metavar="SIZE", help="of each backend's process, such as 400MB"
    )
    options.add_argument(
        "--timeout", type=float, metavar="S", help="seconds for each backend's process"
    )
    options.add_argument(
        "--strict", action="store_true", help="exit with 4 where the images do not decide"
    )
    cli.add_out(options, "FILE", "write the result as JSON")
    options.rename("--save", "--out")
    options.add_argument("--html", type=Path, metavar="FILE", help="write a report to look at")
    options.add_argument(
        "--save-polygraphy",
        type=Path,
        metavar="FILE",
        help="write the reference's answers for `polygraphy run --load-outputs`, and beside them "
        "the inputs for --load-inputs",
    )
    options.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML, for CI")
    return options


def main(argv: list[str] | None = None) -> int:
    """Compare from the command line."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["record"]:
        from vit_edge.parity import record

        return record.main(words[1:])
    if words[:1] == ["merge"]:
        from vit_edge.parity.report import merge

        return merge.main(words[1:])
    return cli.guarded(lambda: _run(parser().parse_args(words)))


def _run(arguments: argparse.Namespace) -> int:
    target = None if arguments.target is None else parse_target(arguments.target)
    bundle = Bundle.read(arguments.bundle)
    result = parity(
        bundle,
        backend=arguments.backend,
        against_url=arguments.against_url,
        golden=arguments.golden,
        against=arguments.against,
        target=target,
        localize=arguments.localize,
        memory_limit=arguments.memory_limit,
        timeout_s=arguments.timeout,
    )
    if arguments.json:
        print(_json(result))
    else:
        for entry in result.runs:
            for line in _run_lines(bundle, result, entry, target):
                print(cli.printable(line))
    code = exit_code([result], strict=arguments.strict)
    try:
        _write_reports(arguments, bundle, result)
    except VitEdgeError as error:  # a verdict counts more than a report that cannot be written
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return code or error.exit_code
    return code


def _write_reports(arguments: argparse.Namespace, bundle: Bundle, result: Result) -> None:
    golden = arguments.golden or bundle.golden_path
    if arguments.out is not None:
        write_report(arguments.out, f"{_json(result)}\n")
    if arguments.junit is not None:
        from vit_edge.parity.report.junit import junit_xml

        text = junit_xml([result], strict=arguments.strict)
        write_report(arguments.junit, text)
    if arguments.html is not None:
        from vit_edge.parity.report.html import html_page
        from vit_edge.parity.report.pictures import pictures_of

        page = html_page([result], pictures=pictures_of(golden, result), labels=bundle.labels)
        write_report(arguments.html, page)
    if arguments.save_polygraphy is not None:
        from vit_edge.parity import polygraphy

        with Golden(golden) as opened:
            polygraphy.save_golden(arguments.save_polygraphy, opened, bundle.manifest)


def _json(result: Result) -> str:
    return json.dumps(json_from_record(result), indent=2, allow_nan=False)


def _limit(entry: Run) -> Limit:
    """The limit that a run was held against."""
    stored = entry.limit
    logits, others = Target(tuple(stored.logits.items())), Target(tuple(stored.others.items()))
    return Limit(logits, others, stored.reason, stored.top1_agreement_surely_below)


def _run_lines(bundle: Bundle, result: Result, entry: Run, target: Target | None) -> Iterator[str]:
    """One backend's findings as text."""
    facts = entry.facts
    if entry.death is not None:
        yield f"{bundle.path} on {entry.name}"
        yield f"died           {entry.death}"
    else:
        yield f"{bundle.path} on {facts['runtime']}, {facts['device']}"
        yield f"engine         {facts['engine']}"
        yield f"answers        {result.golden.images} images against {result.reference}"
    if entry.simulated is not None:
        yield f"simulated      {entry.simulated}"
    for check in entry.checks:
        yield f"{check.name:<14} {check.detail}"
    yield from _memory_line(entry.memory)
    rows = entry.comparisons
    if not rows:
        yield _VERDICTS[entry.verdict]
        return
    if target is None and all(row.summary["allowed_relative"] is not None for row in rows):
        yield from exact_table(rows)
    else:
        yield from statistics_table(rows, _limit(entry), target)
    yield from (f"FAILED: {problem}" for problem in entry.problems)
    yield from (f"OPEN: {question}" for question in entry.open_questions)
    if entry.localized is not None:
        yield from (f"{block.tap:<32} {block.sqnr_db:>6.1f} dB" for block in entry.blocks or ())
        yield f"LOCALIZED: {entry.localized}"
    yield _VERDICTS[entry.verdict]


def _memory_line(memory: Memory) -> Iterator[str]:
    if not memory.peak_rss_bytes:
        return
    own, everything = (memory.peak_anonymous_bytes or 0) / 1e6, memory.peak_rss_bytes / 1e6
    limit = memory.limit_bytes
    kept = "" if limit is None else f"; limit {limit / 1e6:.0f} MB, kept by {memory.limited_by}"
    yield f"memory         {own:.0f} MB of its own, {everything:.0f} MB with its files{kept}"


if __name__ == "__main__":
    sys.exit(main())
