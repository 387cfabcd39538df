"""Exports for timing alone: what random weights miss is published too."""

from __future__ import annotations

import inspect

import ungated

from vit_edge.parity.limits import limit_for

requires = ("torch", "onnx", "onnxscript", "onnxruntime")


def test_a_limit_without_bounds_stands_in_for_the_real_one() -> None:
    stand_in, real = (inspect.signature(limit) for limit in (ungated.without_bounds, limit_for))
    assert stand_in == real
    limit = ungated.without_bounds("int4", "softmax")
    assert limit.top1_agreement is None
    assert limit.logits == limit.others
    assert limit != limit_for("int4")
