"""vit-edge bench: what a bundle costs on the device this runs on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import get_args

from vit_edge import backends, cli
from vit_edge.bench.api import bench
from vit_edge.bench.results import table
from vit_edge.bench.run.plan import OFFLINE_BATCH, Sampling, Scenario, read_suite
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
    measured = bench(
        arguments.bundles,
        backend=arguments.backend,
        batch=None
        if arguments.batch is None
        else cli.whole_numbers(arguments.batch, "--batch"),
        scenario=arguments.scenario,
        stage=arguments.stage,
        sampling=Sampling(
            arguments.processes, arguments.percentile, arguments.strict, arguments.seconds,
            arguments.most_seconds, arguments.images,
        ),
        suite=None
        if arguments.suite is None
        else read_suite(arguments.suite, arguments.bundles_dir),
        build=arguments.build,
        out=arguments.out,
    )  # fmt: skip
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


if __name__ == "__main__":
    sys.exit(main())
