"""Float is cheap where the class token alone passes, and dear where every token does."""

from __future__ import annotations

import onnx_ir
import pytest

from vit_edge.bundle import Bundle
from vit_edge.quantize.linears import block_linears
from vit_edge.quantize.search.costs import float_costs

requires = ("torch", "onnx", "onnxscript", "onnxruntime")


def test_the_last_block_is_cheaper_and_the_costliest_costs_one(testing_bundle: Bundle) -> None:
    linears = block_linears(onnx_ir.load(testing_bundle.model_path))
    costs = float_costs(linears)
    last = max(linear.name.split(".")[1] for linear in linears)
    assert max(costs.values()) == pytest.approx(1)
    assert min(costs.values()) > 0
    for part in ("attention.out", "mlp.fc1", "mlp.fc2"):
        assert costs[f"blocks.{last}.{part}"] < 0.9 * costs[f"blocks.0.{part}"]


def test_a_wider_linear_costs_more(testing_bundle: Bundle) -> None:
    costs = float_costs(block_linears(onnx_ir.load(testing_bundle.model_path)))
    assert costs["blocks.0.mlp.fc1"] > costs["blocks.0.attention.out"]


def test_no_linears_have_no_costs() -> None:
    assert float_costs([]) == {}
