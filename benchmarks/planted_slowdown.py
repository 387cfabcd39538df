"""Is a slowdown found that is there, and none claimed that is too small to tell?

    python benchmarks/planted_slowdown.py BUNDLE --out FOLDER [--backend ort] [--threads 1]
        [--processes 10]

Measures a bundle as `vit_edge.bench` does, three times: as it is, and with runs that wait 1 % and
10 % longer, in a busy loop. Then says what `vit_edge.bench check` makes of the last two against the
first with --max-regression 5%. The results stay in FOLDER.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import script

from vit_edge.bench import __main__ as bench
from vit_edge.bench.results import results
from vit_edge.bench.run import runner, session
from vit_edge.bench.run.peers import new_entry
from vit_edge.bench.run.plan import Configuration, Sampling, Suite
from vit_edge.bundle import Bundle
from vit_edge.machine import child

SLOWDOWNS = (0.0, 0.01, 0.10)
_RUNS = 20  # whose median the wait is a share of, after as many to warm up


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--backend", default="ort")
    parser.add_argument("--threads", type=int, default=1, help="one, by default: the quietest")
    parser.add_argument("--processes", type=int, default=10)
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    """Measure all three, then let `check` judge."""
    configuration = Configuration(
        arguments.bundle, arguments.backend, {"threads": arguments.threads}
    )
    sampling = Sampling(arguments.processes)
    files = [arguments.out / f"slower-{share:.0%}.json" for share in SLOWDOWNS]
    for share, file in zip(SLOWDOWNS, files, strict=True):
        with results.appending(file) as save:
            slowed = Slowed(configuration, share)
            runner.run(Suite("planted", (), sampling), save, sys.argv, peers=[slowed])
    for file in files[1:]:
        print(f"{file.name}:", flush=True)
        code = bench.main(
            ["check", str(file), "--baseline", str(files[0]), "--max-regression", "5%"]
        )
        print(f"exit code {code}", flush=True)
    return 0


class Slowed:
    """A configuration whose runs take longer by a share."""

    def __init__(self, configuration: Configuration, share: float) -> None:
        self._configuration, self._share = configuration, share

    def entry(self) -> dict[str, Any]:
        bundle = Bundle.read(self._configuration.bundle)
        kept = {
            "name": self._configuration.bundle.name,
            "variant": bundle.manifest.variant,
            "precision": bundle.manifest.precision,
            "model_sha256": bundle.model_sha256,
            "model_bytes": bundle.model_bytes,
            "image_hw": list(bundle.manifest.preprocessing.crop_hw),
        }
        return new_entry(self._configuration.name, self._configuration.backend, 1, "model", kept)

    def measure(self, sampling: Sampling, samples: int, turn: int, /) -> dict[str, Any]:
        found: dict[str, Any] = child.call_in_child(
            "planted_slowdown:measure", self._share, self._configuration, sampling, samples,
            time.monotonic(), False,
        )  # fmt: skip
        return found


def measure(share: float, *arguments: Any) -> dict[str, Any]:
    """session.measure, its runs slowed down; in the child."""
    unslowed = session._query

    def query_of(*parts: Any) -> Callable[[], object]:
        query = unslowed(*parts)
        for _ in range(_RUNS):
            query()
        taken = [_seconds(query) for _ in range(_RUNS)]
        wait_s = share * statistics.median(taken)

        def slowed() -> object:
            answer = query()
            until = time.perf_counter() + wait_s
            while time.perf_counter() < until:
                pass
            return answer

        return slowed

    with mock.patch.object(session, "_query", query_of):
        return session.measure(*arguments)


def _seconds(query: Callable[[], object]) -> float:
    before = time.perf_counter()
    query()
    return time.perf_counter() - before


if __name__ == "__main__":
    sys.exit(main())
