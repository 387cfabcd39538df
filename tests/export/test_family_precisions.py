"""Each part of the family at low precisions: through the gate, and on every runtime."""

from __future__ import annotations

import importlib.util
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.quantize.workbench import write_crops
from tests.support.bundles import Exporter
from tests.support.family_folders import PARTS, architecture_of, write_family
from vit_edge import backends
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.images.preprocess import pixels_from_resized

requires = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors")

RUNTIMES = {"ort": "onnxruntime", "openvino": "openvino", "eager": "torch"}
SETTINGS = {
    "fp16": (),
    "int8": ("--set", "sensitivity_images=1", "--set", "float_budget=0"),
    "int8-weights": (),
    "int4": ("--set", "block_size=16"),  # 64 is the whole width
}
# What varies from image to image in the logits, against the noise; the plain ViT keeps no more.
LEAST_DB = {"fp32": 100.0, "fp16": 50.0, "int8": 16.0, "int8-weights": 25.0, "int4": 14.0}
# Drawn weights of 64 channels: in four bits the plain ViT keeps 12 dB, less than the gate asks.
# int8-weights goes the same way with the others.
IN_FOUR_BITS = ("mean", "mean, normalised", "clip", "dinov2")
CASES = [
    (parts, precision)
    for parts in PARTS
    for precision in LEAST_DB
    if precision != "int4" or parts in IN_FOUR_BITS
]


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 natural images."""
    return write_crops(tmp_path_factory.mktemp("calibration"), 16, 5, (64, 64))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("families")
    return {parts: write_family(folder / str(n), parts) for n, parts in enumerate(PARTS)}


def exported(source: str, precision: str, calibration: Path, export_once: Exporter) -> Bundle:
    arguments = ("--checkpoint", source, "--max-batch", "2", "--image-size", "64")
    if precision == "fp32":
        return export_once(*arguments)
    low = ("--precision", precision, "--calibration", str(calibration), *SETTINGS[precision])
    return export_once(*arguments, *low, "--parity-target", "sqnr_centred_db=14")


def centred_db(found: np.ndarray, expected: np.ndarray) -> float:
    """What varies from image to image, against the noise."""
    signal = np.square(expected - expected.mean(axis=0)).sum()
    return float(10 * np.log10(signal / np.square(found - expected).sum()))


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "precision"), CASES)
def test_every_part_of_the_family_keeps_its_answers_in_every_runtime(
    parts: str, precision: str, sources: dict[str, str], calibration: Path, export_once: Exporter
) -> None:
    bundle = exported(sources[parts], precision, calibration, export_once)
    architecture = bundle.manifest.architecture
    assert architecture is not None
    assert architecture.pooling == architecture_of(parts).pooling
    with Golden(bundle.path / "golden.npz") as golden:
        rows = list(range(0, 16, 2))
        pixels = pixels_from_resized(golden.images(rows), bundle.manifest.preprocessing)
        expected = golden.answers(rows)["logits"]
    for name in ("ort", "openvino", "eager"):
        if not importlib.util.find_spec(RUNTIMES[name]) or (
            name == "eager" and precision != "fp32"
        ):
            continue
        with closing(backends.module(name).load(bundle)) as backend:
            found = np.concatenate([backend.run(pixels[i : i + 2])["logits"] for i in (0, 2, 4, 6)])
        quality = centred_db(found, expected)
        assert quality > LEAST_DB[precision], f"{name}: {quality:.1f} dB"
