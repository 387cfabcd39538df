"""Foreign checkpoints in, our names out.

A source is one module of sources/; its file name is its name on the command line. It exports

    recognises(path: Path) -> bool
        Whether a bare path holds this kind of checkpoint, by what is in it.
    load(reference: str, request: Request) -> Checkpoint
        Read it. `reference` is what stands behind the colon of SOURCE.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from vit_edge import plugins
from vit_edge.bundle.architecture import Architecture
from vit_edge.bundle.manifest import (
    CheckpointRecord,
    PositionMethod,
    Preprocessing,
    Scores,
)
from vit_edge.checkpoints.request import check_image_size, exists, is_hub_id, refuse_revision
from vit_edge.errors import CheckpointError, UsageError
from vit_edge.variants import Variant

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

SOURCES = f"{__name__}.sources"  # the package whose modules they are
EMBEDDED_VARIANT = "vit-cifar10"


@dataclass(frozen=True)
class Request:
    """The user's wishes for a checkpoint, beside where it is."""

    variant: Variant | None = None  # None: recognised by the checkpoint
    image_hw: tuple[int, int] | None = None  # None: the checkpoint's own size
    position_method: PositionMethod | None = None  # None: the source's own
    revision: str | None = None  # of a hub repository
    key: str | None = None  # which of several models in a file: an entry, or a prefix of names
    labels: Path | None = None  # a file with one label a class
    text_embeddings: Path | None = None  # .npy of a zero-shot head, float[classes, D]
    logit_scale: float | None = None  # of its cosines; None: the checkpoint's own
    decoder: bool = False  # read what reconstructs pixels in masked-image pretraining, too


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in our own terms, ready for models.vit."""

    variant: str  # the row's name, or the folder's where the shape is in no row
    architecture: Architecture
    # float32, exactly models.vit.parameter_shapes(architecture); texts that are float64 stay so
    weights: Mapping[str, Tensor]
    labels: tuple[str, ...]  # one per class; empty without a head
    preprocessing: Preprocessing
    record: CheckpointRecord
    scores: Scores | None = None  # of its logits; None: it does not say
    labels_invented: bool = False  # the labels are stand-ins


class Source(Protocol):
    """The members of a module of this folder."""

    def recognises(self, path: Path) -> bool:
        """True if a bare path holds this kind of checkpoint."""

    def load(self, reference: str, request: Request) -> Checkpoint:
        """Read it."""


def load_checkpoint(source: str | None, request: Request) -> Checkpoint:
    """Read a checkpoint from wherever SOURCE says.

    Args:
        source: `hf:ID_OR_DIR`, `timm:NAME_OR_FILE_OR_DIR`, `torchvision:FILE`, `jax:FILE.npz`,
            `t2t:FILE`, `open_clip:ID_OR_DIR`, `seeded:N`, `embedded`, or a bare path, recognised
            by what it holds. None: where the variant was published.
        request: What else was asked.

    Returns:
        Weights in float32, with all that belongs to them.

    Raises:
        UsageError: SOURCE names nothing known, or neither it nor a variant was given; the image
            size is no whole number of patches; a revision was given of what has none.
        CheckpointError: The checkpoint is missing, damaged or contradicts itself or the request.
        HubError: The hub is needed and does not answer.
    """
    if source is None:
        source = published_source(request.variant)
        log.info("no checkpoint given: using %s", source)
    if request.variant is not None and request.image_hw is not None:
        check_image_size(request.image_hw, request.variant.patch_px)
    name, colon, reference = source.partition(":")
    known = plugins.names(SOURCES)
    if name in known and (colon or not exists(Path(source))):
        return _source(name).load(reference, request)
    path = Path(source)
    if exists(path):
        refuse_revision(request.revision, source)
        return _source(_recognise(path, known)).load(source, request)
    if colon and "/" not in name and "\\" not in name:
        raise UsageError(f"no checkpoint source {name!r}. There are: {', '.join(known)}")
    raise CheckpointError(f"{source}: no such file or directory{_hub_spelling(source)}")


def published_source(variant: Variant | None) -> str:
    """Name the source where the weights of a variant were published: Hugging Face first, then timm.

    Raises:
        UsageError: Nowhere, or there is no variant.
    """
    if variant is None:
        raise UsageError("name a checkpoint or a variant: --checkpoint SOURCE, --variant NAME")
    if variant.name == EMBEDDED_VARIANT:
        return "embedded"
    if variant.hf is not None:
        return f"hf:{variant.hf}"
    if variant.timm is not None:
        return f"timm:{variant.timm}"
    if variant.t2t is not None:
        raise UsageError(
            f"the weights of {variant.name} are on no hub: take {variant.t2t} of "
            "https://github.com/yitu-opensource/T2T-ViT/releases and write --checkpoint t2t:FILE"
        )
    raise UsageError(
        f"no weights of {variant.name} were ever published. For random ones write "
        "--checkpoint seeded:0"
    )


def _hub_spelling(source: str) -> str:
    """Say how to ask a hub for what may be one of its names; empty if it can be none."""
    if not is_hub_id(source):
        return ""
    if "/" in source:
        return f". A model of the Hugging Face hub is written hf:{source}"
    return f". A model of timm is written timm:{source}"


def _source(name: str) -> Source:
    return cast(Source, plugins.load(SOURCES, name))


def _recognise(path: Path, known: list[str]) -> str:
    """The one source that knows what lies at `path`."""
    from vit_edge.checkpoints import sniff  # needs torch

    fitting = [name for name in known if _source(name).recognises(path)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        spellings = " or ".join(f"{name}:{path}" for name in fitting)
        raise CheckpointError(f"{path}: more than one kind of checkpoint; write {spellings}")
    sniff.raise_reason(path)
    raise CheckpointError(
        f"{path}: no checkpoint recognised. Expected a Hugging Face directory (config.json with "
        "model_type vit), a timm directory or file (config.json with architecture, or tensors "
        "named blocks.0.attn.qkv.weight), a torchvision file "
        "(encoder.layers.encoder_layer_0...), an open_clip directory (open_clip_config.json) or "
        "file (visual.transformer.resblocks.0...), a T2T-ViT file (tokens_to_token...), or a "
        "JAX .npz (Transformer/encoderblock_0/...)"
    )
