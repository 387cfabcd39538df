"""Float is cheap where the class token alone passes, and dear where every token does."""

from __future__ import annotations

from pathlib import Path

import onnx_ir
import pytest

from tests.quantize.workbench import quantized
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


def test_bytes_count_where_time_does_not(testing_bundle: Bundle) -> None:
    """The class token's Linears take no time in float, and as many bytes as any."""
    costs = float_costs(block_linears(onnx_ir.load(testing_bundle.model_path)))
    assert costs["blocks.1.mlp.fc2"] >= 0.5 * costs["blocks.0.mlp.fc2"]
    assert costs["blocks.1.attention.out"] < 0.5 * costs["blocks.1.mlp.fc2"] + 1e-9


@pytest.mark.parametrize("goal", ["", "sqnr_centred_db=10"])
def test_a_small_model_in_int8_is_not_mostly_float(
    goal: str, testing_bundle: Bundle, tmp_path: Path
) -> None:
    """Each of eight Linears does a large share of the damage; seven of them stayed in float."""
    made = quantized("int8", testing_bundle, tmp_path, {"sensitivity_images": 4}, goal=goal)
    linears = block_linears(onnx_ir.load(testing_bundle.model_path))
    kept = made.record["trials"][-1]["kept_float"]
    weights = {linear.name: linear.matrix().size for linear in linears}
    assert sum(weights[name] for name in kept) < 0.3 * sum(weights.values()), kept


def test_a_wider_linear_costs_more(testing_bundle: Bundle) -> None:
    costs = float_costs(block_linears(onnx_ir.load(testing_bundle.model_path)))
    assert costs["blocks.0.mlp.fc1"] > costs["blocks.0.attention.out"]


def test_no_linears_have_no_costs() -> None:
    assert float_costs([]) == {}
