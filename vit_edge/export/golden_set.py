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
from vit_edge.errors import InputError
from vit_edge.graphs.mapped import mapped
from vit_edge.images.folders import PHOTOS, image_files
from vit_edge.images.load import load_image
from vit_edge.images.preprocess import pixels_from_resized, resized_from_image
from vit_edge.models.reference import ReferenceDtype, reference_outputs
from vit_edge.models.vit import ViT
from vit_edge.parity.probes import make_probes

KEPT = 16  # images in golden.npz; the gate itself runs over all of them
# Of one image's float64 tokens in a batch: two images of 785 tokens and width 1280, whose widest
# activations, the MLP's, then take some 130 MB.
REFERENCE_TOKEN_BYTES = 2 * 785 * 1280 * 8
LARGEST_REFERENCE_BATCH = 64

Progress = Callable[[int], object]


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


def golden_images(
    folder: Path | None, preprocessing: Preprocessing, scratch: Path, progress: Progress
) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """Load and resize the golden images.

    Args:
        folder: Every image below it, in the order of names; None takes the package's photos, each
            whole and as the mirrored middle of itself.
        preprocessing: Resize and crop.
        scratch: Where to put the mapped file.
        progress: Called with 1 after each image.

    Returns:
        Names and uint8[N, H, W, 3].

    Raises:
        UsageError: No such folder, or no image in it.
        ImageError: An image that cannot be used; the file is named.
    """
    files = image_files(PHOTOS if folder is None else folder)
    copies = 2 if folder is None else 1
    names: list[str] = []
    resized = mapped(scratch, (copies * len(files), *preprocessing.crop_hw, 3), np.uint8)
    for file in files:
        photo = load_image(file, background=preprocessing.background)
        views = {file.name: photo}
        if folder is None:
            width, height = photo.size
            box = (width // 5, height // 5, width - width // 5, height - height // 5)
            views[f"{file.name}:mirrored-middle"] = ImageOps.mirror(photo.crop(box))
        for name, view in views.items():
            resized[len(names)] = resized_from_image(view, preprocessing)
            names.append(name)
        progress(1)
    return tuple(names), resized


def reference_answers(
    vit: ViT,
    resized: NDArray[np.uint8],
    preprocessing: Preprocessing,
    outputs: Sequence[str],
    dtype: ReferenceDtype,
    scratch: Path,
    progress: Progress,
) -> dict[str, NDArray[np.float32]]:
    """Run the reference: this is where the truth is fixed.

    Returns:
        Output name -> float32[N, ...], mapped.

    Raises:
        InputError: The reference itself answers NaN or Inf.
    """
    answers: dict[str, NDArray[np.float32]] = {}
    image_bytes = vit.architecture.tokens * vit.architecture.width * 8
    size = max(1, min(LARGEST_REFERENCE_BATCH, REFERENCE_TOKEN_BYTES // image_bytes))
    for start in range(0, len(resized), size):
        batch = slice(start, start + size)
        pixels = pixels_from_resized(resized[batch], preprocessing)
        found = reference_outputs(vit, pixels, dtype)._asdict()
        for output in outputs:
            values = found[output].float().numpy()
            if not np.isfinite(values).all():
                raise InputError(
                    f"the reference's {output} hold NaN or Inf: the weights are broken, or the "
                    "preprocessing is not theirs"
                )
            if output not in answers:
                shape = (len(resized), *values.shape[1:])
                answers[output] = mapped(scratch, shape, np.float32)
            answers[output][batch] = values
        progress(len(pixels))
    return answers


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
