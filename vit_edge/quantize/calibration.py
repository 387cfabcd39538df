"""Calibration images: what a quantizer may look at. Never the images it is judged by."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_edge.bundle.bundle import sha256_of
from vit_edge.bundle.manifest import Preprocessing
from vit_edge.errors import UsageError
from vit_edge.graphs.mapped import mapped
from vit_edge.graphs.workspace import LARGEST_BATCH, PIXEL_BYTES
from vit_edge.images.folders import image_files
from vit_edge.images.load import load_image
from vit_edge.images.preprocess import pixels_from_resized
from vit_edge.images.resize import resized_from_image
from vit_edge.quantize.variety import COPIES, altered

DEFAULT_COUNT = 128  # 64 to 256 are what the post-training literature uses
RANDOM = "random"  # the name by which noise is asked for

Progress = Callable[[int], object]


@dataclass(frozen=True)
class CalibrationRequest:
    """The images to calibrate on."""

    source: str  # a folder, or RANDOM
    count: int = DEFAULT_COUNT
    seed: int = 0

    def problems(self) -> list[str]:
        """List everything that cannot be followed; empty if nothing."""
        faults = []
        if self.count < 1:
            faults.append(f"the number of calibration images must be at least 1, not {self.count}")
        if self.seed < 0:
            faults.append(f"the calibration seed must not be negative, not {self.seed}")
        return faults


@dataclass(frozen=True)
class CalibrationFiles:
    """The files that a request means; none for noise."""

    request: CalibrationRequest
    files: tuple[Path, ...]  # in random order
    sha256: tuple[str, ...]  # of each file

    def __len__(self) -> int:
        return self.request.count if self.request.source == RANDOM else len(self.files)


@dataclass(frozen=True)
class Calibration:
    """Resized calibration images, mapped from disk, and where they came from."""

    request: CalibrationRequest
    names: tuple[str, ...]
    sha256: tuple[str, ...]  # of each file
    resized: NDArray[np.uint8]  # [N, H, W, 3]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.resized)

    def pixels(self, start: int, stop: int) -> NDArray[np.float32]:
        """float32[N, 3, H, W] of the images start:stop."""
        return pixels_from_resized(self.resized[start:stop], self.preprocessing)

    def batches(self, size: int) -> Iterator[NDArray[np.float32]]:
        """All images as float32[<= size, 3, H, W], in order."""
        for start in range(0, len(self), size):
            yield self.pixels(start, start + size)

    def first(self, count: int) -> Calibration:
        """The first `count` images; they are in random order already."""
        return dataclasses.replace(
            self, names=self.names[:count], sha256=self.sha256[:count], resized=self.resized[:count]
        )

    def varied(self) -> Calibration:
        """These images with altered copies among them, for ranges and scales; see `variety`."""
        if not self._copies:
            return self
        copies, count = altered(self.resized, self._copies), len(self.resized)
        places = np.argsort(np.random.default_rng(0).permutation(count + len(copies)))
        together = np.empty((len(places), *copies.shape[1:]), np.uint8)  # thousands fit once
        together[places[:count]], together[places[count:]] = self.resized, copies
        return dataclasses.replace(self, resized=together)

    @property
    def _copies(self) -> int:
        return 0 if self.request.source == RANDOM else COPIES

    def as_dict(self) -> dict[str, Any]:
        """Describe them for the manifest: enough to tell whether two runs saw the same images."""
        return {
            "source": "random noise" if self.request.source == RANDOM else "folder",
            "images": len(self),
            "altered_copies": self._copies,
            "seed": self.request.seed,
            "sha256": hashlib.sha256("".join(sorted(self.sha256)).encode()).hexdigest(),
        }


def calibration_files(request: CalibrationRequest) -> CalibrationFiles:
    """Choose the images, and hash them.

    The choice depends on the seed and on what the files are called, not on the order in which the
    disk lists them. Fewer images than asked for are all taken.

    Raises:
        UsageError: No such folder, no image in it, or a count or seed out of range.
    """
    problems = request.problems()
    if problems:
        raise UsageError("; ".join(problems))
    if request.source == RANDOM:
        return CalibrationFiles(request, (), ())
    root = Path(request.source)
    files = sorted(image_files(root), key=lambda file: file.relative_to(root).as_posix())
    order = np.random.default_rng(request.seed).permutation(len(files))
    chosen = tuple(files[index] for index in order[: request.count])
    return CalibrationFiles(request, chosen, tuple(sha256_of(file) for file in chosen))


def load_calibration(
    chosen: CalibrationFiles,
    preprocessing: Preprocessing,
    scratch: Path,
    progress: Progress = lambda images: None,
) -> Calibration:
    """Load and resize the images.

    Args:
        chosen: Which.
        preprocessing: Resize and crop.
        scratch: Where to put the mapped file.
        progress: Called with 1 after each image.

    Raises:
        ImageError: An image that cannot be used; the file is named.
    """
    request = chosen.request
    if request.source == RANDOM:
        return _noise(request, preprocessing, scratch)
    resized = mapped(scratch, (len(chosen), *preprocessing.crop_hw, 3), np.uint8)
    for index, file in enumerate(chosen.files):
        photo = load_image(file, background=preprocessing.background)
        resized[index] = resized_from_image(photo, preprocessing)
        progress(1)
    root = Path(request.source)
    names = tuple(str(file.relative_to(root)) for file in chosen.files)
    return Calibration(request, names, chosen.sha256, resized, preprocessing)


def _noise(request: CalibrationRequest, preprocessing: Preprocessing, scratch: Path) -> Calibration:
    shape = (request.count, *preprocessing.crop_hw, 3)
    resized = mapped(scratch, shape, np.uint8)
    rng = np.random.default_rng(request.seed)
    for index in range(request.count):
        resized[index] = rng.integers(0, 256, shape[1:], np.uint8)
    hashes = tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in resized)
    names = tuple(f"{RANDOM}:{index}" for index in range(request.count))
    return Calibration(request, names, hashes, resized, preprocessing)


def answering_batch(calibration: Calibration) -> int:
    """Return how many images to run at once, where nothing but answers is observed."""
    image = calibration.pixels(0, 1)
    return max(1, min(LARGEST_BATCH, PIXEL_BYTES // image.nbytes))
