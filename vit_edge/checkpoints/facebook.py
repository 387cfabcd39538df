"""DINO and DINOv2 as facebookresearch publishes them: timm's names, and no config.json beside them.

What timm's config.json would say stands in their code: DINOv2 is evaluated at 224 px, though its
positions are those of 518 px, and both resize positions in a way of their own.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from vit_edge.bundle.manifest import PositionMethod
from vit_edge.checkpoints import Request
from vit_edge.checkpoints.files import Weights, open_weights
from vit_edge.checkpoints.tensors import LazyTensor
from vit_edge.errors import CheckpointError
from vit_edge.variants import VARIANTS, Variant

log = logging.getLogger(__name__)

# dinov2/data/transforms.py: resize to 256 for a crop of 224, bicubic, as DeiT and DINO.
PREPROCESSING_AT = VARIANTS["dino-small-patch16-224"].preprocessing_at
_EVALUATED_PX = 224
_HEAD_FILE = re.compile(r"(?P<model>.+)_linear\d*_head\.pth")
LINEAR_HEAD = "linear_head"  # over the class token and the mean of the patches


def is_dinov2(names: Collection[str]) -> bool:
    """Tell DINOv2's own tensors from those that timm made of them; FSDP's chunks may be in them."""
    scaled = not {"blocks.0.ls1.gamma", "blocks.0.0.ls1.gamma"}.isdisjoint(names)
    return scaled and not {"mask_token", "register_tokens"}.isdisjoint(names)


def is_head(path: Path) -> bool:
    """True if a file is called as DINOv2's linear heads are, such as X_linear_head.pth."""
    return path.is_file() and _HEAD_FILE.fullmatch(path.name) is not None


def open_with_head(path: Path, key: str | None) -> Weights:
    """Open weights; where the head is named, the backbone beside it as well.

    Raises:
        CheckpointError: The weights cannot be read, or the backbone of a head is not there.
    """
    named = _HEAD_FILE.fullmatch(path.name) if path.is_file() else None
    if named is None:
        return open_weights(path, key)
    file = path.with_name(f"{named['model']}_pretrain.pth")
    if not file.is_file():
        raise CheckpointError(
            f"{path}: the linear head of a DINOv2 model alone; put {file.name} beside it"
        )
    head, backbone = open_weights(path), open_weights(file, key)
    joined = {f"{LINEAR_HEAD}.{name}": tensor for name, tensor in head.tensors.items()}
    return Weights(path, backbone.tensors | joined, (*head.files, *backbone.files))


def plain_names(tensors: Mapping[str, LazyTensor], where: str) -> dict[str, LazyTensor]:
    """Take FSDP's chunks out of the names, blocks.0.3. to blocks.3., and call the head `head`.

    Raises:
        CheckpointError: The head reads something else than DINOv2's last block.
    """
    plain = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^blocks\.\d+\.(?=\d+\.)", "blocks.", name)
        plain[re.sub(rf"^{LINEAR_HEAD}\.", "head.", name)] = tensor
    head, token = tensors.get(f"{LINEAR_HEAD}.weight"), tensors.get("cls_token")
    if head is None or token is None:
        return plain
    inputs = 2 * token.shape[-1]
    if head.shape[1:] != (inputs,) or not is_dinov2(plain):
        raise CheckpointError(
            f"{where}: {LINEAR_HEAD}.weight is of shape {list(head.shape)}. What is supported is "
            "DINOv2's head over the last block alone, its class token and the mean of its patches: "
            f"[classes, {inputs}]. Four blocks (linear4) are not: take X_linear_head.pth or "
            "layers=1 of torch.hub's model. Without a head: X_pretrain.pth, or --key backbone"
        )
    return plain


def position_method(names: Collection[str], row: Variant | None) -> PositionMethod | None:
    """Say how the original resizes positions, for weights without a config.json.

    None if it is neither DINO nor DINOv2. With registers DINOv2 has interpolate_antialias=True and
    interpolate_offset=0.0, without False and 0.1, as DINO (dinov2/hub/backbones.py).
    """
    if is_dinov2(names):
        return "bicubic-antialias" if "register_tokens" in names else "bicubic-offset"
    return "bicubic-offset" if row is not None and str(row.timm).endswith(".dino") else None


def at_evaluated_size(request: Request, names: Collection[str]) -> Request:
    """Ask for 224 px of DINOv2, where the user asks for no size."""
    if request.image_hw is not None or not is_dinov2(names):
        return request
    log.info(
        "DINOv2 is evaluated at %d px, its positions are those of the training; another size: "
        "--image-size",
        _EVALUATED_PX,
    )
    return dataclasses.replace(request, image_hw=(_EVALUATED_PX, _EVALUATED_PX))
