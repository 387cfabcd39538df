"""Blocks of weights: what the levels stand for, how they are fitted, and how they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vit_edge.graphs.write import write_model
from vit_edge.quantize import weight_only
from vit_edge.quantize.formats.blocks import BlockFormat, dequantize_in_graph, rounded
from vit_edge.quantize.linears import all_linears

requires = ("onnx", "onnx_ir", "onnxruntime")

formats = st.builds(
    BlockFormat, st.sampled_from([4, 8]), st.booleans(), st.sampled_from([16, 32, 64])
)


def weights(rows: int, outputs: int, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, outputs)) * rng.uniform(0.1, 2, outputs)).astype(np.float32)


def one_linear(matrix: NDArray[np.float32], *, gemm: bool) -> onnx_ir.Model:
    """x -> x W + b as MatMul and Add, or as the Gemm with transB that PyTorch's exporter makes."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    rows, outputs = matrix.shape
    bias = np.linspace(-1, 1, outputs, dtype=np.float32)
    if gemm:
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "fc/Gemm", transB=1)]
    else:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["xw"], "fc/MatMul"),
            helper.make_node("Add", ["xw", "b"], ["y"], "fc/Add"),
        ]
    stored = np.ascontiguousarray(matrix.T) if gemm else matrix
    graph = helper.make_graph(
        nodes,
        "one linear",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", rows])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(stored, "w"), numpy_helper.from_array(bias, "b")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.checker.check_model(proto)
    return onnx_ir.from_proto(proto)


def run(path: Path, x: NDArray[np.float32], *, optimize: bool) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    if not optimize:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    else:
        options.optimized_model_filepath = str(path.with_name("optimized.onnx"))
    answer: NDArray[np.float32] = onnxruntime.InferenceSession(str(path), options).run(
        None, {"x": x}
    )[0]
    return answer


@settings(max_examples=25)
@given(
    kind=formats,
    rows=st.integers(17, 150),
    outputs=st.integers(1, 20),
    gemm=st.booleans(),
    seed=st.integers(0, 99),
)
def test_onnxruntime_reads_the_levels_as_they_were_meant(
    tmp_path_factory: pytest.TempPathFactory,
    kind: BlockFormat,
    rows: int,
    outputs: int,
    gemm: bool,
    seed: int,
) -> None:
    """Whether the last block is short or not, node by node and fused to MatMulNBits."""
    matrix = weights(rows, outputs, seed)
    weight = rounded(matrix, kind.covering(matrix), kind)
    model = one_linear(matrix, gemm=gemm)
    (linear,) = all_linears(model)
    dequantize_in_graph(model, linear, weight)
    folder = tmp_path_factory.mktemp("blocks")
    write_model(model, folder)
    x = np.random.default_rng(seed).standard_normal((3, rows)).astype(np.float32)
    expected = x @ weight.dequantize() + np.linspace(-1, 1, outputs, dtype=np.float32)
    for optimize in (False, True):
        found = run(folder / "model.onnx", x, optimize=optimize)
        assert np.abs(found - expected).max() < 1e-5 * max(np.abs(expected).max(), 1)
    fused = [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]
    assert "MatMulNBits" in fused
    assert "DequantizeLinear" not in fused


def test_the_file_holds_two_levels_a_byte_the_first_in_the_low_half(tmp_path: Path) -> None:
    matrix = weights(32, 6, 0)
    kind = BlockFormat(4, False, 16)
    model = one_linear(matrix, gemm=False)
    (linear,) = all_linears(model)
    weight = rounded(matrix, kind.covering(matrix), kind)
    dequantize_in_graph(model, linear, weight)
    write_model(model, tmp_path)
    stored = {
        tensor.name: tensor for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer
    }
    flat = weight.levels.astype(np.uint8).reshape(-1)
    assert stored["w_quantized"].raw_data == (flat[0::2] | flat[1::2] << 4).tobytes()
    sizes = [len(stored[f"w_{part}"].raw_data) for part in ("quantized", "scale", "zero_point")]
    assert sum(sizes) == weight.stored_bytes


@settings(max_examples=50)
@given(kind=formats, rows=st.integers(1, 100), seed=st.integers(0, 99))
def test_a_covering_grid_moves_no_weight_by_more_than_half_a_step(
    kind: BlockFormat, rows: int, seed: int
) -> None:
    matrix = weights(rows, 5, seed)
    grid = kind.covering(matrix)
    step, zero = (np.repeat(part, kind.block, axis=0)[:rows] for part in (grid.scale, grid.zero))
    moved = np.abs(rounded(matrix, grid, kind).dequantize() - matrix)
    # beyond the last level: 7 of -8..7, or what the rounding of the zero point has cut off
    inside = ((kind.low - zero) * step <= matrix) & (matrix <= (kind.high - zero) * step)
    assert (moved[inside] <= 0.501 * step[inside]).all()
    assert (moved <= 1.001 * step).all()


@settings(max_examples=50)
@given(kind=formats, rows=st.integers(1, 100), seed=st.integers(0, 99))
def test_fitting_never_leaves_more_error_than_covering(
    kind: BlockFormat, rows: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_t(3, (rows, 5)).astype(np.float32)
    importance = np.exp(rng.uniform(-3, 3, rows)).astype(np.float32)

    def error(left: NDArray[np.float32]) -> float:
        return float(importance @ np.square(left - matrix, dtype=np.float64).sum(axis=1))

    fitted = error(kind.nearest(matrix, kind.fitting(matrix, importance)))
    covered = error(kind.nearest(matrix, kind.covering(matrix)))
    assert fitted <= covered * (1 + 1e-5)


def test_fitting_clips_what_hardly_counts() -> None:
    """A single large weight behind a channel that is nearly silent."""
    matrix = np.random.default_rng(0).uniform(-1, 1, (32, 1)).astype(np.float32)
    matrix[7] = 1.7
    importance = np.ones(32, np.float32)
    importance[7] = 1e-6
    kind = BlockFormat(4, False, 32)
    assert kind.fitting(matrix, importance).scale[0, 0] < 0.9 * kind.covering(matrix).scale[0, 0]


def test_blocks_of_zeros_stay_zero() -> None:
    for kind in (BlockFormat(4, False, 32), BlockFormat(4, True, 32), BlockFormat(8, True, 32)):
        matrix = np.zeros((40, 3), np.float32)
        grid = kind.fitting(matrix, np.ones(40, np.float32))
        assert np.isfinite(grid.scale).all()
        assert not rounded(matrix, grid, kind).dequantize().any()


@pytest.mark.parametrize(
    ("width", "wanted", "chosen"),
    [(384, 64, 64), (48, 64, 16), (96, 64, 32), (64, 256, 64), (200, 64, 64), (768, 16, 16)],
)
def test_blocks_cut_the_channels_evenly_where_a_size_does(
    width: int, wanted: int, chosen: int
) -> None:
    assert BlockFormat(8, False, wanted).dividing(width).block == chosen


def test_a_width_that_no_block_divides_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """ONNX Runtime pads the last block, OpenVINO refuses it."""
    (linear,) = all_linears(one_linear(weights(40, 8, 0), gemm=False))
    assert weight_only.even_blocks(linear, BlockFormat(8, False, 64)).block == 64
    assert "fc: no block of 16 to 64 channels divides its 40" in caplog.text
