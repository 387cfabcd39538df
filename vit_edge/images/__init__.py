"""Any image -> the model's pixels; folders and tables of images."""

from vit_edge.images.files import DEFAULT_LIMITS, ImageLimits
from vit_edge.images.load import ImageLike, load_image

__all__ = ["DEFAULT_LIMITS", "ImageLike", "ImageLimits", "load_image"]
