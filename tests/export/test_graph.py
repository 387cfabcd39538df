"""The exported graph: clean, standard, dynamic in the batch only, and equal to the reference."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import traces
from tests.support.traces import trace_once
from tests.support.vits import random_vit
from vit_edge.bundle.architecture import Architecture
from vit_edge.export.trace import ClsBlock, ExportableViT, model_from_vit
from vit_edge.graphs.readable import drop_allowzero, name_by_module, unshare_parameters
from vit_edge.graphs.write import skeleton, write_model
from vit_edge.models.vit import ViT, parameter_shapes
from vit_edge.variants import variant

requires = ("torch", "onnx", "onnxscript", "onnxruntime")

TESTING = variant("testing").architecture
FORMS = [("fused", 23), ("decomposed", 20), ("decomposed", 18)]


def exported(
    vit: ViT, folder: Path, outputs: tuple[str, ...], form: Any, opset: int, **limits: int
) -> Path:
    model = trace_once(vit, outputs, opset=opset, attention=form)
    name_by_module(model)
    drop_allowzero(model)
    model.ir_version = 10 if opset > 20 else 9
    onnx.checker.check_model(skeleton(model), full_check=True)
    write_model(model, folder, **limits)
    return folder / "model.onnx"


def relative_difference(path: Path, vit: ViT, outputs: tuple[str, ...], batch: int) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    architecture = vit.architecture
    rng = np.random.default_rng(batch)
    shape = (batch, architecture.channels, *architecture.image_hw)
    pixels = rng.standard_normal(shape).astype(np.float32)
    found = session.run(list(outputs), {"pixel_values": pixels})
    expected = vit.double()(torch.from_numpy(pixels).double())._asdict()
    vit.float()
    return max(
        float(np.abs(f - expected[o].numpy()).max() / expected[o].abs().max())
        for f, o in zip(found, outputs, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("form", "opset"), FORMS)
@pytest.mark.parametrize("outputs", [("logits", "features"), ("tokens", "logits")])
def test_the_graph_computes_the_reference_at_batches_never_traced(
    form: str, opset: int, outputs: tuple[str, ...], tmp_path: Path
) -> None:
    vit = random_vit(TESTING)
    path = exported(vit, tmp_path, outputs, form, opset)
    onnx.checker.check_model(str(path), full_check=True)
    for batch in (1, 2, 3, 7):
        assert relative_difference(path, vit, outputs, batch) < 2e-6


@pytest.mark.slow
@settings(max_examples=6)
@given(
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([8, 20, 80]),
    depth=st.integers(1, 2),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    bias=st.booleans(),
    pre_logits=st.booleans(),
    form=st.sampled_from(FORMS[:2]),
)
def test_any_shape_exports(
    tmp_path_factory: pytest.TempPathFactory,
    heads: int,
    head_dim: int,
    depth: int,
    grid: tuple[int, int],
    bias: bool,
    pre_logits: bool,
    form: tuple[str, int],
) -> None:
    architecture = Architecture(
        width=heads * head_dim,
        depth=depth,
        heads=heads,
        mlp_dim=24,
        patch_px=4,
        image_hw=(4 * grid[0], 4 * grid[1]),
        num_classes=5,
        qkv_bias=bias,
        pre_logits_dim=12 if pre_logits else None,
    )
    vit = random_vit(architecture)
    outputs = ("logits", "features", *(("pre_logits",) if pre_logits else ()))
    path = exported(vit, tmp_path_factory.mktemp("any"), outputs, *form)
    assert relative_difference(path, vit, outputs, 3) < 5e-6


CLIP: dict[str, Any] = {"norm_pre": True, "activation": "quick_gelu", "projection_dim": 12}
FAMILY: list[dict[str, Any]] = [
    {"prefix_tokens": 5, "norm_pre": True, "activation": "quick_gelu"},
    {"prefix_tokens": 2, "pooling": "class+distilled", "qk_norm": True},
    {"prefix_tokens": 0, "pooling": "mean", "norm_after_pooling": True},
    {"prefix_tokens": 5, "pooling": "class+mean", "qk_norm": True, "norm_pre": True},
    {**CLIP, "logit_scale": 100.0},
    {"activation": "gelu_tanh", "final_norm": False},
]


def test_parameters_that_hold_the_same_numbers_are_each_there_by_name() -> None:
    vit = random_vit(TESTING)
    for name, parameter in vit.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    model = model_from_vit(vit, ("logits", "tokens"), opset=23, attention="fused")
    name_by_module(model)
    named = set(model.graph.initializers)
    expected = parameter_shapes(TESTING).keys() - {"embedding.cls_token", "embedding.patch.bias"}
    assert not expected <= named  # else torch.onnx shares none any more, and nothing is to do
    unshare_parameters(model)
    assert expected <= set(model.graph.initializers)
    readers = [value.uses() for value in model.graph.initializers.values()]
    names = [str(value.name) for value in model.graph.initializers.values()]
    shared = [n for n, uses in zip(names, readers, strict=True) if len(uses) > 1]
    assert not expected & set(shared)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("parts", FAMILY)
def test_every_part_of_the_family_exports(
    parts: dict[str, Any], form: tuple[str, int], tmp_path: Path
) -> None:
    vit = random_vit(dataclasses.replace(TESTING, **parts))
    path = exported(vit, tmp_path, ("logits", "features"), *form)
    assert relative_difference(path, vit, ("logits", "features"), 3) < 5e-6


@pytest.mark.slow
@pytest.mark.parametrize(("form", "opset", "nodes"), [("fused", 23, 200), ("decomposed", 20, 277)])
def test_a_base_graph_has_no_node_too_many(form: str, opset: int, nodes: int) -> None:
    """Stock torch.onnx on timm's model: 323 with opset 23, 527 with opset 18."""
    base = variant("base-patch16-224").architecture
    # the number of nodes does not depend on the width: a narrow model is quick
    narrow = dataclasses.replace(base, width=24, mlp_dim=24, num_classes=5, image_hw=(32, 32))
    model = model_from_vit(
        random_vit(narrow),
        ("logits", "features"),
        opset=opset,
        attention=form,  # type: ignore[arg-type]
    )
    types = Counter(node.op_type for node in model.graph)
    assert types["Constant"] == 0
    assert not {"Shape", "Expand", "Gemm", "Identity", "Cast", "Concat"} & set(types)
    assert sum(types.values()) <= nodes, types
    assert types["Attention"] == (11 if form == "fused" else 0)
    assert types["Gelu"] == 12
    assert types["LayerNormalization"] == 25
    assert dict(model.opset_imports) == {"": opset}
    assert not model.functions


def test_only_the_batch_is_dynamic() -> None:
    model = trace_once(random_vit(TESTING), ("logits",), opset=23, attention="fused")
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        first, *rest = value.shape
        assert not isinstance(first, int)
        assert all(isinstance(size, int) for size in rest)


def test_the_last_block_works_for_the_class_token_alone() -> None:
    vit = random_vit(TESTING)
    whole = model_from_vit(vit, ("logits", "tokens"), opset=23, attention="fused")
    short = trace_once(vit, ("logits",), opset=23, attention="fused")

    def last_mlp_tokens(model: Any) -> Any:
        nodes = [node for node in model.graph if node.op_type == "Gelu"]
        return nodes[-1].outputs[0].shape[1]

    assert last_mlp_tokens(whole) == TESTING.tokens
    assert last_mlp_tokens(short) == 1


def test_nodes_are_named_after_their_modules() -> None:
    model = trace_once(random_vit(TESTING), ("logits",), opset=20, attention="decomposed")
    name_by_module(model)
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names)
    assert "blocks.0.mlp.fc1/MatMul" in names
    assert "blocks.1.attention/Softmax" in names
    assert all(str(name).startswith(("embedding", "blocks.", "readout")) for name in names)
    assert all(not node.metadata_props for node in model.graph)


def test_weights_over_the_limit_go_into_their_own_file(tmp_path: Path) -> None:
    vit = random_vit(TESTING)
    path = exported(vit, tmp_path, ("logits",), "fused", 23, single_file_limit=1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    onnx.checker.check_model(str(path), full_check=True)
    offsets = {
        int(entry.value)
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    }
    assert all(offset % 4096 == 0 for offset in offsets)
    assert relative_difference(path, vit, ("logits",), 2) < 2e-6


def test_the_streamed_file_is_what_onnx_would_read_back(tmp_path: Path) -> None:
    vit = random_vit(TESTING)
    path = exported(vit, tmp_path, ("logits",), "fused", 23)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    for name, tensor in vit.state_dict().items():
        if name.startswith(("blocks.0", "readout")):
            assert np.array_equal(stored[name], tensor.numpy()), name


def test_a_traced_graph_shares_the_weights_and_does_not_copy_them() -> None:
    vit = random_vit(TESTING)
    model = trace_once(vit, ("logits",), opset=23, attention="fused")
    shared = model.graph.initializers["blocks.0.mlp.fc1.weight"].const_value
    assert shared is not None
    vit.blocks[0].mlp.fc1.weight.data[0, 0] = 42
    assert shared.numpy()[0, 0] == 42


def test_the_planted_wrong_scale_is_seen(tmp_path: Path) -> None:
    """The comparison above must be able to fail: forget the scale that is folded into q."""
    vit = random_vit(TESTING)
    path = exported(vit, tmp_path, ("logits",), "decomposed", 20)
    vit.blocks[0].attention.qkv.weight.data[:, : TESTING.width] *= TESTING.head_dim**0.5
    assert relative_difference(path, vit, ("logits",), 2) > 1e-4


@pytest.mark.parametrize("parts", [{}, CLIP], ids=["plain", "clip"])
def test_the_exportable_form_is_equal_in_float64(parts: dict[str, Any]) -> None:
    """Where features come from the class token, its last block is for that token alone."""
    vit = random_vit(dataclasses.replace(TESTING, **parts)).double()
    pixels = torch.randn(3, 3, 64, 64, dtype=torch.float64, generator=torch.manual_seed(0))
    form = ExportableViT(vit, ("logits", "features"), "decomposed")
    assert isinstance(form.blocks[-1], ClsBlock)
    expected = vit(pixels)
    logits, features = form(pixels)
    assert float((logits - expected.logits).abs().max()) < 1e-12
    assert float((features - expected.features).abs().max()) < 1e-12


@pytest.mark.parametrize(("form", "opset"), [("fused", 23), ("decomposed", 20)])
def test_a_shared_trace_is_the_graph_that_tracing_anew_gives(
    form: Any, opset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tests' own short cut rests on, in one process and between workers."""
    monkeypatch.setattr(traces, "SHARED", tmp_path)
    monkeypatch.setattr(traces, "_traced", {})
    first, vit = random_vit(TESTING, 1), random_vit(TESTING, 2)
    name_by_module(trace_once(first, ("logits",), opset=opset, attention=form))
    shared = trace_once(vit, ("logits",), opset=opset, attention=form)
    traces._traced.clear()  # as another worker begins
    read, traced = (
        trace(vit, ("logits",), opset=opset, attention=form)
        for trace in (trace_once, model_from_vit)
    )
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".lock", ".onnx"]
    assert onnx_ir.to_proto(shared) == onnx_ir.to_proto(read) == onnx_ir.to_proto(traced)


def test_a_shared_trace_of_zero_biases_is_shared_by_equal_weights_alone() -> None:
    """torch.onnx keeps one bias of zeros of each size, whichever they are."""
    architecture = dataclasses.replace(TESTING, image_hw=(32, 32), depth=1)

    def traced(*zeros: str) -> dict[str, Any]:
        vit = random_vit(architecture, 3)
        for name, parameter in vit.named_parameters():
            if name.endswith(tuple(f"{kind}.bias" for kind in zeros)):
                parameter.data.zero_()
        model = trace_once(vit, ("logits",), opset=20, attention="decomposed")
        return {name: value.const_value for name, value in model.graph.initializers.items()}

    first, again, other = (
        traced(*zeros) for zeros in (("fc2", "patch"),) * 2 + (("norm1", "norm2"),)
    )
    assert first.keys() == again.keys() != other.keys()
    for name, value in first.items():
        assert np.array_equal(value, again[name]), name
    assert np.any(other["blocks.0.mlp.fc2.bias"])
    assert np.any(other["embedding.patch.bias"])
