"""Write timm_transform.npz: what timm's evaluation transform makes of synthetic images.

    python tests/data/make_timm_transform.py      # needs timm, torch and torchvision

For every case of CASES: the image after resizing and cropping, uint8[H, W, 3], and the SHA-256 of
the normalised float32[3, H, W]. The images are computed, not stored, by arithmetic that does not
depend on the version of NumPy.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FIXTURE = Path(__file__).with_name("timm_transform.npz")


class Case(NamedTuple):
    """One call of timm.data.create_transform on one image."""

    source_hw: tuple[int, int]
    image_hw: tuple[int, int]
    crop_pct: float
    crop_mode: str  # center: "cover" here; squash: "squash"
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def key(self) -> str:
        """A readable name, unique among CASES."""
        (h, w), (oh, ow) = self.source_hw, self.image_hw
        return f"{h}x{w}-{oh}x{ow}-{self.crop_pct}-{self.crop_mode}-{self.interpolation}"


_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SOURCES = ((37, 53), (53, 37), (64, 64), (200, 31), (31, 201), (127, 342), (9, 7), (45, 45))
_FILTERS = ("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming")

CASES = (
    *(Case(hw, (32, 32), 0.9, "center", "bicubic", *_HALF) for hw in _SOURCES),
    *(Case(hw, (24, 24), 1.0, "center", "bicubic", *_IMAGENET) for hw in _SOURCES),
    *(Case(hw, (40, 24), 0.9, "center", "bicubic", *_HALF) for hw in _SOURCES),
    *(Case(hw, (24, 33), 0.875, "center", "bilinear", *_IMAGENET) for hw in _SOURCES),
    *(Case(hw, (24, 33), 0.95, "squash", "bicubic", *_HALF) for hw in _SOURCES[:3]),
    *(Case((61, 83), (24, 24), 0.9, "center", name, *_HALF) for name in _FILTERS),
)


def synthetic_image(height: int, width: int) -> NDArray[np.uint8]:
    """Gradients and noise, uint8[height, width, 3]."""
    index = np.arange(height * width * 3, dtype=np.uint64)
    noise = ((index * np.uint64(2654435761)) % np.uint64(2**32)) >> np.uint64(25)  # Knuth's hash
    image = noise.reshape(height, width, 3)
    rows = np.arange(height, dtype=np.uint64)[:, None] * np.uint64(127) // np.uint64(height)
    columns = np.arange(width, dtype=np.uint64)[None] * np.uint64(127) // np.uint64(width)
    image[..., 0] += rows
    image[..., 1] += columns
    image[..., 2] += (rows + columns) // np.uint64(2)
    return np.asarray(image, np.uint8)


def timm_answers(case: Case) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The uint8 and the float32 stage of timm's transform; imports timm."""
    from PIL import Image
    from timm.data import create_transform  # type: ignore[import-not-found]

    image = Image.fromarray(synthetic_image(*case.source_hw))
    stages = [
        create_transform(
            (3, *case.image_hw),
            interpolation=case.interpolation,
            mean=case.mean,
            std=case.std,
            crop_pct=case.crop_pct,
            crop_mode=case.crop_mode,
            normalize=normalize,
        )(image).numpy()
        for normalize in (False, True)
    ]
    return stages[0].transpose(1, 2, 0), stages[1]


def main() -> None:
    """Compute every case and write the fixture."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for case in CASES:
        resized, pixels = timm_answers(case)
        arrays[case.key] = resized
        arrays[case.key + "-sha256"] = np.array(hashlib.sha256(pixels.tobytes()).hexdigest())
    np.savez_compressed(FIXTURE, **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
