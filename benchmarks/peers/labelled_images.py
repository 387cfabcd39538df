"""Folders of images, one subfolder a class, as a checkpoint's model wants them.

Preprocessed by vit_edge as the checkpoint's preprocessor_config.json says: what transformers' PIL
processor does, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peer import Images

from vit_edge.checkpoints import Checkpoint
from vit_edge.errors import UsageError
from vit_edge.images.folders import image_files
from vit_edge.images.preprocess import preprocess
from vit_edge.quantize import calibration


@dataclass(frozen=True)
class Calibration:
    """The images a quantizer may look at."""

    name: str
    seed: int | None  # None: not drawn
    images: Images


def read(folder: Path, checkpoint: Checkpoint) -> Images:
    """Preprocess every image below a folder.

    Raises:
        UsageError: No image, or a subfolder that is no class of the checkpoint.
        ImageError: An image that cannot be used.
    """
    files = image_files(folder)
    classes = _classes([file.relative_to(folder) for file in files], folder, checkpoint)
    return Images(np.stack([preprocess(f, checkpoint.preprocessing) for f in files]), classes)


def calibrations(
    folder: Path, checkpoint: Checkpoint, seeds: int, scratch: Path
) -> Iterator[Calibration]:
    """All images of a folder; then, for each seed, those that vit_edge would calibrate on.

    Args:
        folder: One subfolder a class.
        checkpoint: For preprocessing and labels.
        seeds: How many subsets of vit_edge's default size to draw: seeds 0, 1, ...
        scratch: For temporary files.

    Raises:
        UsageError: No image, or a subfolder that is no class of the checkpoint.
        ImageError: An image that cannot be used.
    """
    everything = len(image_files(folder))
    yield Calibration(f"all {everything}", None, _drawn(folder, checkpoint, everything, 0, scratch))
    for seed in range(seeds):
        images = _drawn(folder, checkpoint, calibration.DEFAULT_COUNT, seed, scratch)
        yield Calibration(f"{len(images)} of {everything}", seed, images)


def _drawn(folder: Path, checkpoint: Checkpoint, count: int, seed: int, scratch: Path) -> Images:
    request = calibration.CalibrationRequest(str(folder), count, seed)
    files = calibration.calibration_files(request)
    chosen = calibration.load_calibration(files, checkpoint.preprocessing, scratch)
    classes = _classes([Path(name) for name in chosen.names], folder, checkpoint)
    return Images(chosen.pixels(0, len(chosen)), classes)


def _classes(files: list[Path], folder: Path, checkpoint: Checkpoint) -> NDArray[np.int64]:
    """The class of each file, by the subfolder it lies in; every unknown one is named."""
    numbers = {label: number for number, label in enumerate(checkpoint.labels)}
    unknown = sorted({file.parts[0] for file in files} - numbers.keys())
    if unknown:
        raise UsageError(
            f"{folder}: {', '.join(unknown)}: no class of the checkpoint. Expected one folder a "
            f"class, named {', '.join(checkpoint.labels) or '(the checkpoint names no classes)'}"
        )
    return np.array([numbers[file.parts[0]] for file in files], np.int64)
