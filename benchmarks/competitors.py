"""Competitors and a ViT of ours on the same weights and images, in one run that takes turns.

    python benchmarks/competitors.py --work DIR --out results.json [--variant base-patch16-224]
        [--compare all|cpu|gpu] [--only torch,timm] [--batch 1,8] [--processes 5] [--env cpu=PYTHON]

comparisons.py says what takes turns: `all` competitors on a CPU; every bar of a `cpu`, whose table
docs/cpu.md has; ONNX Runtime, TensorRT and PyTorch on a `gpu`.

Sets up what it needs below DIR the first time: for each tool an environment with its pinned
packages (peers/requirements-*.txt, several GB; --env takes one that is there), bundles of ours with
seeded weights, and each competitor's own model of the same weights. A process of a competitor is
measured as one of ours is (peers/process.py); its answers to the golden images are compared with
the same reference. Engines of ours are built anew each time. One run is appended to the results:
`vit-edge bench compare results.json` shows all against each other. What a tool cannot do
stays in it as a failure with its reason.

Quantizers are calibrated on the golden images themselves, which favours the competitors: ours see
crops of the same photos. vit.cpp runs where VIT_CPP_BINARY and VIT_CPP_MODEL name its binary and a
model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import environments
import numpy as np
import script
import suite_bundles
from comparisons import COMPARISONS, Comparison, Competitor, Own, bar_rows

from vit_edge import backends, cli
from vit_edge.backends import Option
from vit_edge.backends.openvino import full_blocks
from vit_edge.bench.results import results, table
from vit_edge.bench.run import built, runner
from vit_edge.bench.run.operations import multiply_adds
from vit_edge.bench.run.peers import PREFIX, new_entry
from vit_edge.bench.run.plan import Configuration, Sampling, Suite
from vit_edge.bench.run.session import kept_of
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.errors import BackendError, ParityError, UsageError, VitEdgeError
from vit_edge.images.preprocess import pixels_from_resized
from vit_edge.machine import child, cpus, cuda
from vit_edge.parity.limits import limit_for
from vit_edge.parity.logits import LogitComparison
from vit_edge.parity.statistics import Repeats
from vit_edge.variants import variant

MAKE_TIMEOUT_S = 3600.0


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="results")
    parser.add_argument("--variant", default="base-patch16-224")
    parser.add_argument("--compare", choices=COMPARISONS, default="all")
    parser.add_argument("--only", metavar="TOOL,TOOL", help="of the comparison; default: all")
    parser.add_argument("--batch", default="1", metavar="N,N", help="where it names none")
    parser.add_argument("--threads", type=int, default=cpus.usable_cpus())
    parser.add_argument("--processes", type=int, default=Sampling.processes)
    parser.add_argument("--percentile", type=float, default=Sampling.percentile)
    parser.add_argument("--seconds", type=float, default=Sampling.at_least_s)
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=PYTHON",
        help="an environment of peers/requirements-NAME.txt that is there; may be repeated",
    )  # fmt: skip
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    """Set up, measure, append, print; the exit code does not depend on which bar is met."""
    comparison = COMPARISONS[arguments.compare]
    check_machine(comparison)
    rows = chosen_rows(comparison, arguments.only)
    batches = tuple(cli.whole_numbers(arguments.batch, "--batch"))
    work = arguments.work.resolve()
    bundles = own_bundles(comparison, work, arguments.variant)
    first = next(iter(bundles.values()))
    folder = inputs(work / f"{arguments.variant}-peers", first, arguments.variant)
    pythons = dict(entry.split("=", 1) for entry in arguments.env)
    peers: list[Peer] = []
    for row in rows:
        try:
            python = pythons.get(row.requirements)
            python = python or environments.tool_python(work, row.requirements)
            make(row, python, folder)
            problem = None
        except VitEdgeError as error:
            python, problem = sys.executable, str(error)
        peers += [
            Peer(row, python, folder, batch, arguments.threads, problem)
            for batch in row.batches or batches
        ]
    sampling = Sampling(arguments.processes, arguments.percentile, at_least_s=arguments.seconds)
    threads = arguments.threads if comparison.on == "cpu" else None
    own = own_configurations(comparison.own, bundles, batches, threads)
    suite = Suite(f"competitors, {arguments.variant}", own, sampling)
    with results.appending(arguments.out) as save:
        builds = built.builds(own)
        measured = runner.run(suite, save, script.command_line(), builds, peers)
    print(cli.table(table.rows(measured)))
    if comparison.bars:
        print(f"\n{cli.table(bar_rows(comparison.bars, measured))}")
    print("\n".join(table.warnings(measured)), file=sys.stderr)
    return 0 if measured.complete else 130


def check_machine(comparison: Comparison) -> None:
    """Refuse a comparison on a GPU where there is none.

    Raises:
        BackendError: There is no GPU.
    """
    if comparison.on == "gpu" and not (here := cuda.gpus()).found:
        raise BackendError(f"nothing was measured: no NVIDIA GPU can be used: {here.reason}")


def chosen_rows(comparison: Comparison, only: str | None) -> Sequence[Competitor]:
    """The rows of the tools asked for.

    Raises:
        UsageError: There is no such tool.
    """
    tools = {row.tool for row in comparison.competitors}
    wanted = tools if only is None else set(only.split(","))
    if unknown := sorted(wanted - tools):
        raise UsageError(f"--only {unknown[0]}: expected some of {', '.join(sorted(tools))}")
    return [row for row in comparison.competitors if row.tool in wanted]


def own_bundles(comparison: Comparison, work: Path, name: str) -> dict[str, Path]:
    """Our bundles with the same weights, by what comparisons.py calls them.

    Raises:
        ParityError: One of them could not be made.
    """
    bundles = {own.bundle: work / f"{name}-{own.bundle}" for own in comparison.own}
    if failed := suite_bundles.make([path.name for path in bundles.values()], work):
        raise ParityError(f"not made, see above: {', '.join(failed)}")
    return bundles


def own_configurations(
    rows: Sequence[Own], bundles: Mapping[str, Path], batches: Sequence[int], threads: int | None
) -> tuple[Configuration, ...]:
    """Ours in every runtime that is installed beside us."""
    there = backends.installed()
    return tuple(
        Configuration(
            bundles[own.bundle], own.backend, _options(own, bundles[own.bundle], threads), batch,
            stage=own.stage,
        )
        for own in rows
        if own.backend in there
        for batch in own.batches or batches
    )  # fmt: skip


def _options(own: Own, bundle: Path, threads: int | None) -> dict[str, Option]:
    options = dict(own.options) | ({} if threads is None else {"threads": threads})
    if options.get("split_tokens") == "full blocks":
        options["split_tokens"] = full_blocks(Bundle.read(bundle))
    return options


def inputs(folder: Path, bundle: Path, name: str) -> Path:
    """Write what peers/process.py describes, and the reference's logits."""
    from safetensors.torch import save_file

    from vit_edge.checkpoints import Request, load_checkpoint

    if (folder / "model.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    row = variant(name)
    shape = row.architecture
    opened = Bundle.read(bundle)
    with Golden(opened.golden_path) as golden:
        indices = list(range(len(golden)))
        pixels = pixels_from_resized(golden.images(indices), opened.manifest.preprocessing)
        np.save(folder / "pixels.npy", pixels)
        np.save(folder / "reference.npy", golden.answers(indices)["logits"])
    checkpoint = load_checkpoint("seeded:0", Request(row))
    weights = {key: tensor.contiguous() for key, tensor in checkpoint.weights.items()}
    save_file(weights, folder / "weights.safetensors")
    fields = ("width", "depth", "heads", "mlp_dim", "patch_px", "num_classes", "layer_norm_eps")
    model = {key: getattr(shape, key) for key in fields}
    model |= {"variant": name, "timm": row.timm, "image_px": row.image_px}
    (folder / "model.json").write_text(json.dumps(model), encoding="utf-8")  # last: all is there
    return folder


def make(row: Competitor, python: str, folder: Path) -> None:
    """Have a competitor write its own model.

    Raises:
        BackendError: It cannot.
    """
    argv = [python, str(environments.PEERS / row.script), "make", row.setup, str(folder)]
    completed = child.run_child(
        argv, env=environments.child_environment(), timeout_s=MAKE_TIMEOUT_S, echo=True
    )
    if completed.death or completed.returncode:
        raise BackendError(f"its model cannot be made: {reason(completed)}")


class Peer:
    """A competitor at one batch size: see vit_edge.bench.run.peers."""

    def __init__(
        self, row: Competitor, python: str, folder: Path, batch: int, threads: int,
        problem: str | None,
    ) -> None:  # fmt: skip
        self._row, self._python, self._folder = row, python, folder
        self._batch, self._threads, self._problem = batch, threads, problem

    def entry(self) -> dict[str, Any]:
        row = self._row
        name = f"{row.name} batch {self._batch} single-stream"
        name += "" if row.stage == "model" else f" {row.stage}"
        model = json.loads((self._folder / "model.json").read_text(encoding="utf-8"))
        bundle: dict[str, Any] = {
            "name": row.name,
            "variant": row.variant or model["variant"],
            "precision": row.precision,
            "model_sha256": None,
            "model_bytes": 0,  # known once `measure` has opened it
            "image_hw": [model["image_px"]] * 2,
            "multiply_adds": row.multiply_adds
            if row.variant
            else multiply_adds(variant(model["variant"]).architecture),
        }
        entry = new_entry(name, PREFIX + row.tool, self._batch, row.stage, bundle)
        return entry | {"failed": self._problem}

    def measure(self, sampling: Sampling, samples: int, turn: int, /) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as scratch:
            answers = Path(scratch) / "answers.npy"
            request = {
                "batch": self._batch,
                "threads": self._threads,
                "samples": samples,
                "at_least_s": sampling.at_least_s,
                "most_s": sampling.most_s,
                "spawned": time.monotonic(),
                "answers": str(answers) if turn == 0 and self._row.classifies else None,
            }
            script = str(environments.PEERS / self._row.script)
            completed = child.run_child(
                [self._python, script, "measure", self._row.setup, str(self._folder),
                 json.dumps(request)],
                env=environments.child_environment(),
                timeout_s=sampling.most_s + runner.SPARE_S,
                poll_s=runner.POLL_S,
            )  # fmt: skip
            if completed.death or completed.returncode:
                raise BackendError(reason(completed))
            measured: dict[str, Any] = json.loads(completed.stdout)
            measured["parity"] = None
            if answers.exists():
                measured["parity"] = parity(
                    np.load(answers), self._reference(), self._row.precision
                )
        return measured

    def _reference(self) -> Any:
        """The logits its answers are compared with: for another model those of its own float64."""
        own = f"{self._row.variant}-reference.npy"
        return np.load(self._folder / (own if self._row.variant else "reference.npy"))


def parity(answers: Any, expected: Any, precision: str) -> Mapping[str, Any]:
    """What the answers are worth, as vit_edge.bench.run.session.parity tells it."""
    comparison = LogitComparison(repeats=Repeats())
    comparison.add(np.arange(len(expected)), answers, expected)
    summary = comparison.summary()
    return {"problems": limit_for(precision).problems("logits", summary)} | kept_of(summary)


def reason(completed: child.ChildResult) -> str:
    """Why a child failed, in one line: its death, or the last thing it said."""
    said = [line.strip() for line in completed.stderr.splitlines() if line.strip()]
    return completed.death or (said[-1][:300] if said else f"exit code {completed.returncode}")


if __name__ == "__main__":
    sys.exit(main())
