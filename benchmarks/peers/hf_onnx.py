"""transformers' own ViT through torch.onnx.export as it comes: the graph that people have today.

    python benchmarks/peers/hf_onnx.py CHECKPOINT_DIR model.onnx
    python benchmarks/peers/hf_onnx.py CHECKPOINT_DIR model.onnx --exporter dynamo

Needs torch, transformers, onnx and onnxscript: the environment of peers/README.md, or the extras
export and dev of vit-edge. The file takes `pixel_values` float32[batch, 3, H, W] and gives `logits`
float32[batch, classes]; its weights are inside.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import ViTForImageClassification

# onnxruntime's quantize_dynamic stops in the shape inference of dynamo's graph, so the older
# exporter is the default. 17 is the first opset with LayerNormalization, 18 the one dynamo writes.
OPSETS = {"torchscript": 17, "dynamo": 18}
TRACED_BATCH = 2  # 1 is a special case to torch.export: it would become a constant


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder with config.json and weights")
    parser.add_argument("out", type=Path)
    parser.add_argument("--exporter", choices=sorted(OPSETS), default="torchscript")
    arguments = parser.parse_args(argv)
    export(arguments.checkpoint, arguments.out, arguments.exporter)
    return 0


def export(checkpoint: Path, out: Path, exporter: str) -> None:
    """Write the ONNX file of a Hugging Face checkpoint.

    Args:
        checkpoint: The folder of a ViTForImageClassification.
        out: Where to; a file that is there is overwritten.
        exporter: One of OPSETS.
    """
    model: Any = ViTForImageClassification.from_pretrained(checkpoint)
    model.eval()
    side = model.config.image_size
    height, width = (side, side) if isinstance(side, int) else side
    pixels = torch.zeros(TRACED_BATCH, model.config.num_channels, height, width)
    dynamo = exporter == "dynamo"
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        # TorchScript's exporter is deprecated, and its tracer warns of every Python `if`.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (pixels,),
            out,
            dynamo=dynamo,
            opset_version=OPSETS[exporter],
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_axes=None if dynamo else {"pixel_values": {0: "batch"}, "logits": {0: "batch"}},
            dynamic_shapes={"pixel_values": {0: batch}} if dynamo else None,
            external_data=False,
        )


if __name__ == "__main__":
    sys.exit(main())
