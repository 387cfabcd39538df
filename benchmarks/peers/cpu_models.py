"""timm's model with given weights, as people run it on a CPU today: what other scripts share.

`timm_model` reads weights.safetensors (names and layout of vit_edge.models.vit). `export` writes
timm.onnx: TorchScript's exporter, opset 17, dynamic batch. `nncf_int8` makes of that nncf.xml:
NNCF's transformer preset, calibrated on pixels.npy, float32[N, 3, H, W]. Files that are there are
kept.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

FLOAT, NNCF = "timm.onnx", "nncf.xml"
WEIGHTS, PIXELS = "weights.safetensors", "pixels.npy"
OPSET = 17  # the first with LayerNormalization
# ours -> timm's, as parts of names; in this order
_NAMES = {
    "embedding.cls_token": "cls_token",
    "embedding.position": "pos_embed",
    "embedding.patch": "patch_embed.proj",
    "attention.out": "attn.proj",
    "attention.qkv": "attn.qkv",
    "readout.": "",
}


def timm_model(name: str, weights: Path) -> Any:
    """timm's model, in eval mode, with our weights: Linears are stored transposed there."""
    import timm
    from safetensors.torch import load_file

    model = timm.create_model(name, pretrained=False).eval()
    tensors = {}
    for ours, tensor in load_file(weights).items():
        theirs = ours
        for part, replacement in _NAMES.items():
            theirs = theirs.replace(part, replacement)
        tensors[theirs] = tensor.T.contiguous() if tensor.ndim == 2 else tensor
    model.load_state_dict(tensors, strict=True)
    return model


def export(folder: Path, name: str) -> None:
    """Write timm.onnx."""
    if (folder / FLOAT).exists():
        return
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.load(folder / PIXELS)[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript's exporter is deprecated, and says so
        torch.onnx.export(
            timm_model(name, folder / WEIGHTS),
            (pixels,),
            folder / FLOAT,
            dynamo=False,
            opset_version=OPSET,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_axes={"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
        )


def nncf_int8(folder: Path) -> None:
    """Write nncf.xml."""
    if (folder / NNCF).exists():
        return
    import nncf
    import numpy as np
    import openvino

    images = list(np.load(folder / PIXELS)[:, None])
    model = nncf.quantize(
        openvino.Core().read_model(folder / FLOAT),
        nncf.Dataset(images),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
    )
    openvino.save_model(model, folder / NNCF, compress_to_fp16=False)
