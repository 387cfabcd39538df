"""Competitors and a ViT of ours on the same weights and images, in one run that takes turns.

    python benchmarks/competitors.py --work DIR --out results.json [--variant base-patch16-224]
        [--only torch,timm] [--batch 1,8] [--processes 5] [--env cpu=PYTHON]

Sets up what it needs below DIR the first time: for each tool an environment with its pinned
packages (peers/requirements-*.txt, several GB; --env takes one that is there), bundles of ours with
seeded weights (fp32 and int8), and each competitor's own model of the same weights. A process of a
competitor is measured as one of ours is (peers/process.py); its answers to the golden images are
compared with the same reference. One run is appended to the results: `python -m vit_edge.bench
compare results.json` shows all against each other. What a tool cannot do stays in it as a failure
with its reason.

Quantizers are calibrated on the golden images themselves, which favours the competitors: ours see
crops of the same photos. vit.cpp runs where VIT_CPP_BINARY and VIT_CPP_MODEL name its binary and a
model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cpu_setup
import numpy as np
import suite_bundles
from competitor_rows import COMPETITORS, Competitor

from vit_edge import backends, cli
from vit_edge.bench.results import results, table
from vit_edge.bench.run import runner
from vit_edge.bench.run.operations import multiply_adds
from vit_edge.bench.run.peers import PREFIX, new_entry
from vit_edge.bench.run.plan import Configuration, Sampling, Suite, product
from vit_edge.bench.run.session import kept_of
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.errors import BackendError, ParityError, UsageError, VitEdgeError
from vit_edge.images.preprocess import pixels_from_resized
from vit_edge.machine import child, cpus
from vit_edge.parity.limits import limit_for
from vit_edge.parity.logits import LogitComparison
from vit_edge.parity.statistics import Repeats
from vit_edge.variants import variant

MAKE_TIMEOUT_S = 3600.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tools = ", ".join(dict.fromkeys(row.tool for row in COMPETITORS))
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="results")
    parser.add_argument("--variant", default="base-patch16-224")
    parser.add_argument("--only", metavar="TOOL,TOOL", help=f"of {tools}; default: all")
    parser.add_argument("--batch", default="1", metavar="N,N")
    parser.add_argument("--threads", type=int, default=cpus.usable_cpus())
    parser.add_argument("--processes", type=int, default=Sampling.processes)
    parser.add_argument("--percentile", type=float, default=Sampling.percentile)
    parser.add_argument("--seconds", type=float, default=Sampling.at_least_s)
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=PYTHON",
        help="an environment of peers/requirements-NAME.txt that is there; may be repeated",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    return cli.guarded(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Set up, measure, append, print."""
    chosen = chosen_rows(arguments.only)
    batches = cli.whole_numbers(arguments.batch, "--batch")
    work = arguments.work.resolve()
    bundles = own_bundles(work, arguments.variant)
    folder = inputs(work / f"{arguments.variant}-peers", bundles[0], arguments.variant)
    pythons = dict(entry.split("=", 1) for entry in arguments.env)
    peers: list[Peer] = []
    for row in chosen:
        try:
            python = pythons.get(row.requirements) or environment(work, row.requirements)
            make(row, python, folder)
            problem = None
        except VitEdgeError as error:
            python, problem = sys.executable, str(error)
        peers += [Peer(row, python, folder, batch, arguments.threads, problem) for batch in batches]
    sampling = Sampling(arguments.processes, arguments.percentile, at_least_s=arguments.seconds)
    own = own_configurations(bundles, batches, arguments.threads)
    suite = Suite(f"competitors, {arguments.variant}", own, sampling)
    with results.appending(arguments.out) as save:
        found = runner.run(suite, save, [Path(sys.argv[0]).name, *sys.argv[1:]], peers=peers)
    print(cli.table(table.rows(found)))
    print("\n".join(table.warnings(found)), file=sys.stderr)
    return 0 if found.complete else 130


def chosen_rows(only: str | None) -> Sequence[Competitor]:
    """The rows of the tools asked for.

    Raises:
        UsageError: There is no such tool.
    """
    tools = {row.tool for row in COMPETITORS}
    wanted = tools if only is None else set(only.split(","))
    if unknown := sorted(wanted - tools):
        raise UsageError(f"--only {unknown[0]}: expected some of {', '.join(sorted(tools))}")
    return [row for row in COMPETITORS if row.tool in wanted]


def own_bundles(work: Path, name: str) -> tuple[Path, Path]:
    """Our fp32 and int8 bundles with the same weights."""
    names = [f"{name}-fp32", f"{name}-int8"]
    if failed := suite_bundles.make(names, work):
        raise ParityError(f"not made, see above: {', '.join(failed)}")
    return work / names[0], work / names[1]


def own_configurations(
    bundles: Sequence[Path], batches: Sequence[int], threads: int
) -> tuple[Configuration, ...]:
    """Ours in every runtime that is installed beside us; in ort end to end, too, image by image."""
    there = [name for name in ("ort", "openvino") if name in backends.installed()]
    ways = [(name, {"threads": threads}) for name in there]
    return (
        *product(bundles, ways, batches, "single-stream", ["model"]),
        *product(bundles, [("ort", {"threads": threads})], [1], "single-stream", ["end-to-end"]),
    )


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


def environment(work: Path, name: str) -> str:
    """Python of a tool's environment: see cpu_setup.environment.

    Raises:
        BackendError: It does not install here.
    """
    if name == "none":  # needs no packages: the standard library and NumPy
        return sys.executable
    folder = work / f"venv-{name}"
    try:
        return str(cpu_setup.environment(folder, f"requirements-{name}.txt"))
    except subprocess.CalledProcessError as error:
        raise BackendError(f"requirements-{name}.txt does not install here: {error}") from None


def make(row: Competitor, python: str, folder: Path) -> None:
    """Have a competitor write its own model.

    Raises:
        BackendError: It cannot.
    """
    argv = [python, str(cpu_setup.PEERS / row.script), "make", row.way, str(folder)]
    completed = child.run_child(
        argv, env=cpu_setup.child_environment(), timeout_s=MAKE_TIMEOUT_S, echo=True
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
        bundle = {
            "name": row.name,
            "variant": row.variant or model["variant"],
            "precision": row.precision,
            "model_sha256": None,
            "model_bytes": 0,  # known once `measure` has opened it
            "image_hw": [model["image_px"]] * 2,
            "multiply_adds": None
            if row.variant
            else multiply_adds(variant(model["variant"]).architecture),
        }
        made = new_entry(name, PREFIX + row.tool, self._batch, row.stage, bundle)
        return made | {"failed": self._problem}

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
                "answers": str(answers) if turn == 0 else None,
            }
            script = str(cpu_setup.PEERS / self._row.script)
            completed = child.run_child(
                [self._python, script, "measure", self._row.way, str(self._folder),
                 json.dumps(request)],
                env=cpu_setup.child_environment(),
                timeout_s=sampling.most_s + runner.SPARE_S,
                poll_s=runner.POLL_S,
            )  # fmt: skip
            if completed.death or completed.returncode:
                raise BackendError(reason(completed))
            found: dict[str, Any] = json.loads(completed.stdout)
            found["parity"] = None
            if answers.exists():
                found["parity"] = parity(np.load(answers), self._reference(), self._row.precision)
        return found

    def _reference(self) -> Any:
        """The logits its answers are compared with: for another model those of its own float64."""
        own = f"{self._row.variant}-reference.npy"
        return np.load(self._folder / (own if self._row.variant else "reference.npy"))


def parity(found: Any, expected: Any, precision: str) -> Mapping[str, Any]:
    """What the answers are worth, as vit_edge.bench.run.session.parity tells it."""
    comparison = LogitComparison(repeats=Repeats())
    comparison.add(np.arange(len(expected)), found, expected)
    summary = comparison.summary()
    return {"problems": limit_for(precision).problems("logits", summary)} | kept_of(summary)


def reason(completed: child.ChildResult) -> str:
    """Why a child failed, in one line: its death, or the last thing it said."""
    said = [line.strip() for line in completed.stderr.splitlines() if line.strip()]
    return completed.death or (said[-1][:300] if said else f"exit code {completed.returncode}")


if __name__ == "__main__":
    sys.exit(main())
