"""preprocess.onnx on a device: an older runtime and an older Pillow agree with each other, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from vit_edge.bundle import Bundle
from vit_edge.images.load import load_image
from vit_edge.images.preprocess import preprocess

requires = ("onnxruntime",)


def test_the_graph_makes_the_pixels_that_predictor_makes(
    embedded_bundle: Bundle, photos: list[Path]
) -> None:
    path = embedded_bundle.preprocess_path
    assert path is not None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for photo in photos:
        (pixels,) = session.run(None, {"image": np.asarray(load_image(photo))})
        expected = preprocess(photo, embedded_bundle.manifest.preprocessing)
        np.testing.assert_array_equal(pixels[0], expected, photo.name)
