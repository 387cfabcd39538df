"""Checks of a request that need no open file and no answer of the hub."""

from __future__ import annotations

import re
from pathlib import Path

from vit_edge.errors import CheckpointError, UsageError

MAX_IMAGE_PX = 2**14  # a side; attention over more patches fits no machine

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# A name that ends so is a file, and never asked of the hub.
_FILE_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".tar", ".npz", ".json", ".onnx", ".ckpt", ".h5",
    ".msgpack", ".pkl", ".pickle",
)  # fmt: skip


def exists(path: Path) -> bool:
    """True if something lies there; a name no file can have names nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a null character
        return False


def is_hub_id(reference: str) -> bool:
    """True if this may be NAME or ORG/NAME of a hub, and is not meant as a file."""
    return bool(_HUB_ID.fullmatch(reference)) and not reference.lower().endswith(_FILE_SUFFIXES)


def local_path(source: str, reference: str, revision: str | None) -> Path | None:
    """Return the path a reference means on this machine; None if it is one of the hub's ids.

    Raises:
        UsageError: The reference is empty, or a revision was given for something local.
        CheckpointError: Nothing lies there, and no hub can have it.
    """
    if not reference:
        raise UsageError(f"{source}: needs a model id, a file or a directory behind the colon")
    path = Path(reference)
    if exists(path):
        refuse_revision(revision, f"{source}:{reference}")
        return path
    if is_hub_id(reference):
        return None
    if reference.lower().endswith(_FILE_SUFFIXES):
        raise CheckpointError(f"{reference}: no such file")
    raise CheckpointError(
        f"{reference}: no such file or directory, and no model id of the hub (ORG/NAME)"
    )


def refuse_revision(revision: str | None, source: str) -> None:
    """Refuse a revision of what has none.

    Raises:
        UsageError: There is a revision.
    """
    if revision is not None:
        raise UsageError(
            f"--revision belongs to a hub repository, and {source} is none; leave it out"
        )


def refuse_key(key: str | None, source: str) -> None:
    """Refuse a key of what holds one model.

    Raises:
        UsageError: There is a key.
    """
    if key is not None:
        raise UsageError(f"--key chooses among the models of a weight file, and {source} is none")


def check_image_size(image_hw: tuple[int, int], patch_px: int) -> None:
    """Refuse an image that is no whole number of patches.

    Raises:
        UsageError: The message names the nearest sizes that are.
    """
    problems = []
    for axis, size_px in zip(("height", "width"), image_hw, strict=True):
        if size_px > MAX_IMAGE_PX:
            problems.append(f"image {axis} {size_px} px is more than {MAX_IMAGE_PX} px")
        elif size_px < patch_px or size_px % patch_px:
            below = max(size_px // patch_px, 1) * patch_px
            problems.append(
                f"image {axis} {size_px} px is no multiple of the patch size {patch_px} px; "
                f"the nearest are {below} and {below + patch_px}"
            )
    if problems:
        raise UsageError("--image-size: " + "; ".join(problems))
