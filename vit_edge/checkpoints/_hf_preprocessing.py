"""The old name of vit_edge.checkpoints.hf_preprocessing; it goes with 0.3."""

from vit_edge.checkpoints.hf_preprocessing import preprocessing_of as preprocessing_of
