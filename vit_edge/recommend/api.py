"""Say which bundle to ship, and with which backend."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vit_edge import backends, cli
from vit_edge.bench.device import facts
from vit_edge.bench.results import results as result_files
from vit_edge.bench.run import runner
from vit_edge.bench.run.plan import Configuration, Sampling, Suite
from vit_edge.build import trial
from vit_edge.build.choose import Measured
from vit_edge.build.tune import check_same_model
from vit_edge.bundle import Bundle
from vit_edge.errors import UsageError
from vit_edge.parity.targets import Target, parse_target, target_from
from vit_edge.recommend.offers import Offer, Terms, from_results, offer
from vit_edge.recommend.verdict import Verdict, decide

_LOG = logging.getLogger(__name__)

_AT_LEAST_S = 1.0  # of timed queries in each process: half of what `bench` takes
_BARE = "top1_agreement"  # what a target without a name is about
_Path = str | os.PathLike[str]


def recommend(
    bundles: _Path | Bundle | Sequence[_Path | Bundle],
    *,
    results: _Path | Sequence[_Path] = (),
    max_latency_ms: float | None = None,
    percentile: float = 0.5,
    memory_limit: str | int | None = None,
    target: str | float | Target | None = None,
    golden: _Path | None = None,
    batch: int = 1,
    backend: str | Sequence[str] | None = None,
    processes: int = Sampling.processes,
    out: _Path | None = None,
) -> Verdict:
    """Find the fastest bundle that is surely (95 %) within what is asked, on this device.

    Args:
        bundles: The bundles of one model.
        results: What `bench` wrote; what they do not tell is built and measured.
        max_latency_ms: Of one batch.
        percentile: Of the latency.
        memory_limit: What the process may have at its peak: bytes, or a size such as "200MB".
        target: What the answers must surely reach, such as "top1_agreement=0.99"; a number
            alone is the least top-1 agreement.
        golden: Images that decide about answers.
        batch: Images of one run.
        backend: One name, or several; by default all that are installed.
        processes: Of each configuration that is measured.
        out: Results to append the measurements to.

    Returns:
        The verdict. Its `ship` is None where nothing is surely within what is asked.

    Raises:
        UsageError: What is asked means nothing, or two bundles cannot be told apart.
        BundleError: One is no bundle.
        KeyboardInterrupt: The measuring was interrupted.
    """
    terms = Terms(
        batch,
        percentile,
        max_latency_ms,
        cli.limit_bytes(memory_limit),
        _target(target),
    )
    if max_latency_ms is not None and not max_latency_ms > 0:
        raise UsageError(f"--max-latency-ms must be positive, not {max_latency_ms:g}")
    if not 0.5 <= percentile < 1:
        raise UsageError(f"--percentile must lie in 0.5..1, not {percentile:g}")
    several = [bundles] if isinstance(bundles, (str, os.PathLike, Bundle)) else bundles
    if not several:
        raise UsageError("name at least one bundle")
    opened = _bundles(several, terms)
    asked = backend.split(",") if isinstance(backend, str) else backend
    names = list(backends.installed()) if asked is None else list(asked)
    named = [results] if isinstance(results, (str, os.PathLike)) else results
    files, judged = [Path(file) for file in named], None if golden is None else Path(golden)
    known, left_out = from_results(files, opened, facts.run_facts(), terms)
    known = [one for one in known if asked is None or one.setup.backend in names]
    for text in left_out:
        _LOG.info("left out: %s", cli.printable(text))
    kept = None if out is None else Path(out)
    new = measure(opened, names, known, terms, processes=processes, out=kept)
    return decide([*known, *new], terms, judged)._replace(left_out=tuple(left_out))


def _target(asked: str | float | Target | None) -> Target | None:
    if isinstance(asked, (str, int, float)):
        return target_from_text(str(asked))
    return target_from(asked)


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
        save = (lambda _: None) if out is None else stack.enter_context(result_files.appending(out))
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


def _bundles(asked: Sequence[_Path | Bundle], terms: Terms) -> list[Bundle]:
    """Read the bundles.

    Raises:
        UsageError: The batch is over what one of them takes, two cannot be told apart, or they are
            not of one model.
    """
    bundles = [Bundle.read(bundle) for bundle in asked]
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
    check_same_model(bundles)
    return bundles
