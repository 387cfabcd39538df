"""Image -> pixels, as the manifest's `Preprocessing` says; Pillow and NumPy only.

"squash" is what the PIL processor of transformers does (ViTImageProcessorPil), "cover" what timm's
evaluation transform does; both to the bit with Pillow 13. Pillow resizes one axis after the other
and rounds to 8 bits in between; Pillow 13 changed the order for tall images. Here the order is that
of Pillow 13 whatever the version, so that a device with an older one makes the same pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_edge.bundle.manifest import Interpolation, Manifest, Preprocessing
from vit_edge.errors import ArrayError, UsageError
from vit_edge.images.decode import pillow_at_work
from vit_edge.images.files import DEFAULT_LIMITS, ImageLike, ImageLimits, describe
from vit_edge.images.load import load_picture
from vit_edge.images.reduced import Picture, Size, whole

Decoding: TypeAlias = Literal["exact", "fast"]
DECODINGS = get_args(Decoding)

_FILTERS = {name: Image.Resampling[name.upper()] for name in get_args(Interpolation)}
_SUPPORT_PX = 3  # of Lanczos, the widest filter (Pillow, src/libImaging/Resample.c)

# How much larger than its target a JPEG is decoded when decoding is "fast". 2 keeps photos within 3
# levels of 255 and takes 0.25 of the time, 1 keeps them within 10 and takes 0.2 (docs/images.md).
_FAST_OVERSAMPLING = 2

# Up to this many pixels (200 MB in Pillow, as much as the largest image that is decoded) the whole
# image is resized and then cropped; beyond it, only what the crop keeps is computed.
_MAX_RESIZED_PIXELS = 50_000_000


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
    """Do the first half of `preprocess`: decode, resize and crop.

    Returns:
        uint8[H, W, 3].

    Raises:
        ImageError: As in `preprocess`.
        UsageError: No such decoding.
    """
    least_px = _least_px(decoding, spec)
    picture = load_picture(source, least_px, background=spec.background, limits=limits)
    with pillow_at_work(describe(source)):
        return _resized_from_picture(picture, spec)


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


def resized_from_image(image: Image.Image, spec: Preprocessing) -> NDArray[np.uint8]:
    """Resize an RGB image and cut out its centre.

    Equal to resizing the whole image and then cropping, except where the whole would be larger than
    50 Mpx (a 10000:1 image that covers 248 x 248 would be 2.5 million pixels long). There only the
    crop is computed, from the same source coordinates: equal within 1 level, but for "nearest" and
    "box", which jump and may take the pixel beside.

    Args:
        image: Mode "RGB", as `load_image` gives it.
        spec: resize, resize_hw, crop_hw and interpolation are used.

    Returns:
        uint8[H, W, 3], H and W as in spec.crop_hw.
    """
    return _resized_from_picture(whole(image), spec)


def _resized_from_picture(picture: Picture, spec: Preprocessing) -> NDArray[np.uint8]:
    """Resize and crop what an image shows; see `resized_from_image`."""
    image, full_size, edges = picture
    new_size = _resized_size(full_size, spec)
    crop_h, crop_w = spec.crop_hw
    # CenterCrop of torchvision: Python's round, so that halves go to the even number.
    left, top = round((new_size[0] - crop_w) / 2), round((new_size[1] - crop_h) / 2)
    box = (left, top, left + crop_w, top + crop_h)
    resample = _FILTERS[spec.interpolation]
    # An image that was decoded smaller is larger than what it is resized to.
    if image.size == full_size and new_size[0] * new_size[1] > _MAX_RESIZED_PIXELS:
        return np.asarray(_crop_of_resized(image, new_size, box, resample))
    for axis in _axis_order(image.size, new_size):
        if image.size[axis] != new_size[axis]:
            span = edges[axis], edges[axis + 2]
            image = _resized_along(axis, image, new_size[axis], span, resample)
    return np.asarray(image.crop(box) if new_size != (crop_w, crop_h) else image)


def pixels_from_resized(resized: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    """Scale and normalise: (value * rescale_factor - mean) / std.

    Args:
        resized: uint8[N, H, W, 3].
        spec: rescale_factor, mean and std are used.

    Returns:
        float32[N, 3, H, W], contiguous.

    Raises:
        ArrayError: `resized` is something else.
    """
    _check_resized(resized)
    table = _levels(spec.rescale_factor, spec.mean, spec.std)
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
def _levels(
    rescale_factor: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> NDArray[np.float32]:
    """float32[3, 256]: what each level of each channel becomes.

    In the arithmetic of transformers (image_transforms.rescale and normalize): the product in
    float64, the rest in float32. timm divides by 255 in float32, which gives the same 256 values.
    """
    scaled = (np.arange(256, dtype=np.float64) * rescale_factor).astype(np.float32)
    means, stds = np.array(mean, np.float32), np.array(std, np.float32)
    return (scaled[None] - means[:, None]) / stds[:, None]


def _resized_size(size: Size, spec: Preprocessing) -> Size:
    """(width, height) after resizing an image of `size` = (width, height)."""
    width, height = size
    target_h, target_w = spec.resize_hw
    if spec.resize == "squash":
        return target_w, target_h
    if target_h == target_w:  # torchvision.transforms.Resize(int): the shortest edge, truncating
        short, long = min(size), max(size)
        new_long = int(target_w * long / short)
        return (target_w, new_long) if width <= height else (new_long, target_w)
    ratio = min(height / target_h, width / target_w)  # timm.data.transforms.ResizeKeepRatio
    return round(width / ratio), round(height / ratio)


def _axis_order(size: Size, new_size: Size) -> tuple[int, int]:
    """Which axis is resized first (0: width, 1: height): the rule of Pillow 13.

    Source: ImagingResampleInner in src/libImaging/Resample.c. Pillow before 13 always began with
    the width. Either way nothing in between is much larger than the larger of the two images.
    """
    width_lost, height_lost = size[0] - new_size[0], size[1] - new_size[1]
    return (1, 0) if height_lost > max(0, 2 * width_lost) else (0, 1)


def _resized_along(
    axis: int,
    image: Image.Image,
    length: int,
    span: tuple[float, float],
    resample: Image.Resampling,
) -> Image.Image:
    """Resize one axis: `length` pixels of what lies within `span`."""
    size, box = list(image.size), [0.0, 0.0, *image.size]
    size[axis], box[axis], box[axis + 2] = length, *span
    return image.resize((size[0], size[1]), resample, (box[0], box[1], box[2], box[3]))


def _crop_of_resized(
    image: Image.Image,
    new_size: Size,
    box: tuple[int, int, int, int],
    resample: Image.Resampling,
) -> Image.Image:
    """`image.resize(new_size).crop(box)` in memory bounded by the image and the crop."""
    left, top, right, bottom = box
    first_x, last_x, *span_x = _window(image.width, new_size[0], left, right)
    first_y, last_y, *span_y = _window(image.height, new_size[1], top, bottom)
    order = _axis_order(image.size, new_size)
    image = image.crop((first_x, first_y, last_x, last_y))
    for axis in order:
        length, span = ((right - left, span_x), (bottom - top, span_y))[axis]
        image = _resized_along(axis, image, length, (span[0], span[1]), resample)
    return image


def _window(length: int, new_length: int, start: int, stop: int) -> tuple[int, int, float, float]:
    """Where the pixels start..stop of a resized axis come from.

    Returns:
        The first and last pixel that the filter can reach, and the exact span within those: Pillow
        keeps such coordinates in float32, too coarse for the whole of a long image.
    """
    scale = length / new_length
    reach = math.ceil(_SUPPORT_PX * max(scale, 1)) + 1
    first = max(math.floor(start * scale) - reach, 0)
    last = min(math.ceil(stop * scale) + reach, length)
    return first, last, start * scale - first, min(stop * scale, length) - first
