"""A ViT on an NVIDIA GPU: ONNX Runtime's providers against PyTorch, in one run that takes turns.

    python benchmarks/gpu.py --work DIR [--variant base-patch16-224] [--batches 1,8,32]

Exports bundles with seeded weights below DIR the first time, by the GPU recipes (calibrated with
few random images, which does for times). Every way has a process of its own; a call goes from
float32 pixels in the host's memory to float32 logits there, so copies count for all. Beside each
time stands what the answers are worth, against the float64 reference of the golden images, and
whether they hold the limit of their precision. A way that cannot run says why. `--on cpu` runs the
same on the CPU, to try this script.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cpu_setup
import numpy as np
from harness.measure import ratio, seconds, turns
from harness.worker import Worker, serve
from numpy.typing import NDArray

from vit_edge import cli
from vit_edge.backends import ort
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.errors import BackendError, ResourceError
from vit_edge.images.preprocess import pixels_from_resized
from vit_edge.machine import cpus
from vit_edge.machine.cuda import gpus
from vit_edge.parity.limits import limit_for
from vit_edge.parity.logits import LogitComparison
from vit_edge.parity.statistics import Repeats
from vit_edge.variants import variant

# The recipe's target is for photos: seeded weights hardly tell images apart, and any noise flips.
INT8 = (*cpu_setup.INT8, "--parity-target", "top1_agreement=0.8")
EXTRA: dict[str, tuple[str, ...]] = {"fp32": (), "fp16": cpu_setup.CALIBRATION, "int8": INT8}
PRECISIONS = tuple(EXTRA)
BASELINE = "torch fp16, eager"
RUNS = 5  # timed in a turn, of which the median counts

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Samples = dict[str, list[float]]  # name -> seconds of each round


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to run the model."""

    name: str
    kind: str  # ort or torch
    precision: str  # of the bundle, or torch's; the limit is that of the same name
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def at(self, batch: int) -> str:
        """Its name in the results."""
        return f"{self.name}, batch {batch}"


WAYS = (
    Way("torch fp32, eager", "torch", "fp32", {"compile": False}),
    Way(BASELINE, "torch", "fp16", {"compile": False}),
    Way("torch fp16, compiled", "torch", "fp16", {"compile": True}),
    Way("ort cuda fp32", "ort", "fp32", {"provider": "cuda"}),
    Way("ort cuda fp16", "ort", "fp16", {"provider": "cuda"}),
    Way("ort cuda fp16, graph", "ort", "fp16", {"provider": "cuda", "cuda_graph": True}),
    Way("ort cuda int8, simulated", "ort", "int8", {"provider": "cuda"}),
)
ON_CPU = (
    Way("torch fp32, eager", "torch", "fp32", {"compile": False}),
    Way(BASELINE, "torch", "fp16", {"compile": False}),
    *(Way(f"ort {precision}", "ort", precision, {"provider": "cpu"}) for precision in PRECISIONS),
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--variant", default="base-patch16-224")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--on", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured too")
    parser.add_argument("--serve", metavar="WAY", help=argparse.SUPPRESS)  # a worker's side
    arguments = parser.parse_args(argv)
    if arguments.serve:
        return answer_calls(Way(**json.loads(arguments.serve)), arguments)
    return cli.guarded(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Set up, measure and print."""
    found: dict[str, Any] = {"machine": machine(arguments)}
    for precision in PRECISIONS:
        told = ("--recipe", f"gpu-{precision}", *EXTRA[precision])
        cpu_setup.exported(bundle_path(arguments, precision), arguments.variant, *told)
    print("\n".join(f"{key}: {value}" for key, value in found["machine"].items()), flush=True)
    batches = cli.whole_numbers(arguments.batches, "--batches")
    found |= measured(WAYS if arguments.on == "cuda" else ON_CPU, batches, arguments)
    print(f"\n{cli.table(rows(found, batches))}")
    for name, reason in found["refused"].items():
        print(f"{name}: {reason}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def machine(arguments: argparse.Namespace) -> dict[str, str]:
    """What the numbers belong to.

    Raises:
        BackendError: There is no GPU.
    """
    here = gpus()
    if arguments.on == "cuda" and not here.found:
        raise BackendError(
            f"nothing was measured: this needs an NVIDIA GPU, and there is {here.reason}"
        )
    named = ", ".join(f"{gpu.name} ({gpu.sm})" for gpu in here.found) or here.reason
    return {
        "gpu": named if arguments.on == "cuda" else "not used (--on cpu)",
        "cuda": here.cuda or "no driver",
        "cpu": f"{cpus.cpu_model()}, {cpus.usable_cpus()} CPUs",
        "python": platform.python_version(),
        "model": f"{arguments.variant}, seeded weights",
        "rounds": str(arguments.rounds),
    }


def bundle_path(arguments: argparse.Namespace, precision: str) -> Path:
    return Path(arguments.work.resolve() / f"{arguments.variant}-gpu-{precision}")


def measured(
    ways: Sequence[Way], batches: Sequence[int], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Start a worker for each way, check its answers, and take turns among all."""
    facts: dict[str, Mapping[str, str]] = {}
    kept: dict[str, Mapping[str, Any]] = {}
    missed: dict[str, list[str]] = {}
    refused: dict[str, str] = {}
    measures: dict[str, Callable[[], float]] = {}
    argv = [sys.executable, __file__, "--work", str(arguments.work), "--variant", arguments.variant]
    with contextlib.ExitStack() as workers:
        for way in ways:
            print(f"starting {way.name}", file=sys.stderr, flush=True)
            told = json.dumps(dataclasses.asdict(way))
            worker = Worker(
                [*argv, "--on", arguments.on, "--serve", told], env=cpu_setup.child_environment()
            )
            workers.enter_context(worker)
            try:
                facts[way.name] = worker.call("facts")
                kept[way.name] = worker.call("kept", batch=max(batches))
            except ResourceError as error:
                refused[way.name] = str(error).partition(" failed: ")[2] or str(error)
                continue
            missed[way.name] = limit_for(way.precision).problems("logits", kept[way.name])
            for batch in batches:
                measures[way.at(batch)] = partial(worker.call, "seconds", batch=batch)
        samples = turns(measures, arguments.rounds)
    return {"facts": facts, "kept": kept, "missed": missed, "refused": refused, "samples": samples}


def rows(found: Mapping[str, Any], batches: Sequence[int]) -> list[tuple[str, ...]]:
    """Times, their ratios to the baseline, and what the answers are worth."""
    lines: list[tuple[str, ...]] = [
        ("", "batch", "ms/image", f"ratio to {BASELINE}", "95 %", "SQNR dB", "flips", "limit")
    ]
    samples: Samples = found["samples"]
    for batch in batches:
        base = samples.get(f"{BASELINE}, batch {batch}")
        for name, kept in found["kept"].items():
            taken = samples.get(f"{name}, batch {batch}")
            if taken is None:
                continue
            times = (f"{1e3 * statistics.median(taken) / batch:.3f}", "-", "-")
            if base is not None:
                value, low, high = ratio(taken, base)
                times = (times[0], f"{value:.3f}", f"{low:.3f} to {high:.3f}")
            worth = (
                f"{kept['sqnr_centred_db']:.1f}",
                f"{kept['flips']} of {kept['images']}",
                "; ".join(found["missed"][name]) or "held",
            )
            lines.append((name, str(batch), *times, *worth))
    return lines


def answer_calls(way: Way, arguments: argparse.Namespace) -> int:
    """A worker's side: open the way at the first call, so that the parent hears why not."""
    bundle = Bundle.read(
        bundle_path(arguments, way.precision if way.kind == "ort" else PRECISIONS[0])
    )
    opened: list[tuple[Mapping[str, str], Run]] = []
    with Golden(bundle.golden_path) as golden:
        indices = np.arange(len(golden))
        images, expected = golden.images(list(indices)), golden.answers(list(indices))["logits"]
    pixels = pixels_from_resized(images, bundle.manifest.preprocessing)

    def facts() -> dict[str, str]:
        opened.append((open_ort if way.kind == "ort" else open_torch)(way, bundle, arguments))
        return dict(opened[0][0])

    def kept(batch: int) -> Mapping[str, Any]:
        comparison = LogitComparison(repeats=Repeats())
        for size in (1, batch):
            found = [opened[0][1](pixels[at : at + size]) for at in range(0, len(pixels), size)]
            comparison.add(indices, np.concatenate(found), expected)
        return comparison.summary()

    def timed(batch: int) -> float:
        images = np.ascontiguousarray(np.resize(pixels, (batch, *pixels.shape[1:])))
        call = partial(opened[0][1], images)
        call()  # a GPU that waited clocks down
        return statistics.median(seconds(call) for _ in range(RUNS))

    serve({"facts": facts, "kept": kept, "seconds": timed})
    return 0


def open_ort(
    way: Way, bundle: Bundle, arguments: argparse.Namespace
) -> tuple[Mapping[str, str], Run]:
    """A bundle in ONNX Runtime."""
    backend = ort.load(bundle, **way.options)
    return backend.facts, lambda pixels: backend.run(pixels)["logits"]


def open_torch(
    way: Way, bundle: Bundle, arguments: argparse.Namespace
) -> tuple[Mapping[str, str], Run]:
    """The same weights in PyTorch, FP32 without TF32."""
    import torch

    from vit_edge.checkpoints import Request, load_checkpoint
    from vit_edge.models.vit import vit_from_weights

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    checkpoint = load_checkpoint("seeded:0", Request(variant(arguments.variant)))
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[way.precision]
    device = torch.device(arguments.on)
    model: Any = vit_from_weights(checkpoint.architecture, dict(checkpoint.weights))
    model = model.to(device, dtype).eval()
    if way.options["compile"]:  # the fastest it has: it picks kernels by timing, and CUDA graphs
        model = torch.compile(model, mode="max-autotune", dynamic=False)

    def run(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = model(torch.from_numpy(pixels).to(device, dtype)).logits
            found: NDArray[np.float32] = logits.float().cpu().numpy()
        return found

    return {"runtime": f"torch {torch.__version__}", "dtype": str(dtype)}, run


if __name__ == "__main__":
    sys.exit(main())
