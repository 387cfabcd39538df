"""Exports for timing alone: what random weights miss is published too."""

from __future__ import annotations

import inspect

import ungated

from vit_edge.bundle import Bundle
from vit_edge.export import pipeline
from vit_edge.parity.limits import limit_of

requires = ("torch", "onnx", "onnxscript", "onnxruntime")


def test_a_limit_without_bounds_stands_in_for_the_real_one(testing_bundle: Bundle) -> None:
    stand_in, real = (inspect.signature(limit) for limit in (ungated.without_bounds, limit_of))
    assert stand_in == real
    assert pipeline.limit_of is limit_of  # what the script replaces
    limit = ungated.without_bounds(testing_bundle.manifest)
    assert limit.top1_agreement is None
    assert limit.logits == limit.others
    assert limit != limit_of(testing_bundle.manifest)
