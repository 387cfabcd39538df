"""A checkpoint that lies here, or on the hub."""

from __future__ import annotations

from collections.abc import Iterable

from vit_edge.checkpoints.files import WEIGHT_FILES, Place, stem
from vit_edge.checkpoints.request import local_path


def locate(
    source: str,
    reference: str,
    repository: str,
    revision: str | None,
    required: Iterable[str],
    optional: Iterable[str] = (),
    weight_files: Iterable[str] = WEIGHT_FILES,
) -> Place:
    """Find a checkpoint that lies here, or bring it from the hub.

    `reference` is what stands behind the colon of `source`, `repository` what the hub calls it.
    The others are those of `hub.fetch`.

    Raises:
        UsageError: Nothing is named, or a revision of something local.
        CheckpointError: Nothing lies there, and no hub can have it.
        HubError: The hub does not have it or does not answer.
    """
    path = local_path(source, reference, revision)
    if path is not None:
        return Place(path, stem(path))
    from vit_edge.checkpoints import hub  # only here is huggingface_hub needed

    return hub.fetch(source, repository, revision, required, optional, weight_files)
