"""T2T-ViT exported: standard operators, every runtime, every precision, from its own files."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import cast, get_args

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch

from tests.quantize.workbench import write_crops
from tests.support.bundles import Exporter
from tests.support.t2t import DIM, Kind, Theirs, saved
from vit_edge import backends
from vit_edge.backends import eager
from vit_edge.backends.openvino.rewrite import split_tokens
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.checkpoints.draw import drawn_tensors
from vit_edge.export.__main__ import main
from vit_edge.export.trace import ExportableViT, model_from_vit
from vit_edge.graphs.readable import name_by_module
from vit_edge.graphs.workspace import Workspace
from vit_edge.images.preprocess import pixels_from_resized
from vit_edge.models.t2t import TokensToToken, soft_split
from vit_edge.models.vit import vit_from_weights
from vit_edge.quantize.linears import all_linears, block_linears
from vit_edge.quantize.parts import USUAL_PARTS, half_nodes
from vit_edge.quantize.rescale.values import value_groups
from vit_edge.quantize.weight_only import linears_of
from vit_edge.variants import variant

requires = ("torch", "onnx", "onnxscript", "onnxruntime")

KINDS = get_args(Kind)
RUNTIMES = {"ort": "onnxruntime", "openvino": "openvino", "eager": "torch"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("t2t")
    made = {}
    for kind in KINDS:
        (folder / kind).mkdir()
        made[kind] = str(saved(Theirs(kind), folder / kind / "x.pth.tar"))
    return made


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 natural images."""
    return write_crops(tmp_path_factory.mktemp("calibration"), 16, 5, (64, 64))


def nodes_of(bundle: Bundle) -> list[onnx.NodeProto]:
    return list(onnx.load(bundle.model_path, load_external_data=False).graph.node)


@pytest.mark.parametrize("kind", KINDS)
def test_every_runtime_gives_the_answers_of_its_own_code(
    kind: Kind, sources: dict[str, str], export_once: Exporter
) -> None:
    bundle = export_once("--checkpoint", sources[kind], "--max-batch", "4")
    pixels = np.random.default_rng(0).standard_normal((3, 3, 64, 64), np.float32)
    with torch.no_grad():
        expected = Theirs(kind)(torch.from_numpy(pixels)).numpy()
    for name in ("ort", "openvino", "eager"):
        if importlib.util.find_spec(RUNTIMES[name]):
            with closing(backends.module(name).load(bundle)) as backend:
                for count in (3, 1):
                    found = backend.run(pixels[:count])["logits"]
                    far = np.abs(found - expected[:count]).max() / np.abs(expected).max()
                    assert far < 1e-5, f"{name}, {count} images: {far:.1e}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_has_standard_operators_and_a_free_batch(
    kind: Kind, sources: dict[str, str], export_once: Exporter
) -> None:
    bundle = export_once("--checkpoint", sources[kind], "--max-batch", "4")
    counts = Counter(node.op_type for node in nodes_of(bundle))
    assert {node.domain for node in nodes_of(bundle)} == {""}
    assert counts["Conv"] == 1
    assert not {"Im2Col", "Col2Im", "GatherND", "Expand", "Shape", "ScatterND"} & counts.keys()
    # that of the only block is for one token
    expected = {"transformer": (2, 0), "performer": (0, 4)}
    assert (counts["Attention"], counts["Exp"]) == expected[kind]


@pytest.mark.parametrize("hw", [(64, 64), (48, 80)])
def test_the_exported_windows_are_those_of_unfold_to_the_bit(hw: tuple[int, int]) -> None:
    a = dataclasses.replace(
        variant("t2t-vit-t-14").architecture, depth=1, image_hw=hw, token_dim=DIM
    )
    vit = vit_from_weights(a, {n: lazy.read() for n, lazy in drawn_tensors(a, 0).items()})
    exported = ExportableViT(vit, ["features"], "decomposed").embedding.patch
    theirs = vit.embedding.patch
    assert isinstance(theirs, TokensToToken)
    tokens = torch.randn(2, hw[0] * hw[1] // 16, 5)
    assert torch.equal(exported.split1(tokens), soft_split(tokens, theirs.hw(4)))  # type: ignore[operator]
    pixels = torch.randn(2, 3, *hw)
    expected = theirs(pixels).flatten(2).transpose(1, 2)
    assert torch.allclose(exported(pixels), expected, rtol=1e-5, atol=1e-5)


def test_int8_keeps_the_answers_and_takes_the_tokenizers_linears(
    sources: dict[str, str], calibration: Path, export_once: Exporter
) -> None:
    low = ("--precision", "int8", "--calibration", str(calibration), "--set", "float_budget=0")
    settings = ("--set", "sensitivity_images=1", "--parity-target", "sqnr_centred_db=14")
    bundle = export_once("--checkpoint", sources["performer"], "--max-batch", "2", *low, *settings)
    with Golden(bundle.path / "golden.npz") as golden:
        rows = list(range(0, 16, 2))
        pixels = pixels_from_resized(golden.images(rows), bundle.manifest.preprocessing)
        expected = golden.answers(rows)["logits"]
    for name in ("ort", "openvino"):
        if importlib.util.find_spec(RUNTIMES[name]):
            with closing(backends.module(name).load(bundle)) as backend:
                parts = [backend.run(pixels[i : i + 2])["logits"] for i in (0, 2, 4, 6)]
            found = np.concatenate(parts)
            signal = np.square(expected - expected.mean(axis=0)).sum()
            quality = 10 * np.log10(signal / np.square(found - expected).sum())
            assert quality > 20, f"{name}: {quality:.1f} dB"
    names = {n.name.partition("/")[0] for n in nodes_of(bundle) if n.op_type == "DequantizeLinear"}
    assert {"embedding.patch.first.qkv", "embedding.patch.project"} <= names
    assert "embedding.patch.first" not in names  # where Performer's products with w are


@pytest.fixture(scope="module")
def performer() -> onnx_ir.Model:
    """Decomposed, with weights as drawn."""
    changes = {"depth": 1, "width": 64, "heads": 2, "mlp_dim": 128, "token_dim": DIM}
    row = variant("t2t-vit-7").architecture
    a = dataclasses.replace(row, image_hw=(64, 64), **changes)
    vit = vit_from_weights(a, {n: lazy.read() for n, lazy in drawn_tensors(a, 0).items()})
    model = model_from_vit(vit, ["logits"], opset=20, attention="decomposed")
    name_by_module(model)
    return model


def test_in_half_precision_performers_kernel_stays_float32(performer: onnx_ir.Model) -> None:
    """And its Linears do not; nor do they carry w, which is no Linear."""
    half = {str(node.name) for node in half_nodes(performer, USUAL_PARTS, ())}
    stem = "embedding.patch.first"
    kernel = [str(n.name) for n in performer.graph if str(n.name).startswith(f"{stem}/")]
    assert sum("MatMul" in name for name in kernel) == 5
    assert not {name for name in kernel if "MatMul" in name} & half
    assert {f"{stem}.qkv/MatMul", f"{stem}.out/MatMul", f"{stem}.mlp.fc1/MatMul"} <= half
    names = [linear.name for linear in block_linears(performer)]
    assert len([name for name in names if name.startswith(f"{stem}")]) == 4


def test_weights_that_no_block_divides_stay_float(performer: onnx_ir.Model) -> None:
    """147 inputs: OpenVINO reads whole blocks alone."""
    names = [linear.name for linear in linears_of(performer, head=True)]
    left = {linear.name for linear in all_linears(performer)} - set(names)
    assert left == {"embedding.patch.first.qkv"}


def test_an_answer_is_the_same_to_the_bit_in_any_batch(performer: onnx_ir.Model) -> None:
    """Or INT8 would round it to another level: sums over 256 tokens, by two threads."""
    performer.ir_version = 9
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(performer).SerializeToString())
    pixels = np.random.default_rng(0).standard_normal((5, 3, 64, 64), np.float32)
    (together,) = session.run(None, {"pixel_values": pixels})
    for index in range(5):
        (alone,) = session.run(None, {"pixel_values": pixels[index : index + 1]})
        assert np.array_equal(alone[0], together[index])


def test_values_that_go_past_the_attention_are_not_rescaled(
    sources: dict[str, str], export_once: Exporter
) -> None:
    """Nobody tries it, so nobody is warned that it changed the answers."""
    bundle = export_once("--checkpoint", sources["transformer"], "--max-batch", "4")
    model = onnx_ir.load(bundle.model_path)
    linears = block_linears(model)
    out = [linear for linear in linears if linear.name == "embedding.patch.first.out"]
    assert len(out) == 1
    nothing_runs = cast(Workspace, None)
    assert value_groups(nothing_runs, model, linears, out, np.zeros((1, 3, 64, 64), "f4")) == []


def test_the_encoders_tokens_are_split_for_openvino_not_the_windows() -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO's own graph is looked at")
    ops = openvino.opset13
    x = ops.parameter([1, 256, 8], np.float32)
    norm = partial(
        ops.mvn, axes=np.array([2]), normalize_variance=True, eps=1e-5, eps_mode="inside_sqrt"
    )
    windows = norm(norm(x))
    tokens = norm(norm(norm(ops.gather(windows, np.arange(17), np.int64(1)))))
    model = openvino.Model([ops.relu(tokens)], [x])
    split_tokens(model, 16)
    norms = [node for node in model.get_ordered_ops() if node.get_type_name() == "MVN"]
    tokens_of = Counter(node.output(0).shape[1] for node in norms)
    assert tokens_of == {256: 2, 16: 3, 1: 3}


def test_images_as_bytes_are_refused_by_name(
    sources: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "b"
    arguments = ["--checkpoint", sources["transformer"], "--input", "uint8", "--out", str(out)]
    assert main(arguments) == 3
    assert "patches tile the image" in capsys.readouterr().err
    assert not out.exists()


def test_what_is_no_bundle_of_it_is_told(sources: dict[str, str], export_once: Exporter) -> None:
    bundle = export_once("--checkpoint", sources["performer"], "--max-batch", "4")
    assert bundle.manifest.architecture is not None
    odd = dataclasses.replace(bundle.manifest.architecture, image_hw=(72, 64))
    assert odd.problems() == [
        "tokenizer 't2t-performer' needs patch_px 16 and an image of whole patches, not 16 and "
        "[72, 64]"
    ]
    with closing(eager.load(bundle)) as backend:
        assert backend.facts["backend"] == "eager"
