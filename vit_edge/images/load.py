"""Any image -> an upright, opaque RGB image of 8 bits per channel.

What a model sees depends on more than the stored pixels. Here the EXIF orientation is applied,
transparency is composited on a stated background, deep images are scaled and not clipped, and of
an animation the first frame is taken. Colour profiles are not applied: neither transformers nor
timm does, and the models were trained that way.
"""

from __future__ import annotations

import logging

import numpy as np
from PIL import Image

from vit_edge.errors import UnsupportedImageError
from vit_edge.images.arrays import image_from_array
from vit_edge.images.decode import decode, load_opened, pillow_at_work
from vit_edge.images.files import DEFAULT_LIMITS, ImageLike, ImageLimits, describe, read_source
from vit_edge.images.orientation import upright_from
from vit_edge.images.reduced import Picture, turned, whole

_logger = logging.getLogger("vit_edge")


def load_image(
    source: ImageLike,
    *,
    background: tuple[int, int, int] = (255, 255, 255),
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Image.Image:
    """Load an image as the model should see it.

    Args:
        source: One of
            a path: of a regular file, recognised by its content, whatever its name;
            bytes: an encoded file;
            a file object: read from its start if it can seek, as Pillow does; it stays open and its
            position is put back;
            a Pillow image: its current frame; a lazy one is loaded (under Pillow's own
            switch for truncated files), else it is left as it is;
            an array: uint8[H, W, 3] in the order RGB, or uint8[H, W] grey; any strides.
        background: What transparency is composited on.
        limits: What is refused, from the header and before decoding.

    Returns:
        An image of mode "RGB". It may share its pixels with a Pillow image that was passed in.

        Deep samples are scaled so that white becomes 255: of 16 bits round(v / 257), of a 12-bit
        TIFF round(v * 255 / 4095); 16-bit colour and 16-bit grey with alpha arrive from Pillow as
        their upper bytes, v // 256, which differs by 1 at most. A TIFF or PFM of 32-bit integers or
        floats does not say what white is: it is the least of 1 (floats only), 255 and 65535 that no
        sample exceeds.

        Frames left out, corrupt EXIF data and guessed white levels are said once for each image, as
        warnings of the logger "vit_edge"; nothing goes through the warnings module.

    Raises:
        ImageDecodeError: No image, or a damaged or truncated one.
        UnsupportedImageError: An image of a format or sample type that is not decoded here.
        ImageTooLargeError: More pixels or bytes than the limits allow.
        ArrayError: An array of the wrong dtype, shape or layout.
    """
    return load_picture(source, None, background=background, limits=limits).image


def load_picture(
    source: ImageLike,
    least_px: int | None,
    *,
    background: tuple[int, int, int] = (255, 255, 255),
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Picture:
    """Load an image as `load_image` does, but a JPEG file perhaps at 1/2, 1/4 or 1/8 of its size.

    Args:
        source: As for `load_image`. What is decoded already or is no JPEG is taken whole.
        least_px: What neither side may fall below; None takes everything whole.
        background: As for `load_image`.
        limits: As for `load_image`; those of pixels hold for the full size.
    """
    name = describe(source)
    if isinstance(source, np.ndarray):
        return whole(image_from_array(source, name, limits))
    file = source if isinstance(source, Image.Image) else read_source(source, name, limits)
    with pillow_at_work(name):
        if isinstance(file, bytes):
            stored = decode(file, name, limits, least_px)
        else:
            stored = load_opened(file, name, limits)
        turn = upright_from(stored.image, name)
        rgb = _rgb_from_image(stored.image, name, background)
        if isinstance(file, bytes):
            _say_frames(stored.image, name)
        return turned(stored._replace(image=rgb), turn)


def _say_frames(image: Image.Image, name: str) -> None:
    """Log that an animation or a document has more than the frame that is used."""
    try:
        # Last of all: finding out makes the GIF reader leave the first frame, and what is wrong
        # beyond it is of no concern here.
        more = getattr(image, "is_animated", False) or "mp" in image.info
    except Exception:
        more = True
    if more:
        _logger.warning("%s: has several frames; only the first is used", name)


def _rgb_from_image(image: Image.Image, name: str, background: tuple[int, int, int]) -> Image.Image:
    """Convert a loaded image of any mode to RGB; the image itself stays as it is."""
    if image.mode == "F" or image.mode.startswith("I"):
        from vit_edge.images.deep import eight_bit_from_deep  # photos do not need it

        image = eight_bit_from_deep(image, name)
    if image.has_transparency_data:
        return _composite(image, background)
    if image.mode == "LAB":
        raise UnsupportedImageError(f"{name}: CIELAB colours. Convert the image to RGB.")
    return image if image.mode == "RGB" else image.convert("RGB")


def _composite(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Lay a transparent image of any mode on an opaque background."""
    if image.mode == "La":
        image = image.convert("LA")
    image = _with_matching_key(image)
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):
        return rgba.convert("RGB")
    canvas = Image.new("RGB", rgba.size, background)
    canvas.paste(rgba, mask=rgba)
    return canvas


def _with_matching_key(image: Image.Image) -> Image.Image:
    """Where a PNG names its transparent colour in other units than Pillow's pixels, convert it."""
    key = image.info.get("transparency")
    if image.mode == "1" and isinstance(key, int):  # Pillow 10 would ignore it
        image = Image.frombytes("L", image.size, image.convert("L").tobytes())
        image.info["transparency"] = 255 if key else 0
    elif image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        # 16-bit colour: Pillow keeps the upper bytes of the pixels, so compare those.
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image
