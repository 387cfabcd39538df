"""The old name of vit_edge.images.preprocess; it goes with 0.3."""

from vit_edge.images.preprocess import preprocess as preprocess
