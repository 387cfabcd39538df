"""A ViT on this CPU against its competitors: every bar, in one run that takes turns.

    python benchmarks/cpu.py --work DIR [--variant base-patch16-224] [--rounds 25] [--only 1,4]

Sets up what it needs below DIR the first time: an environment with the competitors (several GB;
--peers-python and --timm-python take others), bundles with seeded weights, and the competitors'
models with the same weights (peers/cpu_models.py). Every way to run a model has a process of its
own, the same number of threads and the same images. A row compares the fastest of ours with the
fastest of theirs. Calibration is with few random images, which does for times; beside each time
stands what the answers are worth, against the float64 reference of the golden images.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cpu_setup
import numpy as np
from cpu_rows import CANDIDATES, ROWS, START_BAR, START_ROW, Candidate, Row, operations
from cpu_setup import Setup
from harness.measure import Ratio, ratio, timings, turns
from harness.worker import Worker

from vit_edge import cli
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.machine import cpus
from vit_edge.parity.limits import limit_for
from vit_edge.parity.logits import LogitComparison
from vit_edge.parity.statistics import Repeats

PHOTO = cpu_setup.REPOSITORY / "vit_edge" / "data" / "photos" / "cat.jpg"
PAUSE_S = 0.02  # between turns: thread pools spin on for some ms after a run
RUNS = {1: 3, 8: 1}  # batch -> timed runs in a turn, of which the median counts
FIRST_ANSWER = """
import sys
from vit_edge import Bundle, Predictor
from vit_edge.backends import ort
bundle = Bundle.read(sys.argv[1])
Predictor(bundle, ort.load(bundle, engine="required")).predict(sys.argv[2])
"""
FIRST_ANSWER_TORCH = """
import sys, torch
from safetensors.torch import load_file
from vit_edge.models.vit import vit_from_weights
from vit_edge.images.preprocess import preprocess
from vit_edge.variants import variant
row = variant(sys.argv[3])
model = vit_from_weights(row.architecture, load_file(sys.argv[1]))
with torch.inference_mode():
    model(torch.from_numpy(preprocess(sys.argv[2], row.preprocessing))[None]).logits.argmax()
"""

Samples = dict[str, list[float]]  # name -> seconds of each round


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--variant", default="base-patch16-224")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--starts", type=int, default=10, help="of processes, for the last row")
    parser.add_argument("--only", metavar="ROWS", help="such as 1,4; default: all")
    parser.add_argument("--threads", type=int, default=cpus.usable_cpus())
    parser.add_argument("--peers-python", type=Path, metavar="PYTHON")
    parser.add_argument("--timm-python", type=Path, metavar="PYTHON")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured too")
    arguments = parser.parse_args(argv)
    return cli.guarded(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Set up, measure, and print; the exit code does not depend on what is met."""
    everything = [row.number for row in ROWS] + [START_ROW]
    wanted = everything if arguments.only is None else cli.whole_numbers(arguments.only, "--only")
    setup = cpu_setup.prepare(
        arguments.work, arguments.variant, arguments.peers_python, arguments.timm_python
    )
    rows = [row for row in ROWS if row.number in wanted]
    found: dict[str, Any] = {"machine": machine(arguments)}
    print("\n".join(f"{key}: {value}" for key, value in found["machine"].items()), flush=True)
    if rows:
        chosen = [c for c in CANDIDATES if any(row.needs(c) for row in rows)]
        found |= measured(setup, chosen, rows, arguments)
        add_limit(found["samples"], arguments.variant)
        print(f"\n{cli.table(candidate_rows(found))}\n", flush=True)
    compared: list[tuple[str, ...]] = [
        ("", "", "ours", "theirs", "ratio", "95 % interval", "bar", "")
    ]
    compared += [line for row in rows for line in row_cells(row, found)]
    if START_ROW in wanted:
        starts = cold_starts(setup, arguments.starts)
        found["starts"] = starts
        ours, theirs = starts
        words = "process start to first answer"
        compared.append(
            cells(START_ROW, words, bar=START_BAR, ours=ours, theirs=theirs, samples=starts)
        )
    print(cli.table(compared))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def machine(arguments: argparse.Namespace) -> dict[str, str]:
    """What the numbers belong to."""
    return {
        "cpu": f"{cpus.cpu_model()}, {cpus.usable_cpus()} CPUs",
        "features": " ".join(cpus.cpu_features()),
        "python": platform.python_version(),
        "model": f"{arguments.variant}, seeded weights",
        "threads": str(arguments.threads),
        "rounds": str(arguments.rounds),
    }


def measured(
    setup: Setup, chosen: Sequence[Candidate], rows: Sequence[Row], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Start a worker for each, check its answers, and take turns among all."""
    with contextlib.ExitStack() as workers, tempfile.TemporaryDirectory() as scratch:
        facts: dict[str, Mapping[str, str]] = {}
        fidelity: dict[str, Mapping[str, Any]] = {}
        problems: dict[str, list[str]] = {}
        measures: dict[str, Callable[[], float]] = {}
        for candidate in chosen:
            print(f"starting {candidate.name}", file=sys.stderr, flush=True)
            argv = candidate.argv(setup, arguments.threads)
            worker = workers.enter_context(Worker(argv, env=cpu_setup.child_environment()))
            facts[candidate.name] = worker.call("facts")
            if candidate.answers:
                fidelity[candidate.name] = judged(worker, candidate, setup, Path(scratch))
            if candidate.limit is not None:
                limit = limit_for(candidate.limit)
                problems[candidate.name] = limit.problems("logits", fidelity[candidate.name])
            for batch in candidate.batches:
                if any(row.needs(candidate) and row.batch == batch for row in rows):
                    name = candidate.at(batch)
                    measures[name] = partial(turn, worker, batch, RUNS[batch])
        samples = turns(measures, arguments.rounds)
    return {"facts": facts, "fidelity": fidelity, "problems": problems, "samples": samples}


def turn(worker: Worker, batch: int, times: int) -> float:
    """Seconds of a run."""
    time.sleep(PAUSE_S)
    return float(worker.call("seconds", batch=batch, times=times))


def judged(worker: Worker, candidate: Candidate, setup: Setup, scratch: Path) -> Mapping[str, Any]:
    """The statistics of the logits of all golden images, in each of its batch sizes."""
    comparison = LogitComparison(repeats=Repeats())
    with Golden(Bundle.read(setup.fp32).golden_path) as golden:
        indices = np.arange(len(golden))
        expected = golden.answers(list(indices))["logits"]
        for batch in candidate.batches:
            out = scratch / "answers.npy"
            worker.call("answers", out=str(out), batch=batch)
            comparison.add(indices, np.load(out), expected)
    return comparison.summary()


def add_limit(samples: Samples, variant: str) -> None:
    """Add, as a name of its own, what the model would take at the best rate seen in each round.

    INT8 products (VNNI) do four times the multiply-adds of float32 ones in an instruction.
    """
    gemms = [name for name in samples if name.startswith("float32 product")]
    if gemms:
        best = fastest(gemms, samples)
        share = operations(variant) / (4 * 2 * 2048**3)
        samples[f"limit: {best} / 4"] = [share * taken for taken in samples[best]]


def fastest(names: Sequence[str], samples: Samples) -> str:
    """The one with the least median."""
    return min(names, key=lambda name: statistics.median(samples[name]))


def row_cells(row: Row, found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The best of ours that holds its limit against the best of theirs; and the best of all."""
    samples: Samples = found["samples"]
    there = [candidate for candidate in CANDIDATES if row.batch in candidate.batches]
    ours = [candidate for candidate in there if row.ours in candidate.groups]
    holding = [candidate for candidate in ours if not found["problems"][candidate.name]]
    theirs = [candidate.at(row.batch) for candidate in there if row.theirs in candidate.groups]
    if row.theirs == "limit":
        theirs = [name for name in samples if name.startswith("limit")]
    other = fastest(theirs, samples)
    best, *counting = (
        fastest([candidate.at(row.batch) for candidate in group], samples)
        for group in (ours, holding)
        if group
    )
    line = partial(cells, row.number, bar=row.bar, theirs=other, samples=samples)
    for name in counting:
        yield line(row.words, ours=name)
    if best not in counting:
        yield (*line(f"{row.words}, its limit missed", ours=best)[:-1], "does not count")


def cells(
    number: int, words: str, *, bar: float, ours: str, theirs: str, samples: Samples
) -> tuple[str, ...]:
    """One line of the result."""
    found: Ratio = ratio(samples[ours], samples[theirs])
    verdict = "met" if found.value <= bar else "NOT MET"
    interval = f"{found.low:.3f} to {found.high:.3f}"
    return (str(number), words, ours, theirs, f"{found.value:.3f}", interval, f"{bar}", verdict)


def candidate_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Every time with its fidelity and runtime."""
    lines: list[tuple[str, ...]] = [
        ("", "batch", "ms/image", "fastest", "SQNR dB", "flips", "weighted", "runtime", "")
    ]
    for candidate in CANDIDATES:
        for batch in candidate.batches:
            taken = found["samples"].get(candidate.at(batch))
            if taken is None:
                continue
            times = (f"{1e3 * t / batch:.1f}" for t in (statistics.median(taken), min(taken)))
            kept = found["fidelity"].get(candidate.name)
            worth = ("-",) * 3 if kept is None else (
                f"{kept['sqnr_centred_db']:.1f}",
                f"{kept['flips']} of {kept['images']}",
                f"{kept['margin_weighted_flips']:.4f}",
            )  # fmt: skip
            runtime = found["facts"][candidate.name]["runtime"]
            missed = "; ".join(found["problems"].get(candidate.name, ()))
            missed = missed and f"does not count: {missed}"
            lines.append((candidate.name, str(batch), *times, *worth, runtime, missed))
    return lines


def cold_starts(setup: Setup, starts: int) -> Samples:
    """Seconds per process, the page cache warm: ours first."""

    def process(code: str, *arguments: object) -> None:
        argv = [sys.executable, "-c", code, *map(str, arguments)]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL,
                       env=cpu_setup.child_environment())  # fmt: skip

    weights = setup.peers / "weights.safetensors"
    candidates: dict[str, Callable[[], object]] = {
        "vit_edge int8, ort, built": partial(process, FIRST_ANSWER, setup.int8, PHOTO),
        "torch, our model, fp32": partial(
            process, FIRST_ANSWER_TORCH, weights, PHOTO, setup.variant
        ),
    }
    return timings(candidates, starts)


if __name__ == "__main__":
    sys.exit(main())
