"""Any image -> the model's pixels; folders and tables of images."""

from vit_edge.images.files import DEFAULT_LIMITS, ImageLike, ImageLimits
from vit_edge.images.load import load_image

__all__ = ["DEFAULT_LIMITS", "ImageLike", "ImageLimits", "load_image"]
