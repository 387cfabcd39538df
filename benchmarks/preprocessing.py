"""What happens before the model: its time against the model's, and what fast decoding changes.

    python benchmarks/preprocessing.py --bundle BUNDLE --photos DIR

Time: decoding, resizing and normalising one photo as it is against answering it, and fast against
exact decoding of 12-megapixel JPEGs made of the photos, without grain and with the grain of a
camera. Effect: the pixels and logits of those. Everything goes around the photos, taking turns.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import photos
import script
import timing

from vit_edge.backends import Backend, module
from vit_edge.bundle import Bundle
from vit_edge.bundle.manifest import Preprocessing
from vit_edge.images.preprocess import DECODINGS, Decoding, preprocess
from vit_edge.parity.logits import LogitComparison

LARGE_PX = (4000, 3000)
GRAINS = (0, 8)  # levels of 255; 8 makes files of the size that telephones make


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR")
    parser.add_argument("--backend", default="ort")
    parser.add_argument("--rounds", type=int, default=96)
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    bundle = Bundle.read(arguments.bundle)
    spec = bundle.manifest.preprocessing
    files = photos.photo_files(arguments.photos)
    backend = module(arguments.backend).load(bundle)
    print(f"{script.machine()}\n{dict(backend.facts)}")
    print(f"\n{len(files)} photos, decoded, resized and normalised, against {bundle.path.name}")
    taken = timing.timings(against_model(files, spec, backend), arguments.rounds)
    print(timing.report(taken, "model, batch 1", bar=0.2))
    for grain in GRAINS:
        with tempfile.TemporaryDirectory() as scratch:
            large = photos.enlarged(files, Path(scratch), [LARGE_PX] * len(files), grain)
            megabytes = np.median([file.stat().st_size for file in large]) / 1e6
            print(f"\n{LARGE_PX[0]} x {LARGE_PX[1]} px, grain {grain}, {megabytes:.1f} MB")
            taken = timing.timings(by_decoding(large, spec), arguments.rounds)
            print(timing.report(taken, "exact", bar=0.35))
            print(effect(large, spec, backend), flush=True)
    return 0


def against_model(
    files: Sequence[Path], spec: Preprocessing, backend: Backend
) -> dict[str, Callable[[], object]]:
    """One photo to pixels, and one answer."""
    pixels = preprocess(files[0], spec)[None]
    return {"model, batch 1": partial(backend.run, pixels)} | by_decoding(files, spec)


def by_decoding(files: Sequence[Path], spec: Preprocessing) -> dict[str, Callable[[], object]]:
    """One photo to pixels, the next one at each call."""

    def decode_next(decoding: Decoding, turn: itertools.cycle[Path]) -> object:
        return preprocess(next(turn), spec, decoding=decoding)

    return {name: partial(decode_next, name, itertools.cycle(files)) for name in DECODINGS}


def effect(files: Sequence[Path], spec: Preprocessing, backend: Backend) -> str:
    """How far pixels and logits of fast decoding lie from exact ones."""
    compared, greatest, means = LogitComparison(), [], []
    levels = np.array(spec.std, np.float32)[:, None, None] / np.float32(spec.rescale_factor)
    for index, file in enumerate(files):
        exact, fast = (preprocess(file, spec, decoding=decoding) for decoding in DECODINGS)
        apart = np.abs(fast - exact) * levels
        greatest.append(float(apart.max()))
        means.append(float(apart.mean()))
        theirs, ours = (backend.run(pixels[None])["logits"] for pixels in (exact, fast))
        compared.add(np.array([index]), ours, theirs)
    summary = compared.summary()
    return (
        f"pixels, in levels of 255: mean {np.mean(means):.2f}, largest {max(greatest):.0f} "
        f"(median of the photos {np.median(greatest):.0f})\n"
        f"logits: top-1 agreement {summary['top1_agreement']:.2%}, SQNR of what varies "
        f"{compared.difference.noise.sqnr_centred_db:.1f} dB, margin-weighted flips "
        f"{summary['margin_weighted_flips']:.4f}"
    )


if __name__ == "__main__":
    sys.exit(main())
