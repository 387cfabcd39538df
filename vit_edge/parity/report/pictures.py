"""The images that a report shows: which, and as data that fits into the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_edge.bundle.golden import Golden
from vit_edge.parity.result import Result, Run

# (sha256 of the golden file as the result names it, index) -> uint8[H, W, 3]
Pictures: TypeAlias = dict[tuple[str, int], NDArray[np.uint8]]

SHOWN = 6  # worst images of a section: two rows of three on a wide page
THUMBNAIL_PX = 144  # the longer side; twice the 72 px it is shown at, for dense screens
JPEG_QUALITY = 80  # 2 to 6 KB at that size; artefacts do not show at half of it


def worst_images(runs: Sequence[Run]) -> list[int]:
    """Pick the images whose answers changed most in any of several runs.

    A flip comes before anything that keeps its class; among flips the reference's margin decides,
    among the rest the divergence. What is not finite comes first.

    Args:
        runs: Of the same golden file.

    Returns:
        Up to SHOWN indices, the worst first.
    """
    worst: dict[int, tuple[float, float]] = {}
    for run in runs:
        for image in run.images:
            badness = (_size(image.relative_margin), _size(image.kl))
            worst[image.index] = max(badness, worst.get(image.index, (0.0, 0.0)))
    return sorted(worst, key=lambda index: (*(-size for size in worst[index]), index))[:SHOWN]


def _size(value: float | None) -> float:
    return math.inf if value is None else value


def pictures_of(golden: Path, result: Result) -> Pictures:
    """Read the images that a result's report shows.

    Args:
        golden: The file that the result's images came from.
        result: Of a comparison with it.

    Returns:
        Few of its images, by the file's hash in the result and the index.

    Raises:
        BundleError: The file cannot be read.
    """
    indices = worst_images(result.runs)
    sha256 = result.golden.sha256
    with Golden(golden) as opened:
        known = [index for index in indices if index < len(opened)]
        return {(sha256, index): opened.images([index])[0] for index in known}


def data_uri(image: NDArray[np.uint8]) -> str:
    """Encode a thumbnail for the `src` of an image.

    Small images are left as they are, as PNG, so that single pixels can be seen.

    Args:
        image: uint8[H, W, 3].
    """
    picture = Image.fromarray(image)
    buffer = io.BytesIO()
    if max(picture.size) <= THUMBNAIL_PX // 2:
        kind = "png"
        picture.save(buffer, "PNG", optimize=True)
    else:
        kind = "jpeg"
        picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
