"""The artefact: what is in it, how it is written, and who vouches for it."""

from vit_edge.bundle.bundle import Bundle

__all__ = ["Bundle"]
