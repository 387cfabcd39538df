"""The checkpoint that the package carries: a small ViT trained on CIFAR-10."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from vit_edge.checkpoints import EMBEDDED_VARIANT, Checkpoint, Request
from vit_edge.checkpoints.files import Place
from vit_edge.checkpoints.request import refuse_key, refuse_revision
from vit_edge.checkpoints.sources import hf
from vit_edge.errors import UsageError


def recognises(path: Path) -> bool:
    """Never: it is asked for by name."""
    return False


def load(reference: str, request: Request) -> Checkpoint:
    """Read the package's own weights (float16, Hugging Face names).

    Raises:
        UsageError: Something stands behind `embedded:`, or a revision was given.
        CheckpointError: Another variant was asked for.
    """
    if reference:
        raise UsageError(f"embedded takes nothing behind it, got {reference!r}")
    refuse_revision(request.revision, "embedded")
    refuse_key(request.key, "embedded")
    data = resources.files("vit_edge") / "data" / EMBEDDED_VARIANT
    with resources.as_file(data) as folder:
        return hf.load_files(Place(folder, EMBEDDED_VARIANT), "embedded", request)
