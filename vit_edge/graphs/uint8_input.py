"""The patch embedding takes uint8 images as they were resized: it normalises them itself.

A Conv that does not overlap is a product of patches with a matrix, so that

    conv(W, (x * r - mean) / std) + b  =  (patches(x) - mean / r) @ (W * r / std) + b

and a device neither converts, normalises nor transposes an image, and hands over a quarter of the
bytes. Folding the mean into b would save the subtraction, and cost what float32 cannot spare: the
products of a dull patch cancel. The testing variant's features were 2.6e-5 off, not 1.5e-6.
The product is in float32 whatever the Conv was in: folded weights would leave float16's range.

Of the forms that were tried on onnxruntime 1.31 (base-patch16-224, one thread of two busy cores,
least of 100 and 30 interleaved runs; the embedding alone, before it had its subtraction, and
without what preprocessing saves):

    ms                                                batch 1    batch 8
    float32 Conv, flattened and transposed               2.24       28.3
    uint8 Transpose to NCHW, Cast, folded Conv           2.21       25.6
    uint8 Transpose of patch rows, Cast, MatMul, Add     2.20       17.3    chosen
    the same with Gemm on [N * patches, ...]             2.21       18.3
    the same, pixel by pixel instead of patch rows       2.18       27.1
    Cast first, then Transpose of patch rows             2.21       27.3
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from vit_edge.bundle.manifest import Preprocessing, TensorSpec
from vit_edge.errors import ModelError
from vit_edge.graphs.building import Builder

_FLOAT, _UINT8 = onnx_ir.DataType.FLOAT, onnx_ir.DataType.UINT8
_INT64 = onnx_ir.DataType.INT64
_NCHW = (0, 3, 1, 2)  # where its axes are found in NHWC


def uint8_images(tensor: TensorSpec) -> TensorSpec:
    """Describe what `take_uint8` makes of an input float32[N, 3, H, W]."""
    batch, channels, height, width = tensor.shape
    return TensorSpec(tensor.name, "uint8", "NHWC", (batch, height, width, channels))


def take_uint8(
    model: onnx_ir.Model, preprocessing: Preprocessing, target: Literal["cpu", "gpu"]
) -> None:
    """Fold the normalisation into the patch embedding, in place.

    Requires one input, float32[batch, 3, H, W], read by one Conv whose patches tile the image.
    Its weights are initializers of any float type, perhaps behind a Cast. Besides, only the shape
    of the input may be read. Ensures an input of the same name, uint8[batch, H, W, 3], no such
    Conv, the same answers up to rounding for any batch, and the same opset.

    Args:
        model: The finished graph, of any precision. Left as it is where it is refused.
        preprocessing: mean, std and rescale_factor are folded.
        target: For CPUs bytes are put in order, a quarter of what floats are; on GPUs images are
            cast first, as TensorRT does nothing else with uint8 (its DataType.UINT8).

    Raises:
        ModelError: The model is not like that; what is wrong is listed, the node is named.
    """
    image = _image(model)
    embedding = _embedding(image)
    batch, channels, height, width = _dims(image)
    shapes = [use.node for use in image.uses() if use.node.op_type == "Shape"]
    image.type = onnx_ir.TensorType(_UINT8)
    image.shape = onnx_ir.Shape([batch, height, width, channels])
    for node in shapes:
        _keep_shape(model, node)
    build = Builder(model, embedding.conv)
    weights = fold(embedding.weight, preprocessing)
    products = _products(build, image, embedding.patch_hw, weights, target)
    tokens = _with_bias(build, products, embedding.bias)
    _hand_on(model, embedding.conv, tokens, build)
    common.RemoveUnusedNodesPass()(model)


class Folded(NamedTuple):
    """A patch embedding of uint8 patches: (patch - mean) @ matrix."""

    mean: NDArray[np.float32]  # float32[P * P * 3], in levels, ordered as NHWC
    matrix: NDArray[np.float32]  # float32[P * P * 3, D]


def fold(weight: NDArray[Any], preprocessing: Preprocessing) -> Folded:
    """Fold scale and standard deviation into the weights, in float64.

    Args:
        weight: float[D, 3, P, P] of the Conv.
        preprocessing: mean, std, rescale_factor, offset and divided_twice.
    """
    rescale_factor, mean, std = (
        np.array(values, np.float64)
        for values in (preprocessing.rescale_factor, preprocessing.mean, preprocessing.std)
    )
    mean = mean - preprocessing.offset
    std = std * std if preprocessing.divided_twice else std
    by_pixel = weight.astype(np.float64).transpose(2, 3, 1, 0)  # [P, P, 3, D]
    matrix = (by_pixel * (rescale_factor / std)[:, None]).reshape(-1, len(weight))
    levels = np.tile(mean / rescale_factor, len(matrix) // 3)
    return Folded(levels.astype(np.float32), matrix.astype(np.float32))


class _Embedding(NamedTuple):
    """A patch embedding that was found."""

    conv: onnx_ir.Node
    weight: NDArray[Any]  # float[D, 3, P, P]
    bias: onnx_ir.Value | None  # float[D], constant
    patch_hw: tuple[int, int]


def _image(model: onnx_ir.Model) -> onnx_ir.Value:
    """The model's only input.

    Raises:
        ModelError: It is no float32[batch, 3, H, W].
    """
    images = [value for value in model.graph.inputs if not value.is_initializer()]
    described = ", ".join(f"{value.name} {value.dtype} {value.shape}" for value in images)
    sizes = _dims(images[0]) if len(images) == 1 else []
    if (
        len(sizes) != 4
        or images[0].dtype != _FLOAT
        or sizes[1] != 3
        or not all(isinstance(size, int) for size in sizes[2:])
    ):
        raise ModelError(
            f"uint8 input replaces one input float32[batch, 3, H, W]; the graph has {described}. "
            "Export it with --input float32"
        )
    return images[0]


def _embedding(image: onnx_ir.Value) -> _Embedding:
    """The Conv that reads the image.

    Raises:
        ModelError: There is none, or something else reads the image too, or it is no product of
            patches.
    """
    readers = list(_readers(image))
    convs = [node for node in readers if node.op_type == "Conv" and not node.domain]
    others = [node for node in readers if node not in convs and node.op_type != "Shape"]
    if len(convs) != 1 or others:
        names = ", ".join(f"{node.name} ({node.op_type})" for node in (*convs, *others))
        raise ModelError(
            f"uint8 input needs one Conv, the patch embedding, to read {image.name}; it is read by "
            f"{names or 'nothing'}. Export it with --input float32"
        )
    problems, conv = list(_conv_problems(convs[0], image)), convs[0]
    if problems:
        raise ModelError(
            f"{conv.name}: uint8 input needs a patch embedding whose patches tile the image: "
            f"{'; '.join(problems)}. Export it with --input float32"
        )
    weight = _constant(conv.inputs[1])
    assert weight is not None
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    return _Embedding(conv, weight, bias, (weight.shape[2], weight.shape[3]))


def _readers(image: onnx_ir.Value) -> Iterator[onnx_ir.Node]:
    """List the readers of a value, or of its Cast to half precision."""
    for use in image.uses():
        if use.node.op_type == "Cast":
            yield from (inner.node for inner in use.node.outputs[0].uses())
        else:
            yield use.node


def _conv_problems(conv: onnx_ir.Node, image: onnx_ir.Value) -> Iterator[str]:
    """Say why a Conv is no product of patches with a constant matrix."""
    weight = _constant(conv.inputs[1])
    if weight is None or weight.ndim != 4 or weight.shape[1] != 3:
        yield "its weights are no constant [D, 3, P, P]"
        return
    if len(conv.inputs) > 2 and conv.inputs[2] is not None and _constant(conv.inputs[2]) is None:
        yield "its bias is no constant"
    patch_hw = weight.shape[2:]
    for name, needed in (("strides", patch_hw), ("dilations", (1, 1)), ("pads", (0, 0, 0, 0))):
        default = (0, 0, 0, 0) if name == "pads" else (1, 1)
        actual = tuple(conv.attributes[name].as_ints()) if name in conv.attributes else default
        if actual != tuple(needed):
            yield f"{name} are {list(actual)}, not {list(needed)}"
    padding = conv.attributes["auto_pad"].as_string() if "auto_pad" in conv.attributes else "NOTSET"
    if padding not in ("NOTSET", "VALID"):
        yield f"auto_pad is {padding}"
    for size, patch in zip(_dims(image)[2:], patch_hw, strict=True):
        if size % patch:
            yield f"{size} px are no multiple of its {patch} px"


def _constant(value: onnx_ir.Value | None) -> NDArray[Any] | None:
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def _dims(value: onnx_ir.Value) -> list[Any]:
    """Sizes, and symbols for those that are dynamic; none where nothing is known."""
    return [] if value.shape is None else list(value.shape)


def _products(
    build: Builder,
    image: onnx_ir.Value,
    patch_hw: tuple[int, int],
    weights: Folded,
    target: Literal["cpu", "gpu"],
) -> onnx_ir.Value:
    """uint8[batch, H, W, 3] -> float32[batch, patches, D]."""
    batch, height, width, _ = _dims(image)
    down, across = height // patch_hw[0], width // patch_hw[1]
    row = 3 * patch_hw[1]  # of a patch: contiguous in the image
    value = _cast(build, image) if target == "gpu" else image
    value = build.reshape(value, [batch, down, patch_hw[0], across, row])
    by_patch = [batch, down, across, patch_hw[0], row]
    value = build("Transpose", [value], by_patch, value.dtype, {"perm": [0, 1, 3, 2, 4]})
    shape = [batch, down * across, len(weights.matrix)]
    value = build.reshape(value, shape)
    value = _cast(build, value) if target == "cpu" else value
    value = build("Sub", [value, build.constant("mean", weights.mean)], shape, _FLOAT)
    shape = [batch, down * across, weights.matrix.shape[1]]
    return build("MatMul", [value, build.constant("matrix", weights.matrix)], shape, _FLOAT)


def _with_bias(
    build: Builder, products: onnx_ir.Value, bias: onnx_ir.Value | None
) -> onnx_ir.Value:
    """Add a Conv's bias, in float32."""
    array = _constant(bias)
    if bias is None or array is None:
        return products
    if bias.dtype != _FLOAT:
        bias = build.constant("bias", array.astype(np.float32))
    return build("Add", [products, bias], _dims(products), _FLOAT)


def _hand_on(
    model: onnx_ir.Model, conv: onnx_ir.Node, tokens: onnx_ir.Value, build: Builder
) -> None:
    """Give float32[batch, patches, D] to who read the Conv's [batch, D, h, w]; the Conv goes.

    Where that is flattened and transposed into tokens, as ViTs do, these take its place.
    """
    output = conv.outputs[0]
    if output.dtype is not None and output.dtype != _FLOAT:
        tokens = _cast(build, tokens, output.dtype)
    flattened = _flattened(output)
    for transpose in flattened:
        transpose.outputs[0].replace_all_uses_with(tokens)
    if flattened:
        common.RemoveUnusedNodesPass()(model)
    if conv.graph is None:  # nobody read anything else
        return
    batch, width, down, across = _dims(output)
    spread = build.reshape(tokens, [batch, down, across, width])
    planes = build("Transpose", [spread], _dims(output), tokens.dtype, {"perm": list(_NCHW)})
    output.replace_all_uses_with(planes)
    model.graph.remove(conv, safe=True)


def _cast(build: Builder, value: onnx_ir.Value, dtype: onnx_ir.DataType = _FLOAT) -> onnx_ir.Value:
    return build("Cast", [value], _dims(value), dtype, {"to": int(dtype)})


def _flattened(output: onnx_ir.Value) -> list[onnx_ir.Node]:
    """The Transpose nodes that make tokens of [batch, D, h, w] by way of [batch, D, h * w]."""
    transposes = []
    for use in output.uses():
        if use.node.op_type != "Reshape" or _dims(use.node.outputs[0])[:2] != _dims(output)[:2]:
            continue
        for reader in use.node.outputs[0].uses():
            perm = reader.node.attributes.get("perm")
            if reader.node.op_type == "Transpose" and perm and list(perm.as_ints()) == [0, 2, 1]:
                transposes.append(reader.node)
    return transposes


def _keep_shape(model: onnx_ir.Model, node: onnx_ir.Node) -> None:
    """Let a Shape of the image answer as before; most are asked for the batch alone."""
    start, end = (
        node.attributes[name].as_int() if name in node.attributes else default
        for name, default in (("start", 0), ("end", 4))
    )
    axes = _NCHW[start:end]
    if axes == (0,):
        return
    image = node.inputs[0]
    assert image is not None
    build = Builder(model, node)
    sizes = build("Shape", [image], [4], _INT64)
    picked = build.constant("axes", np.array(axes, np.int64))
    kept = build("Gather", [sizes, picked], [len(axes)], _INT64, {"axis": 0})
    node.outputs[0].replace_all_uses_with(kept)
    model.graph.remove(node, safe=True)
