"""timm's own model through torch.onnx.export as it comes: the graph that people have today.

Runs in an environment of its own (timm imports torchvision, which wants the matching torch build;
several GB):

    python -m venv .venv-timm && .venv-timm/bin/pip install timm onnx onnxscript
    .venv-timm/bin/python benchmarks/peers/timm_onnx.py vit_base_patch16_224 timm.onnx
"""

from __future__ import annotations

import sys

import timm
import torch


def main() -> int:
    name, path = sys.argv[1:3]
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    pixels = torch.randn(2, *model.pretrained_cfg["input_size"])
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        model,
        (pixels,),
        path,
        dynamo=True,
        opset_version=18,
        dynamic_shapes={"x": {0: batch}},
        external_data=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
