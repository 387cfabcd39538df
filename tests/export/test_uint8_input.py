"""Models that take images as they were resized: the same answers, from a quarter of the bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support.bundles import TESTING, Exporter
from tests.support.foreign import FOREIGN
from vit_edge import Predictor, quantize
from vit_edge.backends import eager, ort
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.bundle.integrity import ensure_verified
from vit_edge.bundle.manifest import Preprocessing
from vit_edge.errors import ModelError, RecipeError, UsageError
from vit_edge.export.__main__ import main
from vit_edge.export.recipe import load_recipe
from vit_edge.graphs import uint8_input
from vit_edge.graphs.exactness import EXACT_RELATIVE, relative_difference
from vit_edge.graphs.uint8_input import take_uint8
from vit_edge.graphs.workspace import Workspace
from vit_edge.images.preprocess import input_from_resized, pixels_from_resized
from vit_edge.parity import __main__ as parity

requires = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")

ARGUMENTS = TESTING
UINT8 = ["--input", "uint8"]
HALF = (0.5, 0.5, 0.5)
_FLOAT = onnx_ir.DataType.FLOAT
CHANNELS = st.tuples(*[st.floats(0.1, 0.9)] * 3)


@pytest.fixture(scope="module")
def uint8_bundle(export_once: Exporter) -> Bundle:
    return export_once(*ARGUMENTS, *UINT8)


def embedding(dtype: onnx_ir.DataType = _FLOAT, **changes: Any) -> onnx_ir.Model:
    """A patch embedding of 16 x 24 px images, Casts around it where it is no float32."""
    random = np.random.default_rng(0)
    image = onnx_ir.Value(
        name="x", shape=onnx_ir.Shape(["n", 3, 16, 24]), type=onnx_ir.TensorType(_FLOAT)
    )
    constants = [
        onnx_ir.Value(
            name=name,
            const_value=tensor,
            shape=onnx_ir.Shape(array.shape),
            type=onnx_ir.TensorType(dtype),
        )
        for name, array in (("w", random.standard_normal((5, 3, 8, 8))), ("b", random.random(5)))
        for tensor in [onnx_ir.tensor(array.astype(dtype.numpy()), name=name)]
    ]
    nodes: list[onnx_ir.Node] = []
    value = image

    def add(
        operator: str, inputs: list[onnx_ir.Value], shape: list[Any], kind: Any, **how: Any
    ) -> Any:
        node = onnx_ir.node(operator, inputs, how, name=f"patch/{operator}_{len(nodes)}")
        node.outputs[0].shape = onnx_ir.Shape(shape)
        node.outputs[0].type = onnx_ir.TensorType(kind)
        nodes.append(node)
        return node.outputs[0]

    if dtype != _FLOAT:
        value = add("Cast", [value], ["n", 3, 16, 24], dtype, to=int(dtype))
    conv = {"strides": [8, 8], "kernel_shape": [8, 8]} | changes
    value = add("Conv", [value, *constants], ["n", 5, 2, 3], dtype, **conv)
    if dtype != _FLOAT:
        value = add("Cast", [value], ["n", 5, 2, 3], _FLOAT, to=int(_FLOAT))
    value = add("Abs", [value], ["n", 5, 2, 3], _FLOAT)
    value.name = "y"
    graph = onnx_ir.Graph(
        [image], [value], nodes=nodes, initializers=constants, opset_imports={"": 20}, name="g"
    )
    return onnx_ir.Model(graph, ir_version=9)


def spec(mean: Any = HALF, std: Any = HALF, rescale_factor: float = 1 / 255) -> Preprocessing:
    return Preprocessing("squash", (16, 24), (16, 24), "bilinear", mean, std, rescale_factor)


def answers(folder: Path, model: onnx_ir.Model, images: NDArray[Any]) -> NDArray[np.float32]:
    (found,) = Workspace(folder).observe(model, model.graph.outputs, [images])
    return found["y"]


@pytest.mark.parametrize("target", ["cpu", "gpu"])
@settings(max_examples=6)
@given(mean=CHANNELS, std=CHANNELS, factor=st.sampled_from([1 / 255, 1 / 127.5, 0.01]))
def test_any_normalisation_folds_into_the_patch_embedding(
    tmp_path_factory: pytest.TempPathFactory, target: Any, mean: Any, std: Any, factor: float
) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 24, 3), np.uint8)
    how, folder = spec(mean, std, factor), tmp_path_factory.mktemp("w")
    expected = answers(folder / "float", embedding(), pixels_from_resized(images, how))
    folded = embedding()
    take_uint8(folded, how, target)
    found = answers(folder / "uint8", folded, images)
    assert relative_difference(found, expected) <= EXACT_RELATIVE


@pytest.mark.parametrize("dtype", [onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16])
def test_a_patch_embedding_in_half_precision_is_folded_in_float32(dtype: Any) -> None:
    model = embedding(dtype)
    take_uint8(model, spec(), "cpu")
    (product,) = (node for node in model.graph if node.op_type == "MatMul")
    assert product.inputs[1] is not None
    assert product.inputs[1].dtype == _FLOAT
    assert not [node for node in model.graph if node.op_type == "Conv"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pads": [1, 1, 1, 1]}, r"pads are \[1, 1, 1, 1\]"),
        ({"strides": [4, 4]}, r"strides are \[4, 4\], not \[8, 8\]"),
        ({"dilations": [2, 2]}, "dilations are"),
        ({"auto_pad": "SAME_UPPER"}, "auto_pad is SAME_UPPER"),
    ],
)
def test_patches_that_do_not_tile_the_image_are_refused_by_name(changes: Any, words: str) -> None:
    model = embedding(**changes)
    with pytest.raises(ModelError, match=f"patch/Conv_0: .*{words}"):
        take_uint8(model, spec(), "cpu")
    assert model.graph.inputs[0].dtype == _FLOAT


def test_a_graph_that_takes_no_float_pixels_is_refused() -> None:
    model = embedding()
    take_uint8(model, spec(), "cpu")
    with pytest.raises(ModelError, match="the graph has x UINT8"):
        take_uint8(model, spec(), "cpu")


def test_a_second_reader_of_the_image_is_refused_by_name() -> None:
    model = embedding()
    extra = onnx_ir.node("Neg", [model.graph.inputs[0]], name="flip/Neg")
    model.graph.append(extra)
    with pytest.raises(ModelError, match=r"flip/Neg \(Neg\)"):
        take_uint8(model, spec(), "cpu")


def test_the_bundle_says_what_it_takes_and_verifies(
    uint8_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    from vit_edge import inspect

    taken = uint8_bundle.manifest.input
    assert (taken.dtype, taken.layout, taken.shape) == ("uint8", "NHWC", (None, 64, 64, 3))
    assert uint8_bundle.manifest.recipe["input"] == "uint8"
    ensure_verified(uint8_bundle, full=True)
    assert inspect.main([str(uint8_bundle.path)]) == 0
    assert "pixel_values uint8 NHWC [64, 64, 3]" in capsys.readouterr().out


def test_predictions_are_those_of_the_float_bundle(
    uint8_bundle: Bundle, testing_bundle: Bundle, photos: list[Path]
) -> None:
    with Predictor(uint8_bundle, "ort") as ours, Predictor(testing_bundle, "ort") as theirs:
        found, expected = ours.predict_batch(photos), theirs.predict_batch(photos)
    assert [p.index for p in found] == [p.index for p in expected]
    logits = np.stack([p.logits for p in found]), np.stack([p.logits for p in expected])
    assert relative_difference(*logits) <= EXACT_RELATIVE


@pytest.mark.parametrize("backend", ["ort", "eager", "openvino"])
def test_every_backend_holds_parity_from_bytes(uint8_bundle: Bundle, backend: str) -> None:
    assert parity.main([str(uint8_bundle.path), "--backend", backend]) == 0


def test_an_engine_is_built_and_answers_from_bytes(uint8_bundle: Bundle) -> None:
    engine = ort.build(uint8_bundle)
    assert ort.load(uint8_bundle).facts["engine"] == engine.name
    assert parity.main([str(uint8_bundle.path), "--backend", "ort"]) == 0


def test_float_pixels_are_refused(uint8_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="must be uint8"):
        eager.load(uint8_bundle).run(np.zeros((1, 3, 64, 64), np.float32))


def test_what_a_backend_gets_follows_from_the_manifest(
    uint8_bundle: Bundle, testing_bundle: Bundle
) -> None:
    with Golden(uint8_bundle.golden_path) as golden:
        resized = golden.images([0, 1])
    assert input_from_resized(resized, uint8_bundle.manifest) is resized
    pixels = pixels_from_resized(resized, testing_bundle.manifest.preprocessing)
    np.testing.assert_array_equal(input_from_resized(resized, testing_bundle.manifest), pixels)


def test_a_mean_of_one_channel_that_is_half_a_level_off_is_caught_by_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = uint8_input.fold

    def faulty(weight: NDArray[Any], how: Preprocessing) -> uint8_input.Folded:
        right = honest(weight, how)
        mean = right.mean.copy()
        mean[::3] += 0.5  # red is off by half a level
        return right._replace(mean=mean)

    monkeypatch.setattr(uint8_input, "fold", faulty)
    assert main([*ARGUMENTS, *UINT8, "--out", str(tmp_path / "b")]) == 4
    assert "does not compute the reference's answers" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("precision", ["int8-dynamic", "bf16"])
def test_a_lower_precision_takes_bytes_too(precision: str, tmp_path: Path, images: Path) -> None:
    arguments = [*ARGUMENTS, *UINT8, "--precision", precision]
    if quantize.module(precision).CALIBRATION == "required":
        arguments += ["--calibration", str(images)]
    assert main([*arguments, "--out", str(tmp_path / "b")]) == 0
    bundle = Bundle.read(tmp_path / "b")
    assert (bundle.manifest.precision, bundle.manifest.input.dtype) == (precision, "uint8")
    backend = "openvino" if precision == "bf16" else "ort"  # which has no bfloat16 on CPUs
    assert parity.main([str(bundle.path), "--backend", backend]) == 0


def test_int8_weights_and_activations_take_bytes_too(tmp_path: Path, images: Path) -> None:
    arguments = [*ARGUMENTS, *UINT8, "--precision", "int8", "--calibration", str(images)]
    arguments += ["--set", "sensitivity_images=2", "--set", "float_budget=0"]
    arguments += ["--parity-target", "sqnr_centred_db=15", "--out", str(tmp_path / "b")]
    assert main(arguments) == 0
    assert parity.main([str(tmp_path / "b")]) == 0


@pytest.mark.parametrize("kind", FOREIGN)
def test_graphs_of_other_exporters_take_bytes_too(
    kind: str, foreign_file: Callable[[str], Path], tmp_path: Path
) -> None:
    arguments = ["--onnx", str(foreign_file(kind)), "--preprocess", "deit", "--max-batch", "4"]
    assert main([*arguments, *UINT8, "--out", str(tmp_path / "b")]) == 0
    bundle = Bundle.read(tmp_path / "b")
    assert bundle.manifest.input.dtype == "uint8"
    assert max(row["relative"] for row in bundle.parity()["comparisons"]) <= EXACT_RELATIVE
    assert not [node for node in onnx_ir.load(bundle.model_path).graph if node.op_type == "Conv"]


def test_a_recipe_asks_for_bytes_by_a_known_word(tmp_path: Path) -> None:
    text = (load_recipe_file()).replace('precision = "fp32"', 'precision = "fp32"\ninput = "int4"')
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError, match="input: 'int4' is not one of"):
        load_recipe(str(tmp_path / "r.toml"))
    (tmp_path / "r.toml").write_text(text.replace("int4", "uint8"))
    assert load_recipe(str(tmp_path / "r.toml")).input == "uint8"


def load_recipe_file() -> str:
    from vit_edge.export.recipe import recipe_folder

    return (recipe_folder() / "cpu-fp32.toml").read_text()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 natural images."""
    from tests.quantize.workbench import write_crops

    return write_crops(tmp_path_factory.mktemp("images"), 24, 5, (64, 64))
