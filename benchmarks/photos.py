"""Images made of photos: large JPEGs to decode, and crops to calibrate on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = {".jpg", ".jpeg"}
QUALITY = 90


def photo_files(folder: Path) -> list[Path]:
    """Every JPEG below a folder, sorted."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"{folder}: no JPEGs in it ({', '.join(sorted(SUFFIXES))})")
    return files


def enlarged(
    files: Sequence[Path], into: Path, sides_px: Iterable[tuple[int, int]], grain: int = 0
) -> list[Path]:
    """Make one JPEG for each (longer, shorter side) asked for, going around the photos.

    Enlarged photos hold little detail, so their files are small and quickly decoded; those of a
    camera have `grain`, noise from pixel to pixel of that many levels.
    """
    files = []
    rng = np.random.default_rng(0)
    for index, (longer, shorter) in enumerate(sides_px):
        with Image.open(files[index % len(files)]) as photo:
            size = (longer, shorter) if photo.width >= photo.height else (shorter, longer)
            large = photo.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        if grain:
            noisy = rng.standard_normal((size[1], size[0], 3), np.float32) * grain + large
            large = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
        files.append(into / f"{index:04}.jpg")
        large.save(files[-1], quality=QUALITY)
    return files


def crops(folder: Path, into: Path, count: int, seed: int = 0) -> None:
    """Write random square crops of a folder's photos, as calibration images.

    Args:
        folder: Photos, around which the crops go in turn.
        into: Where they go; made, and there only once it holds all of them.
        count: How many.
        seed: Of where and how large they are: 15 to 90 % of a photo's shorter side.
    """
    rng = np.random.default_rng(seed)
    photos = []
    for file in photo_files(folder):
        with Image.open(file) as photo:
            photos.append(photo.convert("RGB"))
    with tempfile.TemporaryDirectory(dir=into.parent) as scratch:
        partial = Path(scratch, "crops")
        partial.mkdir()
        for index in range(count):
            photo = photos[index % len(photos)]
            side = int(rng.uniform(0.15, 0.9) * min(photo.size))
            left = int(rng.integers(photo.width - side + 1))
            top = int(rng.integers(photo.height - side + 1))
            cut = photo.crop((left, top, left + side, top + side))
            cut.save(partial / f"{index:04}.png")
        partial.rename(into)
