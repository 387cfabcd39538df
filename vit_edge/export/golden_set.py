"""The images that fix the reference's answers, and those answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps

from vit_edge.bundle.golden import Probe, write_golden
from vit_edge.bundle.manifest import Preprocessing
from vit_edge.graphs.mapped import mapped
from vit_edge.images.folders import PHOTOS, image_files
from vit_edge.images.load import load_image
from vit_edge.images.resize import resized_from_image
from vit_edge.parity.probes import make_probes

KEPT = 16  # images in golden.npz; the gate itself runs over all of them

Progress = Callable[[int], object]


@dataclass(frozen=True)
class GoldenFiles:
    """The images that graphs are judged by."""

    folder: Path | None  # None: the package's photos
    files: tuple[Path, ...]


@dataclass(frozen=True)
class GoldenSet:
    """Resized images with the reference's answers; on disk, mapped, since there may be many."""

    names: tuple[str, ...]
    resized: NDArray[np.uint8]  # [N, H, W, 3]
    expected: dict[str, NDArray[np.float32]]  # output -> [N, ...]
    classes: NDArray[np.int64] | None = None  # [N], -1 where unknown

    def __len__(self) -> int:
        return len(self.names)

    def images(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """See parity.compare.Reference."""
        return self.resized[list(indices)]

    def answers(self, indices: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        """See parity.compare.Reference."""
        return {output: values[list(indices)] for output, values in self.expected.items()}

    def labels(self, indices: Sequence[int]) -> NDArray[np.int64] | None:
        """See parity.compare.Reference."""
        return None if self.classes is None else self.classes[list(indices)]


def golden_files(folder: Path | None) -> GoldenFiles:
    """Find every image below a folder, in the order of names.

    Args:
        folder: None takes the package's photos.

    Raises:
        UsageError: No such folder, or no image in it.
    """
    return GoldenFiles(folder, tuple(image_files(PHOTOS if folder is None else folder)))


def golden_images(
    golden: GoldenFiles, preprocessing: Preprocessing, scratch: Path, progress: Progress
) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """Load and resize the golden images.

    Args:
        golden: The files; the package's photos are taken whole and as the mirrored middle of each.
        preprocessing: Resize and crop.
        scratch: Where to put the mapped file.
        progress: Called with 1 after each image.

    Returns:
        Names and uint8[N, H, W, 3].

    Raises:
        ImageError: An image that cannot be used; the file is named.
    """
    copies = 2 if golden.folder is None else 1
    names: list[str] = []
    resized = mapped(scratch, (copies * len(golden.files), *preprocessing.crop_hw, 3), np.uint8)
    for file in golden.files:
        photo = load_image(file, background=preprocessing.background)
        views = {file.name: photo}
        if golden.folder is None:
            width, height = photo.size
            box = (width // 5, height // 5, width - width // 5, height - height // 5)
            views[f"{file.name}:mirrored-middle"] = ImageOps.mirror(photo.crop(box))
        for name, view in views.items():
            resized[len(names)] = resized_from_image(view, preprocessing)
            names.append(name)
        progress(1)
    return tuple(names), resized


def write_golden_set(
    path: Path, golden: GoldenSet, preprocessing: Preprocessing, reference_dtype: str
) -> None:
    """Write golden.npz: the probes, and up to KEPT images evenly spread over the set."""
    kept = sorted(set(np.linspace(0, len(golden) - 1, KEPT).round().astype(int).tolist()))
    photos = [np.asarray(load_image(file)) for file in image_files(PHOTOS)]
    probes = [
        Probe(
            name,
            data,
            resized_from_image(
                load_image(data, background=preprocessing.background), preprocessing
            ),
        )
        for name, data in make_probes(photos).items()
    ]
    write_golden(
        path,
        probes=probes,
        names=[golden.names[index] for index in kept],
        images=golden.images(kept),
        answers=golden.answers(kept),
        reference_dtype=reference_dtype,
    )
