"""An image file of which a bundle's preprocessing makes given pixels."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_edge.bundle.manifest import Manifest, Preprocessing
from vit_edge.errors import BackendError
from vit_edge.images.preprocess import pixels_from_resized, resized_from_source


def resized_from_input(pixels: NDArray[np.generic], manifest: Manifest) -> NDArray[np.uint8]:
    """Undo `input_from_resized`: what a model takes -> uint8[N, H, W, 3].

    Raises:
        BackendError: The pixels come from no image of 8 bits.
    """
    if pixels.dtype == np.uint8:
        images: NDArray[np.uint8] = pixels.astype(np.uint8)
        return images
    levels = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 1, 256, 1), 3, axis=3)
    tables = pixels_from_resized(levels, manifest.preprocessing)[0, :, 0]
    resized = np.empty((len(pixels), *pixels.shape[2:], 3), np.uint8)
    for channel, table in enumerate(tables):
        found = np.searchsorted(table, pixels[:, channel]).clip(max=255)
        if not np.array_equal(table[found], pixels[:, channel]):
            raise BackendError("these pixels are no image's, so no file of them can be sent")
        resized[..., channel] = found
    return resized


def file_from_resized(resized: NDArray[np.uint8], spec: Preprocessing) -> bytes:
    """Make a PNG file of which the preprocessing makes these pixels.

    An image of the size that images are resized to is not resized, and its centre is kept.

    Args:
        resized: uint8[H, W, 3], of the size after the crop.
        spec: What is done to the file.

    Raises:
        BackendError: There is no such file.
    """
    whole, crop = spec.resize_hw, spec.crop_hw
    rounded = round if spec.crop_rounding == "even" else math.floor
    before = [rounded((full - kept) / 2) for full, kept in zip(whole, crop, strict=True)]
    after = [full - kept - first for full, kept, first in zip(whole, crop, before, strict=True)]
    padded = np.pad(resized, [*zip(before, after, strict=True), (0, 0)], mode="edge")
    buffer = io.BytesIO()
    Image.fromarray(padded).save(buffer, "PNG", compress_level=1)
    file = buffer.getvalue()
    if not np.array_equal(resized_from_source(file, spec), resized):
        raise BackendError("the preprocessing makes these pixels of no file that we know to write")
    return file
