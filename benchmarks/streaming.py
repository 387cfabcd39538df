"""A stream of JPEGs of 3 to 4 megapixels against predicting one by one.

    python benchmarks/streaming.py --bundle BUNDLE --photos DIR [--stream "ort threads=1"]

Both begin with the files. What a stream gains has two sources, told apart: answering several at
once, and decoding the next images meanwhile. --backend is what answers one by one, --stream what
the streams use. `--as-they-are` takes the photos in their own size. Cores are busy where a thread
runs, also one of ONNX Runtime's that spins; with "ort spinning=False" none does.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import photos
import script
import timing

from vit_edge import Predictor
from vit_edge.backends import Backend, Option, auto
from vit_edge.bundle import Bundle
from vit_edge.images.preprocess import preprocess
from vit_edge.machine import cpus

# longer and shorter side: 3.1 to 4.1 megapixels in shapes that cameras have
SIDES_PX = ((2048, 1536), (2200, 1650), (2336, 1752), (2560, 1440))
BATCH = 8
ONE_BY_ONE, DECODING = "predict() one by one", "decoding alone"
BATCHED, STREAM = f"model alone, batches of {BATCH}", f"stream, batches of {BATCH}"


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR")
    parser.add_argument("--backend", default="ort", help='such as "ort threads=2"')
    parser.add_argument("--stream", metavar="BACKEND", help="default: the same")
    parser.add_argument("--as-they-are", action="store_true", help="do not enlarge the photos")
    parser.add_argument("--count", type=int, default=500, help="JPEGs or a few more; default: 500")
    parser.add_argument("--rounds", type=int, default=9, help="each a share of them; default: 9")
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    bundle = Bundle.read(arguments.bundle)
    alone = backend_from_text(bundle, arguments.backend)
    streaming = backend_from_text(bundle, arguments.stream or arguments.backend)
    print(f"{script.machine()}\n{dict(alone.facts)}")
    print(f"streams: {dict(streaming.facts)}")
    with tempfile.TemporaryDirectory() as scratch:
        size = -(-arguments.count // (arguments.rounds * BATCH)) * BATCH  # whole batches
        files = photos.photo_files(arguments.photos)
        if arguments.as_they_are:
            files = list(itertools.islice(itertools.cycle(files), arguments.rounds * size))
        else:
            sides = itertools.islice(itertools.cycle(SIDES_PX), arguments.rounds * size)
            files = photos.enlarged(files, Path(scratch), sides)
        shares = [files[start : start + size] for start in range(0, len(files), size)]
        tried = candidates(bundle, alone, streaming, shares)
        taken = timing.timings(tried, len(shares))
        busy = {name: busy_cores(call) for name, call in tried.items()}
    print(f"\n{len(files)} JPEGs, each line {len(shares)} times {size} of them")
    print(timing.report(taken, ONE_BY_ONE, bar=0.8))
    print(gains({name: statistics.median(values) for name, values in taken.items()}))
    for name, cores in busy.items():
        print(f"{name}: {cores:.2f} of {cpus.default_threads()} cores busy")
    return 0


def busy_cores(call: Callable[[], object]) -> float:
    """The CPU time of all threads of this process, to the time that passes."""
    began, used = time.perf_counter(), time.process_time()
    call()
    return (time.process_time() - used) / (time.perf_counter() - began)


def backend_from_text(bundle: Bundle, text: str) -> Backend:
    """Load a backend with options, written as Choice.name writes them: "ort spinning=False"."""
    name, *pairs = text.split()
    options = dict(pair.split("=", 1) for pair in pairs)
    typed = {key: typed_from_text(value) for key, value in options.items()}
    return auto.open_choice(bundle, auto.Choice(name, typed), None)


def typed_from_text(text: str) -> Option:
    """A number, True or False, or else the text."""
    if text in ("True", "False"):
        return text == "True"
    return int(text) if text.isdigit() else text


def candidates(
    bundle: Bundle, alone: Backend, streaming: Backend, shares: Sequence[Sequence[Path]]
) -> dict[str, Callable[[], object]]:
    """What is timed: each call takes the next share of the files."""
    spec = bundle.manifest.preprocessing
    pixels = np.stack([preprocess(file, spec) for file in shares[0][:BATCH]])
    count = len(shares[0])
    one, many = Predictor(bundle, alone), Predictor(bundle, streaming)

    def going_around(use: Callable[[Sequence[Path]], object]) -> Callable[[], object]:
        turn = itertools.cycle(shares)
        return lambda: use(next(turn))

    def answer(backend: Backend, size: int) -> None:
        for _ in range(0, count, size):
            backend.run(pixels[:size])

    return {
        ONE_BY_ONE: going_around(lambda files: [one.predict(file) for file in files]),
        DECODING: going_around(lambda files: [preprocess(file, spec) for file in files]),
        "model alone, one by one": partial(answer, alone, 1),
        BATCHED: partial(answer, streaming, BATCH),
        "stream, batches of 1": going_around(lambda files: list(many.stream(files, batch_size=1))),
        STREAM: going_around(lambda files: list(many.stream(files))),
    }


def gains(took: Mapping[str, float]) -> str:
    """The whole gain as the product of its two sources."""
    one_by_one, stream = took[ONE_BY_ONE], took[STREAM]
    batched = took[DECODING] + took[BATCHED]  # what batches would take without any overlap
    return (
        f"throughput of the stream: {one_by_one / stream:.2f} x one by one = "
        f"{one_by_one / batched:.2f} by batching x {batched / stream:.2f} by overlap"
    )


if __name__ == "__main__":
    sys.exit(main())
