"""Image -> pixels, as the manifest's `Preprocessing` says; Pillow and NumPy only.

"squash" is what the PIL processor of transformers does (ViTImageProcessorPil), "cover" what timm's
evaluation transform does; both to the bit with Pillow 13.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from vit_edge.bundle.manifest import Manifest, Preprocessing
from vit_edge.errors import ArrayError, UsageError
from vit_edge.images.decode import pillow_at_work
from vit_edge.images.files import DEFAULT_LIMITS, ImageLike, ImageLimits, describe
from vit_edge.images.load import load_picture
from vit_edge.images.resize import resized_from_picture

Decoding: TypeAlias = Literal["exact", "fast"]
DECODINGS = get_args(Decoding)

# How much larger than its target a JPEG is decoded when decoding is "fast". 2 keeps photos within 3
# levels of 255 and takes 0.25 of the time, 1 keeps them within 10 and takes 0.2 (docs/images.md).
_FAST_OVERSAMPLING = 2


def preprocess(
    source: ImageLike,
    spec: Preprocessing,
    limits: ImageLimits = DEFAULT_LIMITS,
    decoding: Decoding = "exact",
) -> NDArray[np.float32]:
    """Make float32[3, H, W] pixels of any image.

    Args:
        source: See `vit_edge.images.load.load_image`.
        spec: What is done to it.
        limits: What is refused.
        decoding: "fast" decodes a JPEG file at 1/2, 1/4 or 1/8 of its size where that leaves twice
            the size that it is resized to, or more; "nearest" excepted, which picks single pixels.
            Pixels of 12-megapixel photos change by 0.2 levels of 255 on average and 3 at most, in
            0.23 to 0.47 of the time; vit-cifar10's logits at 45 dB SQNR (docs/images.md).

    Raises:
        ImageError: See `vit_edge.images.load.load_image`; the same in both ways of decoding.
        UsageError: No such decoding.
    """
    resized = resized_from_source(source, spec, limits, decoding)
    pixels: NDArray[np.float32] = pixels_from_resized(resized[None], spec)[0]
    return pixels


def resized_from_source(
    source: ImageLike,
    spec: Preprocessing,
    limits: ImageLimits = DEFAULT_LIMITS,
    decoding: Decoding = "exact",
) -> NDArray[np.uint8]:
    """Do the first half of `preprocess`: decode, resize and crop, to uint8[H, W, 3]."""
    least_px = _least_px(decoding, spec)
    picture = load_picture(source, least_px, background=spec.background, limits=limits)
    with pillow_at_work(describe(source)):
        return resized_from_picture(picture, spec)


def check_decoding(decoding: str) -> None:
    """Refuse what is no way of decoding.

    Raises:
        UsageError: It is none.
    """
    if decoding not in DECODINGS:
        allowed = " or ".join(f'"{name}"' for name in DECODINGS)
        raise UsageError(f"decoding must be {allowed}, not {decoding!r}")


def _least_px(decoding: Decoding, spec: Preprocessing) -> int | None:
    """What the sides of a JPEG may not fall below when it is decoded; None: decode it whole."""
    check_decoding(decoding)
    if decoding == "exact" or spec.interpolation == "nearest":
        return None
    return _FAST_OVERSAMPLING * max(spec.resize_hw)  # of both: the image may have to be turned


def pixels_from_resized(resized: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    """Scale and normalise: (value * rescale_factor + offset - mean) / std.

    Args:
        resized: uint8[N, H, W, 3].
        spec: rescale_factor, offset, mean, std and divided_twice are used.

    Returns:
        float32[N, 3, H, W], contiguous.

    Raises:
        ArrayError: `resized` is something else.
    """
    _check_resized(resized)
    table = pixel_levels(spec)
    count, height, width, _ = resized.shape
    pixels = np.empty((count, 3, height, width), np.float32)
    for image, planes in zip(resized, pixels, strict=True):
        for channel in range(3):  # mode="clip" writes to `out` without a buffer in between
            np.take(table[channel], image[..., channel], out=planes[channel], mode="clip")
    return pixels


def _check_resized(resized: NDArray[np.generic]) -> None:
    if resized.dtype != np.uint8 or resized.ndim != 4 or resized.shape[3] != 3:
        raise ArrayError(f"{describe(resized)}: expected uint8[N, H, W, 3].")


def input_from_resized(resized: NDArray[np.uint8], manifest: Manifest) -> NDArray[np.generic]:
    """Make what a bundle's model takes: everything that feeds a backend goes through here.

    Args:
        resized: uint8[N, H, W, 3].
        manifest: Its input tensor tells whether the model normalises the images itself.

    Returns:
        float32[N, 3, H, W], or the images as they are.

    Raises:
        ArrayError: `resized` is something else.
    """
    if manifest.input.dtype == "float32":
        return pixels_from_resized(resized, manifest.preprocessing)
    _check_resized(resized)
    return resized


@lru_cache(maxsize=16)
def pixel_levels(spec: Preprocessing) -> NDArray[np.float32]:
    """float32[3, 256]: what each level of each channel becomes.

    In the arithmetic of transformers (image_transforms.rescale and normalize): the product in
    float64, the rest in float32. timm divides by 255 in float32, which gives the same 256 values.
    """
    scaled = (np.arange(256, dtype=np.float64) * spec.rescale_factor).astype(np.float32)
    scaled += np.float32(spec.offset)
    means, stds = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    levels = (scaled[None] - means[:, None]) / stds[:, None]
    return levels / stds[:, None] if spec.divided_twice else levels
