"""preprocess.onnx with what people get wrong most, in a copy of a bundle."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
from onnx import TensorProto, helper, numpy_helper

from vit_edge.bundle import Bundle
from vit_edge.bundle.manifest import Preprocessing
from vit_edge.graphs.preprocessing import preprocessing_graph

FAULTS = ("BGR", "no antialias", "wrong mean", "HWC for CHW")


def plant(bundle: Bundle, folder: Path, fault: str) -> Path:
    """Copy a bundle that squashes images, with a preprocessing that has one fault."""
    shutil.copytree(bundle.path, folder)
    spec = bundle.manifest.preprocessing
    if fault == "no antialias":
        model = resizing_graph(spec, antialias=False)
    else:
        moved = (spec.mean[0], spec.mean[1] + 0.05, spec.mean[2])
        steps = replace(spec, mean=moved) if fault == "wrong mean" else spec
        model = onnx_ir.to_proto(preprocessing_graph(steps, "float32"))
    if fault == "BGR":
        _swap_channels(model)
    if fault == "HWC for CHW":
        _mix_layouts(model, spec)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(folder / "preprocess.onnx"))
    return folder


def resizing_graph(spec: Preprocessing, *, antialias: bool) -> onnx.ModelProto:
    """The same steps by the operator Resize, in float32: what others write. Squash alone."""
    height, width = spec.crop_hw
    constants = {
        "sizes": np.array([1, 3, height, width], np.int64),
        "unit": np.array(spec.rescale_factor, np.float32),
        "mean": np.array(spec.mean, np.float32).reshape(1, 3, 1, 1),
        "std": np.array(spec.std, np.float32).reshape(1, 3, 1, 1),
        "low": np.array(0, np.float32),
        "high": np.array(255, np.float32),
        "first": np.array([0], np.int64),
    }
    mode = "cubic" if spec.interpolation == "bicubic" else "linear"
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[2, 0, 1]),
        helper.make_node("Unsqueeze", ["planes", "first"], ["batch"]),
        helper.make_node(
            "Resize", ["batch", "", "", "sizes"], ["resized"], mode=mode, cubic_coeff_a=-0.5,
            antialias=int(antialias), exclude_outside=1 if mode == "cubic" else 0,
        ),
        helper.make_node("Clip", ["resized", "low", "high"], ["clipped"]),
        helper.make_node("Round", ["clipped"], ["levels"]),
        helper.make_node("Mul", ["levels", "unit"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["pixels"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "resize",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width", 3])],
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, height, width])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _swap_channels(model: onnx.ModelProto) -> None:
    """Read the image backwards, as OpenCV decodes it."""
    for node in model.graph.node:
        node.input[:] = ["backwards" if name == "image" else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
    swap = helper.make_node("Gather", ["image", "order"], ["backwards"], axis=2, name="swap")
    model.graph.node.insert(0, swap)


def _mix_layouts(model: onnx.ModelProto, spec: Preprocessing) -> None:
    """Call [H, W, 3] what lies there as [3, H, W]: of the right shape, and all mixed up."""
    for node in model.graph.node:
        node.output[:] = ["planes" if name == "pixels" else name for name in node.output]
    shape = numpy_helper.from_array(np.array([1, 3, *spec.crop_hw]), "named")
    model.graph.initializer.append(shape)
    model.graph.node.append(
        helper.make_node("Transpose", ["planes"], ["mixed"], perm=[0, 2, 3, 1], name="mix")
    )
    model.graph.node.append(
        helper.make_node("Reshape", ["mixed", "named"], ["pixels"], name="name")
    )
