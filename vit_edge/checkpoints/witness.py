"""A module in memory as the witness of what was read from it: both answer the same pixels.

A configuration says how a module was made, not what became of it: an activation that was replaced,
a hook, a forward of somebody's own. Whoever answers otherwise is not exported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vit_edge.bundle.architecture import Architecture
from vit_edge.checkpoints import Checkpoint
from vit_edge.errors import CheckpointError
from vit_edge.models.reference import reference_outputs
from vit_edge.models.vit import vit_from_weights

_IMAGES = 2
# Of the reference's largest value. float32 on a CPU differs by some 1e-6; a GPU may multiply in
# TF32, with ten bits; float16 has ten bits as well, bfloat16 seven, and errors of blocks add up.
_ALLOWED = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.1}
_ALLOWED_ON_GPU = 0.02


def check_answers(module: nn.Module, checkpoint: Checkpoint, where: str) -> None:
    """Ask the module and the model that was read; leave the module's mode as it was.

    Args:
        module: Of transformers, timm or torchvision.
        checkpoint: What was read from it, at the module's own image size.
        where: What to call it in errors.

    Raises:
        CheckpointError: The module fails, gives nothing to compare, or answers otherwise.
    """
    a = checkpoint.architecture
    pixels = np.random.default_rng(0).standard_normal(
        (_IMAGES, a.channels, *a.image_hw), np.float32
    )
    weight = next(p for p in module.parameters() if p.is_floating_point())
    with evaluating(module):
        try:
            answer = _ask(module, a, torch.from_numpy(pixels).to(weight.device, weight.dtype))
        except Exception as error:  # whatever a module raises
            raise CheckpointError(
                f"{where}: it does not answer an image of {a.image_hw[0]}x{a.image_hw[1]} px: "
                f"{type(error).__name__}: {error}"
            ) from error
    output, theirs = answer
    if not a.num_classes and not theirs.any():
        return  # a head of zeros, which was left out
    ours = reference_outputs(
        vit_from_weights(a, dict(checkpoint.weights)), pixels, "float32"
    )._asdict()[output]
    theirs = theirs.detach().float().cpu()
    if ours is None or ours.shape != theirs.shape:
        shape = None if ours is None else list(ours.shape)
        raise CheckpointError(
            f"{where}: its {output} are of shape {list(theirs.shape)}, expected {shape}"
        )
    largest = float(ours.abs().max()) or 1.0
    difference = float((ours - theirs).abs().max()) / largest
    allowed = _ALLOWED.get(weight.dtype, 1e-4)
    if weight.device.type != "cpu":
        allowed = max(allowed, _ALLOWED_ON_GPU)
    if not difference <= allowed:
        raise CheckpointError(
            f"{where}: it does not compute what its class and configuration say: its {output} "
            f"differ by {difference:.1e} of the largest, allowed {allowed:.0e}. A forward, a hook, "
            "an activation or the attention was changed. Write it with torch.onnx.export, and name "
            "the .onnx file with a processor"
        )


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module and all in it into evaluation, and each back into its own mode."""
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # nothing is compiled
            yield
    finally:
        for part, training in modes.items():
            part.training = training


def _ask(module: nn.Module, a: Architecture, pixels: Tensor) -> tuple[str, Tensor]:
    """Name an output of ours, and give the module's own."""
    known: Any = module
    if hasattr(known, "get_image_features"):
        features = known.get_image_features(pixel_values=pixels)
        return "features", getattr(features, "pooler_output", features)
    with torch.autocast(pixels.device.type, enabled=False):
        answer = known(pixels)
    if isinstance(answer, Tensor):  # timm, torchvision
        own_head = a.num_classes and a.logit_scale is None
        return ("logits" if own_head else "features"), answer
    for output, name in (("logits", "logits"), ("features", "image_embeds")):
        found = getattr(answer, name, None)
        if isinstance(found, Tensor):
            return output, found
    hidden = getattr(answer, "last_hidden_state", None)
    if getattr(answer, "reconstruction", None) is not None:  # ViTForMaskedImageModeling
        hidden = known.base_model(pixels).last_hidden_state
    if isinstance(hidden, Tensor):
        return "tokens", hidden
    raise TypeError(f"{type(answer).__name__} has neither logits nor features")
