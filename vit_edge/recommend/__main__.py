"""vit-edge recommend: which bundle to ship, and with which backend."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from vit_edge import backends, cli
from vit_edge.bench.run.plan import Sampling
from vit_edge.errors import ParityError
from vit_edge.recommend.api import recommend


class NothingFitsError(ParityError):
    """No bundle is within all that was asked for."""


def parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "recommend",
        "Say which bundle to ship with which backend on the device this runs on: the "
        "fastest that is surely (95 %) within what is asked, the next one, and why the others "
        "lost. What results do not tell is built and measured. Exit code 4: nothing fits, or it "
        "cannot be proven with the images at hand.",
        "example: vit-edge recommend bundles/base-patch16-224-* "
        "--max-latency-ms 50 --memory-limit 200MB --target 0.99 --golden mine.npz",
    )
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--results",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="what `bench --out` wrote; entries of other models, machines or runtimes are left "
        "out, and named",
    )
    parser.add_argument("--max-latency-ms", type=float, metavar="MS", help="of one batch")
    parser.add_argument(
        "--percentile", type=float, default=0.5, metavar="Q", help="of the latency; default: 0.5"
    )
    parser.add_argument(
        "--memory-limit",
        metavar="SIZE",
        help="what the process may have at its peak, mapped files included: 200MB",
    )
    parser.rename("--parity-target", "--target")
    parser.add_argument(
        "--target",
        dest="parity_target",
        metavar="NUMBER|NAME=NUMBER,...",
        help="what the answers must surely reach; a number alone is the least top-1 agreement",
    )
    parser.add_argument(
        "--golden",
        type=Path,
        metavar="FILE",
        help="images that decide about answers (vit-edge parity record): a bundle's own "
        "16 cannot prove a rate of 0.99, 381 can",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="default: 1")
    names = ", ".join(backends.runtimes())
    parser.add_argument(
        "-b", "--backend", metavar="NAME,NAME", help=f"of {names}; default: all that are installed"
    )
    parser.add_argument("--processes", type=int, default=Sampling.processes, metavar="N")
    cli.add_out(parser, "FILE", "append the measurements to it")
    cli.add_json(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Recommend from the command line."""
    return cli.guarded(lambda: _run(parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    verdict = recommend(
        arguments.bundles,
        results=arguments.results,
        max_latency_ms=arguments.max_latency_ms,
        percentile=arguments.percentile,
        memory_limit=arguments.memory_limit,
        target=arguments.parity_target,
        golden=arguments.golden,
        batch=arguments.batch,
        backend=arguments.backend,
        processes=arguments.processes,
        out=arguments.out,
    )
    if arguments.json:
        print(json.dumps(verdict.as_dict(), indent=2))
    else:
        print("\n".join(map(cli.printable, verdict.lines())))
    if verdict.ship is None:
        closest = f"; {verdict.others[0][0].name} came closest" if verdict.others else ""
        raise NothingFitsError(f"nothing is surely within what is asked{closest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
