"""The input and output of an image classifier's ONNX file, and why it may not be one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vit_edge.errors import ModelError
from vit_edge.onnxfile import ModelFacts, ValueFacts

OLDEST_FOREIGN_OPSET = 17  # of other exporters' graphs: the first with LayerNormalization
_CONTROL_FLOW = ("If", "Loop", "Scan")
_INTEGER = (
    "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul", "QuantizeLinear",
)  # fmt: skip
_LOW = {"float16", "bfloat16"}
LOGITS, FEATURES = "logits", "features"

_DYNAMIC_BATCH = (
    "Export it again with a dynamic one: torch.onnx.export(..., dynamo=True, "
    'dynamic_shapes=({0: torch.export.Dim("batch")},)), or with the older exporter '
    'dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}; the example batch must be 2 or more'
)
_FIXED_SIZE = (
    "Fix it: python -m onnxruntime.tools.make_dynamic_shape_fixed --dim_param NAME --dim_value N "
    "model.onnx fixed.onnx"
)


class Interface(NamedTuple):
    """Names and image size, as the file has them."""

    input: str
    output: str  # of what is kept
    image_hw: tuple[int, int]
    kept_as: str = LOGITS  # what a bundle calls it: logits or features


def image_interface(facts: ModelFacts, kept_as: str = LOGITS) -> Interface:
    """Find the image that goes in, and the logits or the features that come out.

    Args:
        facts: Of the file.
        kept_as: LOGITS or FEATURES. An output of that name is taken, or else the only one that may
            be it; logits are no features.

    Raises:
        ModelError: This is no float32 model of RGB images with a dynamic batch and
            LayerNormalization operators; everything that speaks against it is listed.
    """
    constants = {tensor.name for tensor in facts.initializers}
    images = [value for value in facts.inputs if value.name not in constants]
    rows = [value for value in facts.outputs if _has_rows(value)]
    if kept_as == FEATURES:
        rows = [value for value in rows if value.name != LOGITS]
    named = [value for value in rows if value.name == kept_as]
    problems = list(_graph_problems(facts))
    if len(images) == 1:
        problems += _image_problems(images[0])
    else:
        problems.append(
            f"inputs are {_listed(images)}; a single one, the image, is expected: export the "
            "classifier alone, without masks or labels"
        )
    if not rows:
        problems.append(
            f"outputs are {_listed(facts.outputs)}; none is float32[batch, classes], the {kept_as}"
        )
    elif len(rows) > 1 and not named:
        problems.append(
            f"outputs {_listed(rows)} could all be {kept_as}; name one of them {kept_as}"
        )
    if problems:
        raise ModelError(f"{facts.path}: {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    _, _, height, width = images[0].shape or ()
    assert isinstance(height, int)
    assert isinstance(width, int)
    return Interface(images[0].name, (named or rows)[0].name, (height, width), kept_as)


def _graph_problems(facts: ModelFacts) -> Iterator[str]:
    opset = facts.opsets.get("", 0)
    operators = {name for types in facts.operators.values() for name in types}
    if opset < OLDEST_FOREIGN_OPSET:
        yield (
            f"opset {opset}, in which LayerNormalization is taken to pieces; export it again with "
            f"opset {OLDEST_FOREIGN_OPSET} or newer"
        )
    elif "LayerNormalization" not in operators:
        yield (
            "no LayerNormalization: this is no ViT, or one whose LayerNormalization is taken to "
            "pieces; export it again from PyTorch, unoptimized"
        )
    control = sorted(operators.intersection(_CONTROL_FLOW))
    if control:
        yield f"control flow ({', '.join(control)}), which is not followed; export one fixed path"
    integer = sorted(operators.intersection(_INTEGER))
    low = sorted({tensor.dtype for tensor in facts.initializers} & _LOW)
    if integer:
        yield f"quantized already ({', '.join(integer)}); give the float32 model"
    elif low:
        yield f"weights in {', '.join(low)}; give the float32 model, --precision lowers it"


def _image_problems(image: ValueFacts) -> Iterator[str]:
    shape = image.shape
    what = f"input {image.name} is {_describe(image)}"
    if image.dtype != "float32":
        yield f"{what}; float32 pixels are needed, already scaled and normalised"
    if shape is None or len(shape) != 4:
        yield f"{what}; [batch, 3, height, width] is needed"
        return
    batch, channels, *sides = shape
    if isinstance(batch, int):
        yield f"{what}: its batch is fixed to {batch}. {_DYNAMIC_BATCH}"
    if shape[3] == 3 and channels != 3:
        yield f"{what}: channels last (NHWC); export it channels first, [batch, 3, height, width]"
    elif isinstance(channels, int) and channels != 3:
        yield f"{what}: {channels} channels; images are decoded to 3, RGB"
    elif not all(isinstance(size, int) and size > 0 for size in (channels, *sides)):
        yield f"{what}: its channels, height or width are open. {_FIXED_SIZE}"


def _has_rows(value: ValueFacts) -> bool:
    """float32[batch, values], as far as the file says: logits or features."""
    return value.dtype == "float32" and (value.shape is None or len(value.shape) == 2)


def _listed(values: list[ValueFacts] | tuple[ValueFacts, ...]) -> str:
    return ", ".join(f"{value.name} {_describe(value)}" for value in values) or "none"


def _describe(value: ValueFacts) -> str:
    shape = "[?]" if value.shape is None else [s if s is not None else "?" for s in value.shape]
    return f"{value.dtype or 'no tensor'}{shape}".replace("'", "")
