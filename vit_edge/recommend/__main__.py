"""vit-edge recommend: which bundle to ship, and with which backend."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from vit_edge import backends, cli
from vit_edge.bench.device import facts
from vit_edge.bench.results import results
from vit_edge.bench.run import runner
from vit_edge.bench.run.plan import Configuration, Sampling, Suite
from vit_edge.build import trial
from vit_edge.build.choose import Measured
from vit_edge.bundle import Bundle
from vit_edge.errors import ParityError, UsageError
from vit_edge.parity.targets import Target, parse_target
from vit_edge.recommend.offers import Offer, Terms, from_results, offer
from vit_edge.recommend.verdict import decide

_LOG = logging.getLogger(__name__)

_AT_LEAST_S = 1.0  # of timed queries in each process: half of what `bench` takes
_BARE = "top1_agreement"  # what a target without a name is about


class NothingFitsError(ParityError):
    """No bundle is within all that was asked for."""


def measure(
    bundles: Sequence[Bundle],
    names: Sequence[str],
    known: Sequence[Offer],
    terms: Terms,
    *,
    processes: int,
    out: Path | None = None,
) -> list[Offer]:
    """Build and measure every setup of these bundles that is not known yet.

    Args:
        bundles: The bundles.
        names: Backends.
        known: What need not be measured. Where it has the first setup of a backend, which is its
            default, the whole backend counts as known; other options stand for themselves only.
        terms: What is asked.
        processes: Of each configuration.
        out: Results to append the run to.
    """
    missing = [
        (bundle, trial.build_missing(bundle, setup, None))
        for bundle in bundles
        for name in names
        for setup in _missing(bundle, name, known)
    ]
    offers = [Offer(bundle, setup) for bundle, setup in missing if setup.refused is not None]
    wanted = {
        Configuration(bundle.path, setup.backend, setup.options, terms.batch).name: (bundle, setup)
        for bundle, setup in missing
        if setup.refused is None
    }
    if not wanted:
        return offers
    suite = Suite(
        "recommend",
        tuple(one.configuration(terms.batch) for one in (Offer(*pair) for pair in wanted.values())),
        Sampling(processes, max(0.5, terms.percentile), at_least_s=_AT_LEAST_S),
    )
    with contextlib.ExitStack() as stack:
        save = (lambda _: None) if out is None else stack.enter_context(results.appending(out))
        run = runner.run(suite, save, ["vit-edge", "recommend", *sys.argv[1:]])
    if not run.complete:
        raise KeyboardInterrupt
    for warning in run.warnings:
        _LOG.warning("warning: %s", warning)
    for entry in run.configurations:
        bundle, setup = wanted[entry.name]
        if entry.failed is None:
            offers.append(offer(bundle, entry, run, terms))
        else:
            offers.append(Offer(bundle, dataclasses.replace(setup, refused=entry.failed)))
    return offers


def _missing(bundle: Bundle, name: str, known: Sequence[Offer]) -> list[Measured]:
    """The setups of a backend that are not known; none where its first one is."""
    there = {one.key for one in known}
    setups = trial.list_setups(bundle, [name])
    unknown = [setup for setup in setups if Offer(bundle, setup).key not in there]
    return unknown if setups[:1] == unknown[:1] else []


def target_from_text(text: str) -> Target:
    """Read NAME=NUMBER,..., or a number alone, which is about top-1 agreement.

    Raises:
        UsageError: It is neither.
    """
    return parse_target(text if "=" in text else f"{_BARE}={text}")


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
    terms = _terms(arguments)
    bundles = _bundles(arguments.bundles, terms)
    names = arguments.backend.split(",") if arguments.backend else list(backends.installed())
    known, left_out = from_results(arguments.results, bundles, facts.run_facts(), terms)
    known = [one for one in known if arguments.backend is None or one.setup.backend in names]
    for text in left_out:
        _LOG.info("left out: %s", cli.printable(text))
    new = measure(bundles, names, known, terms, processes=arguments.processes, out=arguments.out)
    verdict = decide([*known, *new], terms, arguments.golden)
    if arguments.json:
        print(json.dumps(verdict.as_dict() | {"left_out": left_out}, indent=2))
    else:
        print("\n".join(map(cli.printable, verdict.lines())))
    if verdict.ship is None:
        closest = f"; {verdict.others[0][0].name} came closest" if verdict.others else ""
        raise NothingFitsError(f"nothing is surely within what is asked{closest}")
    return 0


def _terms(arguments: argparse.Namespace) -> Terms:
    limit, target = arguments.memory_limit, arguments.parity_target
    if arguments.max_latency_ms is not None and not arguments.max_latency_ms > 0:
        raise UsageError(f"--max-latency-ms must be positive, not {arguments.max_latency_ms:g}")
    if not 0.5 <= arguments.percentile < 1:
        raise UsageError(f"--percentile must lie in 0.5..1, not {arguments.percentile:g}")
    return Terms(
        arguments.batch,
        arguments.percentile,
        arguments.max_latency_ms,
        None if limit is None else cli.size_bytes(limit),
        None if target is None else target_from_text(target),
    )


def _bundles(paths: Sequence[Path], terms: Terms) -> list[Bundle]:
    """Read the bundles.

    Raises:
        UsageError: The batch is over what one of them takes, or two cannot be told apart.
    """
    bundles = [Bundle.read(path) for path in paths]
    most = min(bundle.manifest.max_batch for bundle in bundles)
    if not 1 <= terms.batch <= most:
        raise UsageError(
            f"--batch must lie in 1..{most}, which all bundles take, not {terms.batch}"
        )
    for what, keys in {
        "the same model": [bundle.model_sha256 for bundle in bundles],
        "folders of one name": [bundle.path.resolve().name for bundle in bundles],
    }.items():
        if same := [str(b.path) for b, v in zip(bundles, keys, strict=True) if keys.count(v) > 1]:
            raise UsageError(f"{what}, which results do not tell apart: {', '.join(same)}")
    return bundles


if __name__ == "__main__":
    sys.exit(main())
