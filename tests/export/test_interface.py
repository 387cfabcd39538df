"""What is wrong with a file's inputs, outputs and operators is said at once, and how to mend it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from vit_edge.errors import ModelError
from vit_edge.export.foreign.interface import Interface, image_interface
from vit_edge.onnxfile import ModelFacts, TensorFacts, ValueFacts

requires = ("torch", "onnx")

IMAGE = ValueFacts("pixels", "float32", ("batch", 3, 32, 48))
LOGITS = ValueFacts("scores", "float32", ("batch", 7))
TOKENS = ValueFacts("tokens", "float32", ("batch", 17, 64))


def facts(
    inputs: tuple[ValueFacts, ...] = (IMAGE,),
    outputs: tuple[ValueFacts, ...] = (LOGITS,),
    opset: int = 17,
    operators: tuple[str, ...] = ("LayerNormalization", "MatMul"),
    weights: str = "float32",
) -> ModelFacts:
    weight = TensorFacts("w", "initializer 'w'", weights, (2, 2))
    return ModelFacts(
        Path("vit.onnx"), 8, {"": opset}, {"": Counter(operators)}, frozenset(), inputs, outputs,
        {}, (weight,), (weight,), 1,
    )  # fmt: skip


def test_an_image_classifier_is_understood() -> None:
    assert image_interface(facts()) == Interface("pixels", "scores", (32, 48))


def test_weights_that_are_listed_as_inputs_are_no_images() -> None:
    old_style = facts(inputs=(IMAGE, ValueFacts("w", "float32", (2, 2))))
    assert image_interface(old_style).input == "pixels"


def test_the_logits_are_found_among_other_outputs() -> None:
    assert image_interface(facts(outputs=(TOKENS, LOGITS))).output == "scores"
    pooled = ValueFacts("pooled", "float32", ("batch", 64))
    named = ValueFacts("logits", "float32", ("batch", 7))
    assert image_interface(facts(outputs=(pooled, named))).output == "logits"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (facts(inputs=(IMAGE._replace(shape=(1, 3, 32, 32)),)), "fixed to 1.*Dim\\("),
        (facts(inputs=(IMAGE._replace(shape=("n", 32, 32, 3)),)), "channels last \\(NHWC\\)"),
        (facts(inputs=(IMAGE._replace(shape=("n", 1, 32, 32)),)), "1 channels"),
        (facts(inputs=(IMAGE._replace(shape=("n", 3, "h", "w")),)), "make_dynamic_shape_fixed"),
        (facts(inputs=(IMAGE._replace(shape=("n", 3)),)), "\\[batch, 3, height, width\\] is"),
        (facts(inputs=(IMAGE._replace(shape=None),)), "\\[batch, 3, height, width\\] is"),
        (facts(inputs=(IMAGE._replace(dtype="uint8"),)), "float32 pixels are needed"),
        (facts(inputs=(IMAGE._replace(dtype="float16"),)), "float32 pixels are needed"),
        (facts(inputs=()), "inputs are none"),
        (facts(inputs=(IMAGE, ValueFacts("mask", "bool", ("batch", 9)))), "mask bool.*single one"),
        (facts(outputs=(TOKENS,)), "none is float32\\[batch, classes\\]"),
        (facts(outputs=(LOGITS, LOGITS._replace(name="other"))), "could all be logits"),
        (facts(opset=16, operators=("MatMul",)), "opset 16.*opset 17 or newer"),
        (facts(operators=("MatMul", "ReduceMean")), "no LayerNormalization"),
        (facts(operators=("LayerNormalization", "If")), "control flow \\(If\\)"),
        (facts(operators=("LayerNormalization", "QuantizeLinear")), "quantized already"),
        (facts(weights="float16"), "weights in float16"),
    ],
)
def test_what_is_no_float32_image_classifier_is_refused(wrong: ModelFacts, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        image_interface(wrong)


def test_all_problems_are_listed_at_once() -> None:
    image = ValueFacts("pixels", "uint8", (1, 32, 32, 3))
    wrong = facts(inputs=(image,), outputs=(TOKENS,), opset=13)
    with pytest.raises(ModelError) as caught:
        image_interface(wrong)
    for part in ("5 problem(s)", "opset 13", "uint8", "fixed to 1", "NHWC", "tokens float32"):
        assert part in str(caught.value)
