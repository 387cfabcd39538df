"""Every precision takes every exporter's graph, however many nodes share a scope."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

from tests.quantize.workbench import answers, calibration, compared, no_progress, task
from tests.support import foreign_graphs as graphs
from tests.support.foreign import FOREIGN, SCOPED
from vit_edge import quantize
from vit_edge.errors import ModelError
from vit_edge.export.foreign.source import foreign_source
from vit_edge.export.recipe import find_recipe
from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize.linears import all_linears, block_linears
from vit_edge.quantize.rescale.attention import attention_products
from vit_edge.quantize.rounding.samples import collect_samples

requires = ("torch", "onnx", "onnx_ir", "onnxruntime", "transformers")

ForeignFile = Callable[[str], Path]

# dB of the centred logits: twice the noise of the worst of those below is half of it
LEAST_DB = {"fp16": 40, "bf16": 30, "fp8": 18, "int8": 24, "int8-dynamic": 22, "int8-weights": 26,
            "int4": 15}  # fmt: skip
GPU = ("fp16", "bf16", "fp8")
# each graph with one precision, each precision with a graph whose scopes are shared
PAIRS = [
    ("torchvision-torchscript-17", "int8"),
    ("torchvision-torchscript-17", "fp8"),
    ("encoderlayer-torchscript-18", "int8-weights"),
    ("functional-torchscript-17", "fp16"),
    ("openclip-torchscript-18", "int4"),
    ("openclip-torchscript-18", "bf16"),
    ("shared-torchscript-17", "int8-dynamic"),
    ("hf-dynamo-18", "fp8"),  # its open mask is taken out, and its attention found
]
TORCHSCRIPT = [kind for kind in SCOPED if "torchscript" in kind]
EVERY = (*FOREIGN, *SCOPED, "hf-dynamo-23", "timm-dynamo-23", "torchvision-dynamo-23")


def check(path: Path, precision: str, scratch: Path) -> None:
    """Quantize a file; its answers must stay near those of the float graph."""
    target = "gpu" if precision in GPU else "cpu"
    module = quantize.module(precision)
    source = foreign_source(path, "google-vit", None, scratch)
    images = calibration(12, 0, source.facts.preprocessing)  # what varies among four is chance
    expected = answers(source.model, images, scratch)
    recipe = find_recipe(f"{target}-{precision}", precision)
    chosen = {"sensitivity_images": 1} if hasattr(module.Settings, "sensitivity_images") else {}
    settings = quantize.settings_from_table(precision, chosen, "test")
    with source.graph(recipe, module.LEAST_OPSET[target], scratch / "graph") as model:
        if precision == "fp8":
            assert len(attention_products(model)) == 2
        found = module.quantize(task(model.clone(), images, scratch, target=target), settings)
    check_names(found.model)
    entries = {"session.disable_quant_qdq": "1"} if precision == "fp8" else None
    low = answers(found.simulation or found.model, images, scratch, entries)
    assert float(str(compared(low, expected)["sqnr_centred_db"])) > LEAST_DB[precision]


def check_names(model: onnx_ir.Model) -> None:
    """Every node and every value has a name that nothing of its kind has."""
    nodes = Counter(node.name for node in model.graph)
    values = Counter(value.name for node in model.graph for value in node.outputs if value.name)
    values.update(value.name for value in model.graph.inputs)
    values.update(model.graph.initializers.keys())
    assert not [name for name, count in (nodes | values).items() if count > 1 or not name]


@pytest.mark.parametrize(("kind", "precision"), PAIRS)
def test_a_graph_whose_nodes_share_scopes_takes_every_precision(
    kind: str, precision: str, foreign_file: ForeignFile, tmp_path: Path
) -> None:
    check(foreign_file(kind), precision, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", quantize.names()[1:])
def test_every_graph_takes_every_precision(
    precision: str, foreign_file: ForeignFile, tmp_path: Path
) -> None:
    for kind in EVERY:
        (tmp_path / kind).mkdir()
        check(foreign_file(kind), precision, tmp_path / kind)


def hostile(path: Path, place: Path) -> Path:
    """The same graph with names that passes might give, and none where there may be none."""
    model = onnx.load(path)
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    values = [name for node in graph.node for name in node.output] + [
        t.name for t in graph.initializer
    ]
    ends = ("_quantized", "_scale", "_zero_point", "_fp16", "/QuantizeLinear:0", "/Cast:0", ":0")
    weights = [tensor.name for tensor in graph.initializer if len(tensor.dims) == 2]
    renamed = {}
    for index, name in enumerate(name for name in values if name not in kept):
        renamed[name] = f"{weights[index % len(weights)]}{ends[index % len(ends)]}.{index}"
    # exactly what the first weight's parts would be called
    spare = [name for name in renamed if name not in weights][: len(ends)]
    renamed |= {name: weights[0] + end for name, end in zip(spare, ends, strict=True)}
    renamed |= {name: name for name in weights}
    renamed |= {"": ""}
    odd = ("", "/", "a/b/", "a.b/MatMul", "x/DequantizeLinear_weight", "x//MatMul", "é ü")
    for index, node in enumerate(graph.node):
        node.name = odd[index] if index < len(odd) else f"block/{index}/" if index % 3 else ""
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    del graph.value_info[:]
    out = place / "hostile.onnx"
    onnx.save(model, out)
    return out


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic", "int4", "fp16", "fp8"])
def test_names_that_a_pass_might_give_are_in_no_ones_way(
    precision: str, foreign_file: ForeignFile, tmp_path: Path
) -> None:
    check(hostile(foreign_file("hf-torchscript-17"), tmp_path), precision, tmp_path)


@pytest.mark.parametrize("kind", TORCHSCRIPT)
def test_linears_and_attentions_that_share_a_scope_are_told_apart(
    kind: str, foreign_file: ForeignFile, tmp_path: Path
) -> None:
    model = foreign_source(foreign_file(kind), "google-vit", None, tmp_path).model
    names = [linear.name for linear in all_linears(model)]
    assert len(set(names)) == len(names)
    assert [linear.name for linear in all_linears(model.clone())] == names
    products = [found.name for found in attention_products(model)]
    assert len(set(products)) == len(products) == 2


def test_images_are_told_apart_where_tokens_come_first(
    foreign_file: ForeignFile, tmp_path: Path
) -> None:
    """nn.MultiheadAttention works on [tokens, N, D]; rows are of every other image."""
    source = foreign_source(
        foreign_file("torchvision-torchscript-17"), "google-vit", None, tmp_path
    )
    images = calibration(4, 0, source.facts.preprocessing)
    workspace = Workspace(tmp_path / "workspace")
    model = workspace.settle(source.model)
    reader = block_linears(model)[0].input
    assert reader.shape is not None
    assert reader.shape[0] == 17
    samples = collect_samples(workspace, model, block_linears(model), images, no_progress)
    alone = workspace.observe(model, [reader], (images.pixels(i, i + 1) for i in (0, 2)))
    rows = np.concatenate([seen[str(reader.name)][:, 0] for seen in alone])
    np.testing.assert_allclose(samples[reader].rows, rows, atol=1e-5)


def fp8_of(shape: graphs.Shape, scratch: Path) -> quantize.Quantized:
    """FP8 of a ViT built like timm's, of this shape."""
    model = graphs.with_random_weights(graphs.TimmViT(shape))
    path = graphs.export(model, scratch / "model.onnx", "torchscript", 17)
    source = foreign_source(path, "google-vit", None, scratch)
    images = calibration(2, 0, source.facts.preprocessing)
    chosen = {"sensitivity_images": 1, "float_budget": 0}
    settings = quantize.settings_from_table("fp8", chosen, "test")
    with source.graph(find_recipe("gpu-fp8", "fp8"), 19, scratch / "graph") as graph:
        job = task(graph.clone(), images, scratch / "fp8", target="gpu")
        return quantize.module("fp8").quantize(job, settings)


@pytest.mark.parametrize(("heads", "head_dim"), [(3, 10), (2, 20), (3, 22)])
def test_widths_that_fp8s_blocks_do_not_divide_are_refused(
    heads: int, head_dim: int, tmp_path: Path
) -> None:
    width = heads * head_dim
    with pytest.raises(ModelError, match=rf"multiple of 16 wide.* {width}.*--precision fp16"):
        fp8_of(graphs.Shape(heads, head_dim, 1, 4 * width), tmp_path)


@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        (graphs.Shape(2, 16, 1, 50), {"mlp.0", "mlp.2"}),  # the MLP is uneven
        (graphs.Shape(4, 12, 1, 96), {"attn.products"}),  # the heads are, their sum is not
        (graphs.Shape(2, 16, 1, 48), set()),
    ],
)
def test_parts_that_fp8s_blocks_do_not_divide_stay_in_half_precision(
    shape: graphs.Shape, kept: set[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = fp8_of(shape, tmp_path)
    parts = {part["name"].rpartition("/")[2] for part in found.record["parts"]}
    assert parts == {"qkv", "proj", "mlp.0", "mlp.2", "attn.products"} - kept
    quantized = [
        str(node.name).removesuffix("/QuantizeLinear").rpartition("/")[2]
        for node in found.model.graph
        if node.op_type == "QuantizeLinear"
    ]
    products = {"attn.q", "attn.k", "attn.p", "attn.v"} if "attn.products" not in kept else set()
    assert set(quantized) == {"qkv", "proj", "mlp.0", "mlp.2"} - kept | products
    for name in kept:
        assert name in caplog.text
