"""preprocess.onnx: what Pillow and NumPy do to an image, as a graph of standard operators.

uint8[H, W, 3], RGB, of any size -> what the model takes. It gives the pixels of
`images.preprocess` to the bit, which no Resize operator does.

Pillow resizes one axis after the other and rounds to 8 bits in between. Its coefficients are
integers of 22 bits (src/libImaging/Resample.c). Here they are computed in float64 from the size of
the image, as Pillow computes them. Each is cut into three bytes; MatMulInteger multiplies those
with the pixels, and int32 takes the sums, as Pillow's does. A filter reaches few pixels: the
outputs of an axis are taken in blocks, and a block is multiplied with the pixels it needs alone.

Of the ways that were tried on onnxruntime 1.31 (3000 x 4000 px to 224, bicubic, one thread, the
columns alone, ms; Pillow takes 56):

    one product with all pixels, in float64                 553
    blocks of 32, 16, 8 outputs, in bytes                   58, 36, 28    8 was chosen
    Transpose of [H, W, 3] to [W, H, 3]                     106
    Transpose of [H, W * 3] to [W * 3, H]                   9             chosen
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from vit_edge.bundle.manifest import Preprocessing
from vit_edge.graphs.names import Names
from vit_edge.graphs.versions import MINIMUM_IR

INPUT, OUTPUT = "image", "pixels"
# The operators are the same in all of them; 13 is what the oldest runtimes read.
OLDEST_OPSET = 13
_OLDEST_IR = 7  # onnx's versions table

_FLOAT, _DOUBLE = onnx_ir.DataType.FLOAT, onnx_ir.DataType.DOUBLE
_UINT8, _UINT32 = onnx_ir.DataType.UINT8, onnx_ir.DataType.UINT32
_INT32, _INT64 = onnx_ir.DataType.INT32, onnx_ir.DataType.INT64

_BLOCK = 8  # outputs of an axis that are computed together
_PRECISION_BITS = 32 - 8 - 2  # of a coefficient: Resample.c
_SUPPORT_PX = {"box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}
_DIGIT_ZERO = 128  # of a byte of a coefficient: what stands for 0


def preprocessing_graph(
    spec: Preprocessing, dtype: Literal["float32", "uint8"], opset: int = OLDEST_OPSET
) -> onnx_ir.Model:
    """Write a preprocessing as a graph.

    Args:
        spec: Resize, crop, scale and normalise; images are RGB, and have no transparency left.
        dtype: What the model takes: normalised pixels, or images as they were resized.
        opset: Of the graph: the model's, where both become one.

    Returns:
        image uint8[H, W, 3] -> pixels float32[1, 3, h, w], or uint8[1, h, w, 3].
    """
    ops = _Ops(Tape(), {})
    image = onnx_ir.Value(
        name=INPUT,
        type=onnx_ir.TensorType(_UINT8),
        shape=onnx_ir.Shape(["height", "width", 3]),
    )
    resized = _resized(ops, image, spec)  # uint8[h, w * 3]
    height, width = spec.crop_hw
    if dtype == "uint8":
        pixels = ops("Reshape", resized, ops.int64([1, height, width, 3]))
        pixels.shape = onnx_ir.Shape([1, height, width, 3])
    else:
        cropped = ops("Reshape", resized, ops.int64([height, width, 3]))
        pixels = _normalised(ops, cropped, spec)
        pixels.shape = onnx_ir.Shape([1, 3, height, width])
    pixels.name = OUTPUT
    pixels.type = onnx_ir.TensorType(_UINT8 if dtype == "uint8" else _FLOAT)
    graph = onnx_ir.Graph(
        [image],
        [pixels],
        nodes=ops.tape.nodes,
        initializers=list(ops.constants.values()),
        opset_imports={"": opset},
        name="preprocess",
    )
    _name_all(graph)
    return onnx_ir.Model(graph, ir_version=MINIMUM_IR.get(opset, _OLDEST_IR))


def put_in_front(model: onnx_ir.Model, preprocessing: onnx_ir.Model) -> None:
    """Make one graph of both, in place: an image in, the model's answers to it out.

    Args:
        model: With one input, which `preprocessing` makes; its batch becomes 1.
        preprocessing: Of the same operator set. It is used up.
    """
    graph, before = model.graph, preprocessing.graph
    (taken,) = (value for value in graph.inputs if not value.is_initializer())
    (image,), (pixels,) = before.inputs, before.outputs
    nodes, names = list(before), Names.of(model)
    before.inputs.clear()
    before.outputs.clear()
    before.remove(nodes)
    pixels.name, image.name = names.fresh(f"preprocess.{OUTPUT}"), names.fresh(INPUT)
    taken.replace_all_uses_with(pixels)
    graph.inputs.clear()
    graph.inputs.append(image)
    graph.insert_before(graph[0], nodes)
    for constant in list(before.initializers.values()):
        before.initializers.pop(str(constant.name))
        graph.register_initializer(constant)
    for output in graph.outputs:
        assert output.shape is not None
        output.shape = onnx_ir.Shape([1, *list(output.shape)[1:]])


class _Ops(NamedTuple):
    """Adds nodes to a graph; constants are shared with the graphs inside it."""

    tape: Tape
    constants: dict[tuple[str, bytes, tuple[int, ...]], onnx_ir.Value]

    def __call__(self, operator: str, *inputs: onnx_ir.Value, **attributes: Any) -> onnx_ir.Value:
        return self.tape.op(operator, inputs, attributes or None)

    def inside(self) -> _Ops:
        """Begin a graph inside this one."""
        return _Ops(Tape(), self.constants)

    def constant(self, array: NDArray[Any]) -> onnx_ir.Value:
        key = (str(array.dtype), array.tobytes(), array.shape)
        if key not in self.constants:
            tensor = onnx_ir.tensor(array, name=f"preprocess.{len(self.constants)}")
            self.constants[key] = onnx_ir.Value(
                name=tensor.name,
                type=onnx_ir.TensorType(tensor.dtype),
                shape=onnx_ir.Shape(array.shape),
                const_value=tensor,
            )
        return self.constants[key]

    def int64(self, values: int | Sequence[int]) -> onnx_ir.Value:
        return self.constant(np.array(values, np.int64))

    def int32(self, value: int) -> onnx_ir.Value:
        return self.constant(np.array(value, np.int32))

    def double(self, value: float) -> onnx_ir.Value:
        return self.constant(np.array(value, np.float64))

    def cast(self, value: onnx_ir.Value, dtype: onnx_ir.DataType) -> onnx_ir.Value:
        return self("Cast", value, to=int(dtype))


def _name_all(graph: onnx_ir.Graph) -> None:
    """Give every node and value a name, those of graphs inside as well."""
    for index, node in enumerate(onnx_ir.traversal.RecursiveGraphIterator(graph)):
        node.name = f"preprocess.{index}/{node.op_type}"
        for output in node.outputs:
            if not output.is_graph_output() or output.graph is not graph:
                output.name = f"{node.name}:0"


class _Axis(NamedTuple):
    """One axis of the image, and what is kept of it once it is resized."""

    size: onnx_ir.Value  # int64[], of the image
    resized: onnx_ir.Value  # int64[], of the whole image when it is resized
    start: onnx_ir.Value  # int64[], where the crop begins in that
    kept: int  # px of the crop


def _resized(ops: _Ops, image: onnx_ir.Value, spec: Preprocessing) -> onnx_ir.Value:
    """uint8[H, W, 3] -> uint8[h, w * 3], resized and cropped."""
    shape = ops("Shape", image)
    height, width = (ops("Gather", shape, ops.int64(axis)) for axis in (0, 1))
    rows, columns = (
        _Axis(size, resized, _crop_start(ops, resized, kept, spec), kept)
        for size, resized, kept in zip(
            (height, width), _resized_sizes(ops, height, width, spec), spec.crop_hw, strict=True
        )
    )
    if spec.interpolation == "nearest":
        down = ops("Gather", image, _nearest(ops, rows), axis=0)
        across = ops("Gather", down, _nearest(ops, columns), axis=1)
        return ops("Reshape", across, ops.int64([rows.kept, -1]))
    filters = [_filter(ops, axis, spec.interpolation) for axis in (rows, columns)]
    rest = ops.int64([-1])
    by_row = ops("Concat", ops("Reshape", height, ops.int64([1])), rest, axis=0)
    flat = ops("Reshape", image, by_row)  # [H, W * 3]
    # The rule of Pillow 13, see images.resize: which axis is first decides how it is rounded.
    lost = [ops("Sub", axis.size, axis.resized) for axis in (rows, columns)]
    twice = ops("Max", ops.int64(0), ops("Mul", ops.int64(2), lost[1]))
    rows_first, columns_first = ops.inside(), ops.inside()
    one = _columns(rows_first, _rows(rows_first, flat, filters[0]), filters[1], columns)
    other = _rows(columns_first, _columns(columns_first, flat, filters[1], columns), filters[0])
    return ops(
        "If",
        ops("Greater", lost[0], twice),
        then_branch=onnx_ir.Graph([], [one], nodes=rows_first.tape.nodes, name="rows_first"),
        else_branch=onnx_ir.Graph(
            [], [other], nodes=columns_first.tape.nodes, name="columns_first"
        ),
    )


def _resized_sizes(
    ops: _Ops, height: onnx_ir.Value, width: onnx_ir.Value, spec: Preprocessing
) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    """(height, width), int64[], of the resized image: as images.resize has it."""
    target_h, target_w = spec.resize_hw
    if spec.resize == "squash":
        return ops.int64(target_h), ops.int64(target_w)
    if target_h == target_w:
        short, long = ops("Min", height, width), ops("Max", height, width)
        target = ops.int64(target_h)
        new_long = ops("Div", ops("Mul", target, long), short)
        upright = ops("LessOrEqual", width, height)
        return ops("Where", upright, new_long, target), ops("Where", upright, target, new_long)
    tall, wide = ops.cast(height, _DOUBLE), ops.cast(width, _DOUBLE)
    ratio = ops(
        "Min",
        ops("Div", tall, ops.double(target_h)),
        ops("Div", wide, ops.double(target_w)),
    )
    new = [ops.cast(ops("Round", ops("Div", size, ratio)), _INT64) for size in (tall, wide)]
    return new[0], new[1]


def _crop_start(ops: _Ops, resized: onnx_ir.Value, kept: int, spec: Preprocessing) -> onnx_ir.Value:
    """int64[]: the middle, half a pixel as the preprocessing rounds it."""
    spare = ops("Sub", resized, ops.int64(kept))
    if spec.crop_rounding == "down":
        return ops("Div", spare, ops.int64(2))
    half = ops("Mul", ops.cast(spare, _DOUBLE), ops.double(0.5))
    return ops.cast(ops("Round", half), _INT64)


def _scale(ops: _Ops, axis: _Axis) -> onnx_ir.Value:
    """float64[]: pixels of the image for one of the resized."""
    return ops("Div", ops.cast(axis.size, _DOUBLE), ops.cast(axis.resized, _DOUBLE))


def _nearest(ops: _Ops, axis: _Axis) -> onnx_ir.Value:
    """int64[kept]: the pixels that are picked; ImagingScaleAffine in Geometry.c adds up steps."""
    step = ops("Reshape", _scale(ops, axis), ops.int64([1]))
    start = ops("Reshape", axis.start, ops.int64([1]))
    others = ops("Add", start, ops.int64([axis.kept - 1]))
    steps = ops("Concat", ops("Mul", step, ops.double(0.5)), ops("Expand", step, others), axis=0)
    places = ops.cast(ops("CumSum", steps, ops.int64(0)), _INT64)
    end = ops("Add", start, ops.int64([axis.kept]))
    kept = ops("Slice", places, start, end, ops.int64([0]))
    return ops("Min", kept, ops("Sub", axis.size, ops.int64(1)))


class _Filter(NamedTuple):
    """How the pixels of one axis are weighed."""

    places: onnx_ir.Value  # int64[blocks, reach]: the pixels that the outputs of a block read
    digits: onnx_ir.Value  # uint8[blocks, 3 * _BLOCK, reach]: bytes of coefficients, highest first
    kept: int


def _filter(ops: _Ops, axis: _Axis, interpolation: str) -> _Filter:
    """Compute the coefficients: precompute_coeffs and normalize_coeffs_8bpc of Resample.c."""
    blocks = -(-axis.kept // _BLOCK)
    # The last block is filled up with the last output.
    index = np.minimum(np.arange(blocks * _BLOCK), axis.kept - 1).reshape(blocks, _BLOCK, 1)
    half = ops.double(0.5)
    scale = _scale(ops, axis)
    stretch = ops("Max", scale, ops.double(1))
    support = ops("Mul", stretch, ops.double(_SUPPORT_PX[interpolation]))
    output = ops("Add", ops.constant(index.astype(np.float64)), ops.cast(axis.start, _DOUBLE))
    center = ops("Mul", ops("Add", output, half), scale)
    first = ops.cast(ops("Add", ops("Sub", center, support), half), _INT64)
    first = ops("Max", first, ops.int64(0))
    stop = ops.cast(ops("Add", ops("Add", center, support), half), _INT64)
    stop = ops("Min", stop, axis.size)
    block_first = ops("Gather", first, ops.int64(0), axis=1)  # [blocks, 1]
    block_stop = ops("Gather", stop, ops.int64(_BLOCK - 1), axis=1)
    reach = ops("ReduceMax", ops("Sub", block_stop, block_first), keepdims=0)
    places = ops("Add", block_first, ops("Range", ops.int64(0), reach, ops.int64(1)))
    place = ops("Unsqueeze", places, ops.int64([1]))  # [blocks, 1, reach]
    apart = ops("Add", ops("Sub", ops.cast(place, _DOUBLE), center), half)
    apart = ops("Mul", apart, ops("Div", ops.double(1), stretch))
    inside = ops("And", ops("GreaterOrEqual", place, first), ops("Less", place, stop))
    weight = ops("Mul", _WEIGHTS[interpolation](ops, apart), ops.cast(inside, _DOUBLE))
    share = ops("Div", weight, ops("ReduceSum", weight, ops.int64([2]), keepdims=1))
    scaled = ops("Mul", share, ops.double(1 << _PRECISION_BITS))
    rounded = ops("Add", scaled, ops("Mul", ops("Sign", scaled), half))
    coefficient = ops.cast(rounded, _INT32)  # towards zero
    return _Filter(
        ops("Min", places, ops("Sub", axis.size, ops.int64(1))),
        _digits(ops, coefficient),
        axis.kept,
    )


def _digits(ops: _Ops, coefficient: onnx_ir.Value) -> onnx_ir.Value:
    """int32[blocks, _BLOCK, reach] -> its three bytes, each around _DIGIT_ZERO."""
    shifted = ops("Add", coefficient, ops.int32(_DIGIT_ZERO * (1 + 2**8 + 2**16)))
    bytes_ = [ops("Div", shifted, ops.int32(2**16))]
    bytes_ += [ops("Mod", ops("Div", shifted, ops.int32(2**8)), ops.int32(2**8))]
    bytes_ += [ops("Mod", shifted, ops.int32(2**8))]
    return ops.cast(ops("Concat", *bytes_, axis=1), _UINT8)


def _box(ops: _Ops, x: onnx_ir.Value) -> onnx_ir.Value:
    within = ops("And", ops("Greater", x, ops.double(-0.5)), ops("LessOrEqual", x, ops.double(0.5)))
    return ops.cast(within, _DOUBLE)


def _bilinear(ops: _Ops, x: onnx_ir.Value) -> onnx_ir.Value:
    return ops("Max", ops("Sub", ops.double(1), ops("Abs", x)), ops.double(0))


def _hamming(ops: _Ops, x: onnx_ir.Value) -> onnx_ir.Value:
    """The constants are float32 in C, and do not add up to 1: at 0, where it is 1, that shows."""
    angle = ops("Mul", ops("Abs", x), ops.double(math.pi))
    level, swing = (ops.double(float(np.float32(value))) for value in (0.54, 0.46))
    window = ops("Add", level, ops("Mul", swing, ops("Cos", angle)))
    weight = ops("Mul", _sine_over(ops, angle), window)
    weight = ops("Where", ops("Equal", x, ops.double(0)), ops.double(1), weight)
    return ops("Mul", weight, ops.cast(ops("Less", ops("Abs", x), ops.double(1)), _DOUBLE))


def _bicubic(ops: _Ops, x: onnx_ir.Value) -> onnx_ir.Value:
    """With a = -0.5; the steps are those of bicubic_filter."""
    a, x = -0.5, ops("Abs", x)
    near = ops("Sub", ops("Mul", ops.double(a + 2), x), ops.double(a + 3))
    near = ops("Add", ops("Mul", ops("Mul", near, x), x), ops.double(1))
    far = ops("Add", ops("Mul", ops("Sub", x, ops.double(5)), x), ops.double(8))
    far = ops("Mul", ops("Sub", ops("Mul", far, x), ops.double(4)), ops.double(a))
    weight = ops("Where", ops("Less", x, ops.double(1)), near, far)
    return ops("Mul", weight, ops.cast(ops("Less", x, ops.double(2)), _DOUBLE))


def _lanczos(ops: _Ops, x: onnx_ir.Value) -> onnx_ir.Value:
    angle = ops("Mul", x, ops.double(math.pi))
    slow = ops("Mul", ops("Div", x, ops.double(3)), ops.double(math.pi))
    weight = ops("Mul", _sine_over(ops, angle), _sine_over(ops, slow))
    within = ops("And", ops("GreaterOrEqual", x, ops.double(-3)), ops("Less", x, ops.double(3)))
    return ops("Mul", weight, ops.cast(within, _DOUBLE))


def _sine_over(ops: _Ops, angle: onnx_ir.Value) -> onnx_ir.Value:
    """sin(angle) / angle, and 1 at 0."""
    zero = ops("Equal", angle, ops.double(0))
    divisor = ops("Where", zero, ops.double(1), angle)
    return ops("Where", zero, ops.double(1), ops("Div", ops("Sin", angle), divisor))


_WEIGHTS = {
    "box": _box,
    "bilinear": _bilinear,
    "hamming": _hamming,
    "bicubic": _bicubic,
    "lanczos": _lanczos,
}


def _rows(ops: _Ops, image: onnx_ir.Value, rows: _Filter) -> onnx_ir.Value:
    """uint8[size, n] -> uint8[kept, n]: what Pillow's passes do, all columns at once."""
    pixels = ops("Gather", image, rows.places, axis=0)  # [blocks, reach, n]
    zero = ops.constant(np.array(_DIGIT_ZERO, np.uint8))
    products = ops("MatMulInteger", rows.digits, pixels, zero)  # int32[blocks, 3 * _BLOCK, n]
    high, middle, low = (
        ops("Slice", products, *(ops.int64([end * _BLOCK]) for end in (n, n + 1)), ops.int64([1]))
        for n in range(3)
    )
    # Where a step leaves int32 it wraps round, and so does the next one: the sum lies within.
    total = ops("Add", ops("Mul", high, ops.int32(2**8)), middle)
    total = ops("Add", ops("Mul", total, ops.int32(2**8)), low)
    total = ops("Add", total, ops.int32(1 << (_PRECISION_BITS - 1)))
    total = ops.cast(ops("Max", total, ops.int32(0)), _UINT32)
    shift = ops.constant(np.array(_PRECISION_BITS, np.uint32))
    level = ops("BitShift", total, shift, direction="RIGHT")
    level = ops("Min", level, ops.constant(np.array(255, np.uint32)))
    padded = -(-rows.kept // _BLOCK) * _BLOCK
    lines = ops("Reshape", ops.cast(level, _UINT8), ops.int64([padded, -1]))
    if rows.kept % _BLOCK == 0:
        return lines
    return ops("Slice", lines, ops.int64([0]), ops.int64([rows.kept]), ops.int64([0]))


def _columns(ops: _Ops, image: onnx_ir.Value, columns: _Filter, axis: _Axis) -> onnx_ir.Value:
    """uint8[n, size * 3] -> uint8[n, kept * 3]: the rows of the turned image."""
    turned = ops("Transpose", image, perm=[1, 0])  # [size * 3, n]
    size = ops("Reshape", axis.size, ops.int64([1]))
    lines = ops("Reshape", turned, ops("Concat", size, ops.int64([-1]), axis=0))
    kept = _rows(ops, lines, columns)  # [kept, 3 * n]
    back = ops("Reshape", kept, ops.int64([axis.kept * 3, -1]))
    return ops("Transpose", back, perm=[1, 0])


def _normalised(ops: _Ops, image: onnx_ir.Value, spec: Preprocessing) -> onnx_ir.Value:
    """uint8[h, w, 3] -> float32[1, 3, h, w], in the arithmetic of images.preprocess.

    A Gather from the table of 256 levels takes four times as long.
    """

    def by_channel(values: Sequence[float]) -> onnx_ir.Value:
        return ops.constant(np.array(values, np.float32).reshape(1, 3, 1, 1))

    planes = ops("Unsqueeze", ops("Transpose", image, perm=[2, 0, 1]), ops.int64([0]))
    scaled = ops("Mul", ops.cast(planes, _DOUBLE), ops.double(spec.rescale_factor))
    pixels = ops.cast(scaled, _FLOAT)
    if spec.offset:
        pixels = ops("Add", pixels, ops.constant(np.array(spec.offset, np.float32)))
    pixels = ops("Sub", pixels, by_channel(spec.mean))
    for _ in range(2 if spec.divided_twice else 1):
        pixels = ops("Div", pixels, by_channel(spec.std))
    return pixels
