"""Pillow as it comes against other decoders of JPEG and another build of Pillow: time and pixels.

    pip install simplejpeg opencv-python-headless
    python benchmarks/decoders.py --photos DIR [--python OTHER/bin/python]

Decoders are compared where they are installed. --python names an environment with NumPy and another
build of Pillow, such as Pillow-SIMD: there this vit_edge makes pixels of the photos, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import photos
import script
import timing
from numpy.typing import NDArray

from vit_edge.bundle.manifest import Preprocessing
from vit_edge.images.files import DEFAULT_LIMITS
from vit_edge.images.load import load_image

Decoder = Callable[[bytes], NDArray[np.uint8]]
SIZE = (224, 224)
HALF = (0.5, 0.5, 0.5)
# Prints its Pillow's version and the seconds that all photos took, and leaves the pixels in a file.
MAKE_PIXELS = """
import sys, time
from pathlib import Path
import numpy as np, PIL
sys.path[:0] = sys.argv[1:3]
import decoders
from vit_edge.images.preprocess import preprocess
spec, files = decoders.steps(sys.argv[3]), [Path(file) for file in sys.argv[5:]]
made = [preprocess(file, spec) for file in files]
start = time.perf_counter()
for file in files:
    preprocess(file, spec)
print(PIL.__version__, time.perf_counter() - start)
np.save(sys.argv[4], np.stack(made))
"""


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR")
    parser.add_argument("--python", metavar="FILE", help="of an environment with another Pillow")
    parser.add_argument("--rounds", type=int, default=9)
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    files = photos.photo_files(arguments.photos)
    print(f"{script.machine()}\n\nDecoding {len(files)} photos")
    data, known = [file.read_bytes() for file in files], installed()
    exact = [by_pillow(each) for each in data]
    for name, decode in known.items():
        same = sum(np.array_equal(decode(each), one) for each, one in zip(data, exact, strict=True))
        print(f"{name}: the pixels of {same} photos are Pillow's")
    calls = {name: partial(decode_all, decode, data) for name, decode in known.items()}
    print(timing.report(timing.timings(calls, arguments.rounds), "Pillow"))
    for interpolation in ("bilinear", "bicubic") if arguments.python else ():
        print(f"\nPhotos to pixels, {interpolation}")
        print(against(arguments.python, interpolation, files, arguments.rounds))
    return 0


def installed() -> dict[str, Decoder]:
    """The decoders that are here, Pillow first: bytes of a JPEG -> uint8[height, width, 3]."""
    known: dict[str, Decoder] = {"Pillow": by_pillow}
    if importlib.util.find_spec("simplejpeg"):
        simplejpeg: Any = importlib.import_module("simplejpeg")
        known["simplejpeg"] = partial(simplejpeg.decode_jpeg, colorspace="RGB")
    if importlib.util.find_spec("cv2"):
        cv2: Any = importlib.import_module("cv2")
        cv2.setNumThreads(1)
        known["OpenCV"] = lambda data: cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB
        )
    return known


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    """Decode as the predictor does, errors and limits included."""
    return np.asarray(load_image(data, limits=DEFAULT_LIMITS))


def decode_all(decode: Decoder, data: Sequence[bytes]) -> None:
    """Decode one after the other."""
    for each in data:
        decode(each)


def steps(interpolation: Any) -> Preprocessing:
    """To 224 x 224 pixels, whatever the aspect ratio."""
    return Preprocessing("squash", SIZE, SIZE, interpolation, HALF, HALF)


def against(python: str, interpolation: str, files: Sequence[Path], rounds: int) -> str:
    """Time this environment and another one in turn, and compare what they make."""
    with tempfile.TemporaryDirectory() as scratch:
        place = {name: Path(scratch) / f"{name}.npy" for name in ("Pillow", "the other Pillow")}
        versions: dict[str, str] = {}

        def make(name: str, executable: str) -> float:
            folders = script.REPOSITORY, script.REPOSITORY / "benchmarks"
            named = map(str, (*folders, interpolation, place[name], *files))
            # paths of this environment would bring its Pillow along
            environment = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"}
            argv = [executable, "-c", MAKE_PIXELS, *named]
            done = subprocess.run(
                argv, check=True, text=True, env=environment, stdout=subprocess.PIPE
            )
            versions[name], seconds = done.stdout.split()
            return float(seconds)

        measures = {
            name: partial(make, name, executable)
            for name, executable in zip(place, (sys.executable, python), strict=True)
        }
        taken = timing.turns(measures, rounds, warmup=1)
        levels = [np.load(file) / 2 * 255 for file in place.values()]
    apart = np.rint(np.abs(levels[0] - levels[1]))
    return (
        f"{', '.join(f'{name}: {text}' for name, text in versions.items())}\n"
        f"{timing.report(taken, 'Pillow')}\n"
        f"pixels that differ {np.mean(apart > 0):.2%}, by at most {apart.max():.0f} of 255 levels"
    )


if __name__ == "__main__":
    sys.exit(main())
