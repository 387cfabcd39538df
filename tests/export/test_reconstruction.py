"""The pixels of a model for masked images, from the command line to the predictor."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.quantize.workbench import crops
from tests.support.bundles import Exporter
from vit_edge import Bundle, Predictor, backends
from vit_edge.bundle.manifest import TensorSpec
from vit_edge.checkpoints import Request, load_checkpoint
from vit_edge.export.__main__ import main
from vit_edge.models.vit import vit_from_weights

requires = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "transformers")

SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
PIXELS = ("--outputs", "reconstruction", "--max-batch", "3")


def drawn(stride: int = 8) -> Any:
    """A ViTForMaskedImageModeling far from its initial weights."""
    config = transformers.ViTConfig(**SHAPE, encoder_stride=stride)
    model = transformers.ViTForMaskedImageModeling(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        offset = 0.5 if parameter.ndim == 1 else 0.0
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + offset)
    return model


def saved(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return f"hf:{folder}"


@pytest.fixture(scope="module")
def model() -> Any:
    return drawn()


@pytest.fixture(scope="module")
def source(model: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(model, tmp_path_factory.mktemp("masked") / "model")


@pytest.fixture(scope="module")
def bundle(source: str, export_once: Exporter) -> Bundle:
    return export_once("--checkpoint", source, *PIXELS)


def difference(found: Any, expected: Any) -> float:
    return float(abs(found - expected).max() / abs(expected).max())


@pytest.mark.parametrize("stride", [8, 4, 1])
def test_the_reference_equals_transformers(stride: int, tmp_path: Path) -> None:
    model = drawn(stride)
    checkpoint = load_checkpoint(saved(model, tmp_path), Request(decoder=True))
    vit = vit_from_weights(checkpoint.architecture, dict(checkpoint.weights)).double()
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = model.double()(pixels).reconstruction
    found = vit(pixels).reconstruction
    assert found is not None
    assert found.shape == expected.shape == (2, 3, 4 * stride, 4 * stride)
    assert difference(found, expected) <= 1e-9


@pytest.mark.parametrize("backend", ["ort", "eager"])
def test_a_bundle_answers_as_transformers(backend: str, model: Any, bundle: Bundle) -> None:
    tensor = TensorSpec("reconstruction", "float32", "NCHW", (None, 3, 32, 32))
    assert bundle.manifest.outputs == (tensor,)
    pixels = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = model.float()(torch.from_numpy(pixels)).reconstruction.numpy()
    with closing(backends.module(backend).load(bundle)) as loaded:
        found = loaded.run(pixels)["reconstruction"]
        assert np.array_equal(loaded.run(pixels[1:2])["reconstruction"].shape, (1, 3, 32, 32))
    assert difference(found, expected) <= 1e-5


@pytest.mark.parametrize(("precision", "most"), [("fp16", 1e-3), ("int8", 0.1)])
def test_a_lower_precision_passes_the_gate(
    precision: str, most: float, model: Any, source: str, export_once: Exporter, tmp_path: Path
) -> None:
    for index, crop in enumerate(crops(16, 5, (32, 32))):
        Image.fromarray(crop).save(tmp_path / f"{index:02d}.png")
    low = export_once(
        *("--checkpoint", source, *PIXELS, "--precision", precision),
        *("--calibration", str(tmp_path)),
    )
    pixels = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = model.float()(torch.from_numpy(pixels)).reconstruction.numpy()
    with closing(backends.module("ort").load(low)) as loaded:
        found = loaded.run(pixels)["reconstruction"]
    assert 1e-5 < difference(found, expected) <= most


def test_the_predictor_gives_the_pixels(bundle: Bundle) -> None:
    image = Image.fromarray(crops(1, 0, (40, 50))[0])
    with Predictor(bundle.path) as predictor:
        assert predictor.output("reconstruction", [image, image]).shape == (2, 3, 32, 32)


def test_an_image_that_is_not_square_keeps_its_rows(source: str, export_once: Exporter) -> None:
    """transformers takes every grid for a square; here the tokens themselves are the judge."""
    outputs = ("--outputs", "tokens,reconstruction", "--image-size", "16x48")
    wide = export_once("--checkpoint", source, *outputs, "--max-batch", "2")
    pixels = np.random.default_rng(0).normal(size=(2, 3, 16, 48)).astype(np.float32)
    with closing(backends.module("ort").load(wide)) as loaded:
        found = loaded.run(pixels)
    decoder = load_checkpoint(source, Request(decoder=True)).weights
    weight, bias = (
        decoder[f"readout.decoder.pixels.{leaf}"].numpy() for leaf in ("weight", "bias")
    )
    assert found["reconstruction"].shape == (2, 3, 16, 48)
    for row, column in np.ndindex(2, 6):
        token = found["tokens"][:, 1 + 6 * row + column]
        square = (token @ weight + bias).reshape(2, 3, 8, 8)
        place = np.s_[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert difference(found["reconstruction"][place], square) <= 1e-5


def test_without_the_flag_the_decoder_is_dropped_and_said(
    source: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "x"))
    assert main(["--checkpoint", source, "--outputs", "features", "--max-batch", "2", *out]) == 0
    assert "decoder.0.bias, decoder.0.weight" in capfd.readouterr().err
    architecture = Bundle.read(tmp_path / "x").manifest.architecture
    assert architecture is not None
    assert architecture.decoder_stride is None


@pytest.mark.parametrize("outputs", ["reconstruction", "features,reconstruction"])
@pytest.mark.parametrize("kind", ["embedded", "deit"])
def test_a_model_without_a_decoder_is_refused(
    kind: str, outputs: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """DeiT's own class of that name decodes other tokens."""
    checkpoint = kind
    if kind == "deit":
        config = transformers.DeiTConfig(**SHAPE, encoder_stride=8)
        checkpoint = saved(transformers.DeiTForMaskedImageModeling(config), tmp_path / "deit")
    code = main(["--checkpoint", checkpoint, "--outputs", outputs, "--out", str(tmp_path / "x")])
    assert code == 2
    error = capfd.readouterr().err
    assert f"{checkpoint} has no decoder of ViTForMaskedImageModeling" in error
    assert "--outputs features" in error
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("stride", "word"), [(4, "of another shape"), ("x", "encoder_stride")])
def test_a_stride_that_is_not_the_weights_is_refused(
    stride: object, word: str, source: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(source.removeprefix("hf:"))
    config = json.loads((folder / "config.json").read_text()) | {"encoder_stride": stride}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(folder / "model.safetensors"), tmp_path / "model.safetensors")
    out = ("--out", str(tmp_path / "x"))
    assert main(["--checkpoint", f"hf:{tmp_path}", *PIXELS, *out]) == 3
    assert word in capfd.readouterr().err
