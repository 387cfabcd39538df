"""Preprocessing as a graph: how far it is from Predictor's, and what it takes against Pillow.

    python benchmarks/languages.py --bundle BUNDLE --photos DIR [--hostile DIR ...]

Answers: the pixels and logits of every file that decodes, by preprocess.onnx and by two Resize
operators, against `preprocess`. Time: one photo of each size, decoded already, through Pillow and
through preprocess.onnx on one thread, taking turns.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import script
import timing
from numpy.typing import NDArray
from PIL import Image

from vit_edge.backends import Backend, module
from vit_edge.bundle import Bundle
from vit_edge.bundle.manifest import Manifest, Preprocessing
from vit_edge.errors import ImageError
from vit_edge.graphs.preprocessing import preprocessing_graph
from vit_edge.images.load import load_image
from vit_edge.images.preprocess import input_from_resized, pixels_from_resized
from vit_edge.images.resize import resized_from_image
from vit_edge.parity.logits import LogitComparison

SIZES = ((64, 64), (375, 500), (1080, 1920), (3000, 4000))

Pixels = Callable[[NDArray[np.uint8]], NDArray[Any]]


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR")
    parser.add_argument("--hostile", type=Path, nargs="*", default=[], metavar="DIR")
    parser.add_argument("--resize", type=Path, nargs="*", default=[], metavar="FILE.onnx",
                        help="other graphs of the same input and output")  # fmt: skip
    parser.add_argument("--interpolation", help="time another filter than the bundle's")
    parser.add_argument("--rounds", type=int, default=30)
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    bundle = Bundle.read(arguments.bundle)
    manifest, own = bundle.manifest, bundle.preprocess_path
    if own is None:
        raise SystemExit(f"{bundle.path}: no preprocess.onnx")
    print(f"{script.machine()}\n{bundle.path.name}: {manifest.preprocessing}")
    print(f"{own.name}: {own.stat().st_size:,} bytes\n")
    backend = module("ort").load(bundle)
    for folder in (arguments.photos, *arguments.hostile):
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        for graph in (own, *arguments.resize):
            print(f"{folder.name}, {graph.name}: {compared(files, graph, manifest, backend)}")
    if arguments.rounds:
        name = arguments.interpolation or manifest.preprocessing.interpolation
        timed = replace(manifest.preprocessing, interpolation=name)
        print(f"\nTime, {name}, float32")
        for size in SIZES:
            print(f"\n{size[0]} x {size[1]} px")
            taken = timing.timings(both(size, timed), arguments.rounds)
            print(timing.report(taken, "Pillow", bar=2.0), flush=True)
    return 0


def compared(files: Sequence[Path], graph: Path, manifest: Manifest, backend: Backend) -> str:
    """Sum up pixels and logits of all files that decode."""
    ours, logits, largest = from_graph(graph), LogitComparison(manifest.scores), 0.0
    apart: list[bool] = []
    for image in decoded(files, manifest):
        expected = from_pillow(image, manifest)
        found = ours(np.asarray(image))
        levels = np.abs(found.astype(np.float64) - expected) * level_of(manifest)
        largest = max(largest, float(levels.max()))
        theirs, answer = (backend.run(pixels)["logits"] for pixels in (expected, found))
        logits.add(np.array([len(apart)]), answer, theirs)
        apart.append(bool(levels.max() > 0.01))
    summary = logits.summary()
    return (
        f"{len(apart)} images, {sum(apart)} with other pixels, largest {largest:.2f} levels; top-1 "
        f"agreement {summary['top1_agreement']:.2%}, SQNR {summary['sqnr_centred_db']:.1f} dB"
    )


def decoded(files: Sequence[Path], manifest: Manifest) -> Iterator[Image.Image]:
    for file in files:
        try:
            yield load_image(file, background=manifest.preprocessing.background)
        except ImageError:
            continue


def from_pillow(image: Image.Image, manifest: Manifest) -> NDArray[Any]:
    return input_from_resized(resized_from_image(image, manifest.preprocessing)[None], manifest)


def from_graph(graph: Path | bytes) -> Pixels:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]


def level_of(manifest: Manifest) -> Any:
    """How many levels of 255 one unit of the model's input is."""
    if manifest.input.dtype == "uint8":
        return 1
    spec = manifest.preprocessing
    return np.array(spec.std).reshape(3, 1, 1) / spec.rescale_factor


def both(size: tuple[int, int], spec: Preprocessing) -> dict[str, Callable[[], object]]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(2)]
    pictures = [Image.fromarray(image) for image in images]
    model = onnx_ir.to_proto(preprocessing_graph(spec, "float32")).SerializeToString()
    ours, turn, other = from_graph(model), itertools.cycle(images), itertools.cycle(pictures)
    return {
        "Pillow": lambda: pixels_from_resized(resized_from_image(next(other), spec)[None], spec),
        "preprocess.onnx": lambda: ours(next(turn)),
    }


if __name__ == "__main__":
    sys.exit(main())
