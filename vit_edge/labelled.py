"""The old name of vit_edge.images.folders; it goes with 0.3."""

from vit_edge.images.folders import PHOTOS as PHOTOS
