"""vit-edge bench: what a bundle costs on the device this runs on."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from vit_edge import backends, cli
from vit_edge.bench.results import results, table
from vit_edge.bench.run import built
from vit_edge.bench.run.plan import (
    OFFLINE_BATCH,
    Sampling,
    Scenario,
    Stage,
    Suite,
    default_batch,
    product,
    read_suite,
)
from vit_edge.bench.run.runner import Save, Terminated, command_line, run, terminable
from vit_edge.bundle import Bundle
from vit_edge.errors import UsageError
from vit_edge.strict import json_from_record


def parser() -> cli.Parser:
    """The command line that measures."""
    parser = cli.Parser(
        "bench",
        "Measure bundles on the device this runs on: latency percentiles with "
        "intervals, throughput, cold start and memory. Each configuration runs in fresh processes "
        "that take turns with the others'; raw samples are kept.",
        "example: vit-edge bench bundles/base-patch16-224-int8 "
        "--backend ort,openvino --batch 1,8\n"
        "         vit-edge bench --suite benchmarks/suites/cpu.toml --out results.json\n"
        "         vit-edge bench compare A.json [B.json]                  (--help)\n"
        "         vit-edge bench check A.json --baseline B.json           (--help)\n"
        "         vit-edge bench report A.json --html report.html         (--help)",
    )
    parser.add_argument(
        "bundles", nargs="*", type=Path, metavar="BUNDLE", help="bundle directories"
    )
    parser.add_argument(
        "-b",
        "--backend",
        default=backends.AUTO,
        metavar="NAME,NAME",
        help=f"any {cli.backend_help()}",
    )
    parser.add_argument(
        "--batch", default=None, metavar="N,N", help="images of one run; default: 1"
    )
    parser.add_argument(
        "--scenario",
        choices=get_args(Scenario),
        default="single-stream",
        help="as MLPerf's: one query after another (the default); or all images at hand, where "
        f"images a second count, in runs of --batch (default {OFFLINE_BATCH})",
    )
    parser.add_argument(
        "--stage",
        default="model",
        metavar="NAME,NAME",
        help="model: pixels to logits (default); end-to-end: encoded images to labels",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="end-to-end: images; default: the package's"
    )
    parser.add_argument("--processes", type=int, default=Sampling.processes, metavar="N")
    parser.add_argument(
        "--percentile",
        type=float,
        default=Sampling.percentile,
        metavar="Q",
        help="the highest one that shall have enough samples, such as 0.99; default: 0.9",
    )
    parser.add_argument(
        "--strict", action="store_true", help="as many samples as MLPerf asks for (p90: 24,576)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=Sampling.at_least_s,
        metavar="S",
        help="of a process, least",
    )
    parser.add_argument(
        "--most-seconds", type=float, default=Sampling.most_s, metavar="S", help="of a process"
    )
    parser.add_argument("--suite", type=Path, metavar="FILE", help="what to measure, as TOML")
    parser.add_argument(
        "--bundles-dir",
        type=Path,
        default=Path("bundles"),
        metavar="DIR",
        help="where the bundles are that a suite names; default: ./bundles",
    )
    parser.add_argument(
        "--build",
        action="store_true",
        help="build every engine anew first, and keep what that took; default: what is there is "
        "used",
    )
    cli.add_out(parser, "FILE", "append the run to these results")
    cli.add_json(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, or compare what was measured."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] in (["compare"], ["check"]):
        from vit_edge.bench.results import judge

        return judge.main(words)
    if words[:1] == ["report"]:
        from vit_edge.bench.report import verb

        return verb.main(words[1:])
    return cli.guarded(lambda: _measure(parser().parse_args(words)))


def _measure(arguments: argparse.Namespace) -> int:
    suite = _suite(arguments)
    with contextlib.ExitStack() as stack:  # whether it can be saved is known before any work
        save: Save = lambda _: None  # noqa: E731
        if arguments.out is not None:
            save = stack.enter_context(results.appending(arguments.out))
        builds = _builds(suite) if arguments.build else {}
        measured = run(suite, save, command_line(), builds)
    if arguments.json:
        print(json.dumps(json_from_record(measured), indent=2))
    else:
        print(cli.table(table.rows(measured)))
        for line in table.warnings(measured):
            print(line, file=sys.stderr)
    failed = [entry.name for entry in measured.configurations if entry.failed is not None]
    if failed:
        print(f"failed: {cli.printable(', '.join(failed))}", file=sys.stderr)
    return 130 if not measured.complete else 4 if failed else 0


def _builds(suite: Suite) -> Mapping[str, built.Built]:
    """Build every engine; SIGTERM stops it as Ctrl-C does.

    Raises:
        KeyboardInterrupt: One of them came.
    """
    try:
        with terminable():
            return built.builds(suite.configurations)
    except Terminated:
        raise KeyboardInterrupt from None


def _suite(arguments: argparse.Namespace) -> Suite:
    if (arguments.suite is None) == (not arguments.bundles):
        raise UsageError("name bundles, or a suite (--suite); see --help")
    if arguments.suite is not None:
        return read_suite(arguments.suite, arguments.bundles_dir)
    stages = arguments.stage.split(",")
    if unknown := [stage for stage in stages if stage not in get_args(Stage)]:
        raise UsageError(f"--stage {unknown[0]}: expected {', '.join(get_args(Stage))}")
    suite = Suite(
        "command line",
        product(
            arguments.bundles,
            [(name, {}) for name in arguments.backend.split(",")],
            [default_batch(arguments.scenario)]
            if arguments.batch is None
            else cli.whole_numbers(arguments.batch, "--batch"),
            arguments.scenario,
            stages,
        ),
        Sampling(
            arguments.processes, arguments.percentile, arguments.strict, arguments.seconds,
            arguments.most_seconds, arguments.images,
        ),
    )  # fmt: skip
    suite.check()
    for path in arguments.bundles:
        Bundle.read(path)  # one that is none is told before any work
    return suite


if __name__ == "__main__":
    sys.exit(main())
