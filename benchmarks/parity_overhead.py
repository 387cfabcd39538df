"""What the parity harness adds to running images through a backend.

    python benchmarks/parity_overhead.py BUNDLE [--images 500] [--backend ort] [--rounds 5]

The same images, once through the backend alone and once through the comparison with the reference's
answers, in turns. Process start, and reading the images, are left out: both get them from memory.
The reference's answers are the backend's own, so the comparison has nothing to find.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import script
import timing
from numpy.typing import NDArray

from vit_edge import backends
from vit_edge.backends import auto
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.images.preprocess import input_from_resized
from vit_edge.parity.compare import compare_answers
from vit_edge.parity.limits import limit_for
from vit_edge.parity.witness import Witness


class InMemory:
    """Images with answers, as compare_answers wants them; the golden images again and again."""

    def __init__(self, images: NDArray[np.uint8], answers: dict[str, NDArray[np.float32]]) -> None:
        self._images, self._answers = images, answers

    def __len__(self) -> int:
        return len(self._images)

    def images(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        return self._images[list(indices)]

    def answers(self, indices: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        return {name: values[list(indices)] for name, values in self._answers.items()}

    def labels(self, indices: Sequence[int]) -> NDArray[np.int64] | None:
        return None


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--backend", default=auto.DEFAULT)
    parser.add_argument("--rounds", type=int, default=5)
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    bundle = Bundle.read(arguments.bundle)
    manifest, limit = bundle.manifest, limit_for(bundle.manifest.precision)
    backend = backends.module(arguments.backend).load(bundle)
    batch = manifest.max_batch
    with Golden(bundle.golden_path) as golden:
        places = [index % len(golden) for index in range(arguments.images)]
        images = golden.images(places)
    starts = range(0, len(images), batch)
    pieces = [
        backend.run(input_from_resized(images[start : start + batch], manifest)) for start in starts
    ]
    answers = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    reference = InMemory(images, answers)

    def alone() -> None:
        for start in starts:
            backend.run(input_from_resized(images[start : start + batch], manifest))

    def compared() -> None:
        compare_answers(
            backend, reference, manifest, batches=[batch], limit=limit,
            seen=Witness(len(reference)).add,
        )  # fmt: skip

    print(f"{script.machine()}; {backend.facts['runtime']}")
    print(
        f"{bundle.path.name}: {len(images)} images, batches of {batch}, {arguments.rounds} rounds"
    )
    taken = timing.timings({"alone": alone, "compared": compared}, arguments.rounds, 1)
    print(timing.report(taken, "alone", 1.1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
