"""ResNet-50 and DenseNet-121 of torchvision, seeded, in onnxruntime: what users choose ViT against.

Their weights are random, so their answers are compared with those of their own float32 graph.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path

import process
from process import Opened, Setup

MODELS = ("resnet50", "densenet121")


def export(name: str, folder: Path) -> None:
    """TorchScript's exporter, opset 17; and the reference's answers."""
    if (folder / f"{name}.onnx").exists():
        return
    import numpy as np
    import torch
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    pixels = torch.from_numpy(np.load(folder / process.PIXELS))
    with torch.inference_mode():
        answers = torch.cat([model.double()(image[None].double()) for image in pixels])
    np.save(folder / f"{name}-reference.npy", answers.float().numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript's exporter is deprecated, and says so
        torch.onnx.export(
            model.float(),
            (pixels[:2],),
            folder / f"{name}.onnx",
            dynamo=False,
            opset_version=17,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        )


def quantize(name: str, folder: Path) -> None:
    """quantize_static over all operators, as it is meant for CNNs, after its own pre-pass."""
    export(name, folder)
    out = folder / f"{name}-int8.onnx"
    if out.exists():
        return
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / f"{name}-prepared.onnx"
    quant_pre_process(folder / f"{name}.onnx", prepared)  # folds BatchNormalization
    quantize_static(
        prepared,
        out,
        process.feeds(folder, "input"),
        per_channel=True,
        activation_type=QuantType.QUInt8,
    )
    prepared.unlink()


def open_model(file: str, folder: Path, threads: int) -> Opened:
    return process.onnxruntime_session(folder / file, threads)


def setups() -> dict[str, Setup]:
    found = {}
    for name in MODELS:
        for precision, file, make in (
            ("fp32", f"{name}.onnx", export),
            ("int8", f"{name}-int8.onnx", quantize),
        ):
            found[f"{name}-{precision}"] = Setup(
                ("onnxruntime",), partial(open_model, file), partial(make, name), file
            )
    return found


if __name__ == "__main__":
    sys.exit(process.main(setups()))
