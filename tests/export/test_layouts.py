"""A folder for transformers.js and optimum: the same logits and pixels, or a refusal by name."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import vit_edge
from tests.support.bundles import TESTING, Exporter
from vit_edge import Bundle, IntegrityError, Predictor, UsageError
from vit_edge.bundle.manifest import Preprocessing
from vit_edge.checkpoints.hf_preprocessing import read_preprocessing
from vit_edge.export.layouts import check_expressible, processor_from, write_layout
from vit_edge.export.recipe import find_recipe
from vit_edge.images.preprocess import pixels_from_resized
from vit_edge.images.resize import resized_from_image
from vit_edge.push import model_card
from vit_edge.quantize.calibration import CalibrationRequest

requires = ("torch", "onnx", "onnxruntime")

HALF = (0.5, 0.5, 0.5)
SQUASH = Preprocessing("squash", (64, 64), (64, 64), "bilinear", HALF, HALF)


@pytest.fixture(scope="module")
def laid_out(export_once: Exporter) -> Bundle:
    """A float32 bundle with the folder in it."""
    return export_once(*TESTING, "--layout", "transformers.js")


def lowered(bundle: Bundle, precision: str, out: Path) -> Bundle:
    """A bundle of lower precision with the folder in it."""
    recipe = find_recipe(None, precision).changed(parity_target="sqnr_centred_db=1")
    noise = CalibrationRequest("random", 8)
    return vit_edge.quantize(
        bundle, recipe=recipe, calibration=noise, out=out, layout="transformers.js"
    )


def test_the_graph_has_the_names_that_are_looked_for_and_the_same_logits(laid_out: Bundle) -> None:
    folder = laid_out.path / "transformers.js"
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert files == {"config.json", "preprocessor_config.json", "onnx/model.onnx"}
    session = onnxruntime.InferenceSession(folder / "onnx/model.onnx")
    assert [i.name for i in session.get_inputs()] == ["pixel_values"]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    pixels = pixels_from_resized(image[None], laid_out.manifest.preprocessing)
    (logits,) = session.run(None, {"pixel_values": pixels})
    with Predictor(laid_out, "ort") as predictor:
        expected = predictor.predict(image).logits
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_the_bundle_is_the_same_with_and_without_it(
    laid_out: Bundle, testing_bundle: Bundle
) -> None:
    assert vit_edge.verify(laid_out).model_sha256 == testing_bundle.model_sha256
    assert laid_out.manifest.files.keys() == testing_bundle.manifest.files.keys()


def test_its_tail_is_checked_as_well(laid_out: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(laid_out.path, copy)
    vit_edge.verify(copy)
    graph = copy / "transformers.js/onnx/model.onnx"
    graph.write_bytes(graph.read_bytes()[:-64] + bytes(64))
    with pytest.raises(IntegrityError, match=r"not as it was written: onnx/model\.onnx"):
        vit_edge.verify(copy)


def test_the_configuration_names_the_classes(laid_out: Bundle) -> None:
    config = json.loads((laid_out.path / "transformers.js/config.json").read_text())
    assert config["model_type"] == "vit"
    assert tuple(config["id2label"][str(i)] for i in range(10)) == laid_out.labels
    assert config["label2id"] == {label: index for index, label in enumerate(laid_out.labels)}
    assert config["image_size"] == 64
    assert config["transformers.js_config"] == {"dtype": "fp32"}


@pytest.mark.parametrize(
    ("precision", "file", "dtype"),
    [
        ("int8", "model_quantized.onnx", "q8"),
        ("int8-dynamic", "model_quantized.onnx", "q8"),
        ("int4", "model_q4.onnx", "q4"),
        ("fp16", "model_fp16.onnx", "fp16"),
    ],
)
def test_a_lower_precision_has_the_name_of_its_dtype(
    testing_bundle: Bundle, tmp_path: Path, precision: str, file: str, dtype: str
) -> None:
    manifest = dataclasses.replace(testing_bundle.manifest, precision=precision)
    folder = tmp_path / "laid"
    write_layout(Bundle(testing_bundle.path, manifest, testing_bundle.labels), folder)
    assert [path.name for path in (folder / "onnx").iterdir()] == [file]
    config = json.loads((folder / "config.json").read_text())
    assert config["transformers.js_config"]["dtype"] == dtype


SIZES_AND_CROPS = [
    SQUASH,
    dataclasses.replace(SQUASH, resize_hw=(72, 80), crop_hw=(64, 72), crop_rounding="down"),
    dataclasses.replace(
        SQUASH, resize="cover", resize_hw=(73, 73), crop_rounding="down", mean=(0.1, 0.2, 0.3)
    ),
]


@pytest.mark.parametrize(
    "steps",
    [
        *SIZES_AND_CROPS,
        dataclasses.replace(SQUASH, interpolation="lanczos", rescale_factor=1 / 127.5),
        dataclasses.replace(SQUASH, resize="cover", crop_rounding="down"),
    ],
)
def test_a_preprocessing_reads_back_as_it_was(steps: Preprocessing, tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(processor_from(steps)))
    assert read_preprocessing(file) == steps


@pytest.mark.parametrize(
    "steps",
    [
        *SIZES_AND_CROPS,
    ],
    ids=["squashed", "squashed and cropped", "covered"],
)
def test_transformers_makes_the_same_pixels(steps: Preprocessing, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    table = processor_from(steps)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(table))
    kind = getattr(transformers, f"{table['image_processor_type']}Pil")
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (90, 121, 3), np.uint8))
    theirs = kind.from_pretrained(tmp_path)(image)["pixel_values"][0]
    ours = pixels_from_resized(resized_from_image(image, steps)[None], steps)[0]
    np.testing.assert_allclose(np.asarray(theirs), ours, atol=1e-5)


def test_transformers_reads_the_configuration(laid_out: Bundle) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.AutoConfig.from_pretrained(laid_out.path / "transformers.js")
    assert config.id2label[3] == laid_out.labels[3]
    assert config.num_labels == len(laid_out.labels)


@pytest.mark.parametrize(
    ("change", "precision", "input", "message"),
    [
        ({"scores": "none"}, "fp32", "float32", 'scores "none"'),
        ({}, "bf16", "float32", "precision bf16: it knows fp32, fp16, int8"),
        ({}, "fp8", "float32", "precision fp8"),
        ({}, "fp32", "uint8", "input uint8"),
        ({"outputs": ()}, "fp32", "float32", "no logits"),
        ({"resize": "cover", "resize_hw": (70, 80)}, "fp32", "float32", "cover 70x80"),
        ({"offset": -1.0}, "fp32", "float32", "an offset of -1"),
        ({"divided_twice": True}, "fp32", "float32", "twice"),
    ],
)
def test_what_it_cannot_hold_is_refused_by_name(
    testing_bundle: Bundle, change: dict[str, Any], precision: str, input: str, message: str
) -> None:
    manifest = testing_bundle.manifest
    steps = {key: value for key, value in change.items() if hasattr(SQUASH, key)}
    rest = {key: value for key, value in change.items() if key not in steps}
    changed = dataclasses.replace(
        manifest, preprocessing=dataclasses.replace(manifest.preprocessing, **steps), **rest
    )
    recipe = find_recipe(None, precision)
    asked = dataclasses.replace(recipe, input=input)
    with pytest.raises(UsageError, match=message):
        check_expressible("transformers.js", changed, asked)
    check_expressible(None, changed, asked)
    check_expressible("transformers.js", manifest, find_recipe(None, "fp32"))


def test_a_layout_that_is_none_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^layout onnx: there is transformers\.js$"):
        vit_edge.export("embedded", out=tmp_path / "out", layout="onnx")
    with pytest.raises(UsageError, match="layout transformers.js cannot hold this model"):
        vit_edge.export(
            "seeded:0", variant="testing", outputs="features", layout="transformers.js",
            out=tmp_path / "out",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_the_graphs_metadata_has_the_keys_that_ultralytics_reads(testing_bundle: Bundle) -> None:
    import ast

    session = onnxruntime.InferenceSession(testing_bundle.model_path)
    found = session.get_modelmeta().custom_metadata_map
    assert found["task"] == "classify"
    assert ast.literal_eval(found["names"]) == dict(enumerate(testing_bundle.labels))
    assert ast.literal_eval(found["imgsz"]) == [64, 64]
    assert int(found["stride"]) == testing_bundle.manifest.architecture.patch_px  # type: ignore[union-attr]
    assert (int(found["channels"]), int(found["batch"])) == (3, 1)
    assert json.loads(found["vit_edge.labels"]) == list(testing_bundle.labels)


def test_labels_of_any_text_are_kept(testing_bundle: Bundle, tmp_path: Path) -> None:
    labels = ('naïve "cat"', "犬", "a'b", *testing_bundle.labels[3:])
    bundle = Bundle(testing_bundle.path, testing_bundle.manifest, labels)
    write_layout(bundle, tmp_path / "laid")
    config = json.loads((tmp_path / "laid/config.json").read_text(encoding="utf-8"))
    assert [config["id2label"][str(i)] for i in range(3)] == list(labels[:3])
    assert "naïve" in model_card(bundle, "org/name")


SCRIPT = """
import { env, pipeline } from '@huggingface/transformers';
const [folder, name, image] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = folder;
const classify = await pipeline('image-classification', name);
console.log(JSON.stringify(await classify(image, { top_k: 10 })));
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8-weights"])
def test_transformers_js_classifies_with_it(
    laid_out: Bundle, testing_bundle: Bundle, tmp_path: Path, precision: str
) -> None:
    modules, node = os.environ.get("VIT_EDGE_NODE_MODULES"), shutil.which("node")
    if node is None or not modules:
        pytest.skip(
            "needs node, and VIT_EDGE_NODE_MODULES: a folder with @huggingface/transformers"
        )
    bundle = laid_out
    if precision != "fp32":
        bundle = lowered(testing_bundle, precision, tmp_path / "lower")
    shutil.copytree(bundle.path / "transformers.js", tmp_path / "models/mine")
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "classify.mjs").write_text(SCRIPT)
    image = tmp_path / "image.png"  # of the model's own size: no resizing, where libraries differ
    rng = np.random.default_rng(2)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(image)
    command = [node, "classify.mjs", f"{tmp_path / 'models'}/", "mine", str(image)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = {entry["label"]: entry["score"] for entry in json.loads(done.stdout.splitlines()[-1])}
    with Predictor(bundle, "ort") as predictor:
        ours = {ranked.label: ranked.score for ranked in predictor.predict(image, 10).top}
    assert theirs.keys() == ours.keys()
    assert all(abs(theirs[label] - ours[label]) < 0.01 for label in ours)
