"""Recipes beside other quantizers: the agreement that the noise lets one expect."""

from __future__ import annotations

import numpy as np
import pytest
from int8_peers import expected_agreement

requires = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino")

RNG = np.random.default_rng(0)
REFERENCE = RNG.normal(0, 1, (20_000, 10)).astype(np.float32)


@pytest.mark.parametrize("size", [0.02, 0.1])
def test_the_expected_agreement_is_what_many_images_show(size: float) -> None:
    mixed = RNG.normal(0, 1, (10, 10)) / np.sqrt(10)  # the noise of one class is others' as well
    found = REFERENCE + size * RNG.normal(0, 1, REFERENCE.shape) @ mixed
    shown = float((found.argmax(1) == REFERENCE.argmax(1)).mean())
    deviation = np.sqrt(shown * (1 - shown) / len(REFERENCE))
    assert expected_agreement(found.astype(np.float32), REFERENCE) == pytest.approx(
        shown, abs=3 * deviation + 0.002
    )


def test_what_all_classes_have_in_common_flips_nothing() -> None:
    shift = RNG.normal(0, 1, (len(REFERENCE), 1)).astype(np.float32)
    assert expected_agreement(REFERENCE + shift, REFERENCE) > 0.999
