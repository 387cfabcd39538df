"""Real builds without a GPU, by TensorRT-RTX: what is taken, what is refused, in which words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.quantize.workbench import broken_rules, without_search, write_crops
from tests.support import t2t
from tests.support.bundles import TESTING, Exporter
from tests.support.family_folders import PARTS, write_family
from tests.support.tensorrt_rtx_build import ALL, all_builds, builds
from vit_edge.backends import trt
from vit_edge.build.__main__ import main
from vit_edge.bundle import Bundle
from vit_edge.bundle.architecture import Architecture
from vit_edge.checkpoints.draw import drawn_tensors
from vit_edge.errors import BackendError
from vit_edge.export.trace import model_from_vit
from vit_edge.graphs.readable import drop_allowzero, name_by_module
from vit_edge.graphs.write import write_model
from vit_edge.models.vit import vit_from_weights
from vit_edge.variants import VARIANTS

# fmt: off
requires = (
    "torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors", "tqdm", "tensorrt_rtx",
)
# fmt: on

FP8_GPUS = ("SM89", "SM120")
FOREIGN = "my.domain"


# What TensorRT does not take


def model(nodes: list[Any], weights: dict[str, Any]) -> Any:
    """A small graph from pixels[N, 8, 8] to logits[N, 8, 8]."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8, 8])
        for name in ("pixels", "logits")
    ]
    initializers = [numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(FOREIGN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def node(operator: str, name: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), [output], name=name, **attributes)


EYE = np.eye(8, dtype=np.float32)
QUANTIZE = node("QuantizeLinear", "quantize", "pixels scale zero", "q")
DEQUANTIZE = node("DequantizeLinear", "dequantize", "q scale zero", "d")
SCALE = {"scale": np.float32(0.1), "zero": np.int8(0)}
PRODUCT = node("MatMul", "fc", "d weight", "logits")

# name of the node that is to blame -> (graph, a word of the reason)
REFUSED = {
    "quantize": (
        model([QUANTIZE, DEQUANTIZE, PRODUCT], {"weight": EYE, **SCALE, "zero": np.int8(3)}),
        "Non-zero zero point",
    ),
    "bias_dequantize": (
        model(
            [
                node("DequantizeLinear", "bias_dequantize", "bias scale zero32", "b"),
                node("MatMul", "fc", "pixels weight", "m"),
                node("Add", "add", "m b", "logits"),
            ],
            {"weight": EYE, "bias": np.arange(8, dtype=np.int32), **SCALE, "zero32": np.int32(0)},
        ),
        "Int32",
    ),
    "qlinear_fc": (
        model(
            [
                QUANTIZE,
                node("QLinearMatMul", "qlinear_fc", "q scale zero eye scale zero scale zero", "p"),
                node("DequantizeLinear", "dequantize", "p scale zero", "logits"),
            ],
            {"eye": EYE.astype(np.int8), **SCALE},
        ),
        "QLinearMatMul",
    ),
    "integer_fc": (
        model(
            [
                QUANTIZE,
                node("MatMulInteger", "integer_fc", "q eye", "p"),
                node("Cast", "cast", "p", "logits", to=TensorProto.FLOAT),
            ],
            {"eye": EYE.astype(np.int8), **SCALE},
        ),
        "MatMulInteger",
    ),
    "dynamic": (
        model(
            [
                helper.make_node(
                    "DynamicQuantizeLinear", ["pixels"], ["q", "s", "z"], name="dynamic"
                ),
                node("DequantizeLinear", "dequantize", "q s z", "logits"),
            ],
            {},
        ),
        "DynamicQuantizeLinear",
    ),
    "own_gelu": (model([node("Own", "own_gelu", "pixels", "logits", domain=FOREIGN)], {}), "Own"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_graph_that_tensorrt_does_not_take_is_refused_with_the_nodes_name(
    name: str, tmp_path: Path
) -> None:
    graph, reason = REFUSED[name]
    onnx.save(graph, tmp_path / "model.onnx")
    (build,) = builds(tmp_path / "model.onnx", ["SM86"])
    (error,) = build.errors
    assert f"node {name} (" in error
    assert reason in error
    assert "does not take this graph" in error


def test_the_graph_without_the_fault_is_taken(tmp_path: Path) -> None:
    right = model([QUANTIZE, DEQUANTIZE, PRODUCT], {"weight": EYE, **SCALE})
    onnx.save(right, tmp_path / "model.onnx")
    (build,) = builds(tmp_path / "model.onnx", ["SM86"])
    assert build.errors == ()


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    graph = model([node("MatMul", "fc", "pixels weight", "logits")], {"weight": EYE})
    path = tmp_path / "model.onnx"
    onnx.save(graph, path, save_as_external_data=True, location="weights", size_threshold=0)
    (tmp_path / "weights").unlink()
    (build,) = builds(path, ["SM86"])
    assert "Failed to import initializer: weight" in build.errors[0]


def test_what_the_builder_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    graph = model([node("MatMul", "fc", "pixels weight", "logits")], {"weight": EYE})
    onnx.save(graph, tmp_path / "model.onnx")
    (build,) = builds(tmp_path / "model.onnx", ["SM75"])  # which has no float32 in TensorRT-RTX
    assert "cannot build it" in build.errors[0]
    assert "sm75" in build.errors[0].lower()


# Engines for other machines


def test_an_engine_for_another_gpu_is_made_without_one_and_not_found(
    decomposed: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(decomposed.path), "--backend", "trt", "--engines-dir", str(tmp_path)]
    assert main([*arguments, "--set", "compute_capability=SM86"]) == 0
    (engine,) = tmp_path.glob("trt-*")
    assert (engine / "model.plan").stat().st_size > 1000
    assert str(engine) in capfd.readouterr().out
    if not trt.available().ok:
        assert main(arguments) == 3
        assert "no NVIDIA driver" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["SM87", "8.6", "CURRENT"])
def test_a_gpu_that_tensorrt_does_not_build_for_is_refused(
    name: str, decomposed: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match="SM75, SM80, SM86, SM89, SM120, SM121"):
        trt.build(decomposed, tmp_path, compute_capability=name)


@pytest.fixture(scope="module")
def decomposed(export_once: Exporter) -> Bundle:
    return export_once(*TESTING, "--recipe", "gpu-fp32")


# Every variant


def architectures() -> dict[str, Architecture]:
    """The variants of different shape, each with two blocks: the others are like the first."""
    found: dict[Architecture, tuple[str, Architecture]] = {}
    for name, row in VARIANTS.items():
        if row.tokenizer != "patches":  # built below, among the parts of the family
            continue
        shallow = dataclasses.replace(row.architecture, depth=2)
        shape = dataclasses.replace(shallow, num_classes=min(1, shallow.num_classes))
        found.setdefault(shape, (name, shallow))
    return dict(found.values())


def is_first_of_its_width(name: str) -> bool:
    """Whether every precision is built for several GPUs; other sizes differ in tokens alone."""
    rows = architectures()
    return name == next(n for n, a in rows.items() if a.width == rows[name].width)


def gpus_for(name: str, precision: str) -> Sequence[str]:
    """Every GPU for the smallest and the largest model; those with its cores for FP8."""
    if not is_first_of_its_width(name):
        return FP8_GPUS[:1]
    every = name in ("testing", "huge-patch14-224-in21k") and precision != "fp8"
    return ALL if every else FP8_GPUS


def float_model(architecture: Architecture) -> onnx_ir.Model:
    drawn = drawn_tensors(architecture, 0)
    vit = vit_from_weights(architecture, {name: lazy.read() for name, lazy in drawn.items()})
    outputs = ["logits" if architecture.num_classes else "features"]
    made = model_from_vit(vit, outputs, opset=20, attention="decomposed")
    name_by_module(made)
    drop_allowzero(made)
    made.ir_version = 9
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures())
def test_every_variant_builds_for_every_gpu(name: str, tmp_path: Path) -> None:
    """And plans are smaller the lower the precision, at every width where weights decide it."""
    architecture = architectures()[name]
    spec = VARIANTS[name].preprocessing_at(architecture.image_hw)
    model = float_model(architecture)
    whole = is_first_of_its_width(name)
    wanted: dict[str, tuple[Path, Sequence[str]]] = {}
    for precision in (*(["fp32"] if whole else []), "fp16", "int8", "fp8"):
        folder = tmp_path / precision
        folder.mkdir()
        lowered = without_search(precision, model.clone(), spec, folder)
        assert broken_rules(lowered) == [], precision
        write_model(lowered, folder)
        wanted[precision] = (folder / "model.onnx", gpus_for(name, precision))
    plans: dict[str, dict[str, int]] = {}
    for precision, built in zip(wanted, all_builds([*wanted.values()]), strict=True):
        _, gpus = wanted[precision]
        assert [build.errors for build in built] == [()] * len(gpus), precision
        plans[precision] = {build.compute_capability: build.plan_bytes for build in built}
    if whole:
        assert_smaller(plans, "fp16", "fp32")
    if architecture.width >= VARIANTS["tiny-patch16-224"].architecture.width:
        assert_smaller(plans, "int8", "fp16")
        assert_smaller(plans, "fp8", "fp16")


def assert_smaller(plans: dict[str, dict[str, int]], lower: str, higher: str) -> None:
    """On each GPU that both were built for."""
    for gpu, plan_bytes in plans[lower].items():
        assert plan_bytes < plans[higher][gpu], (gpu, lower, higher)


# Every part of the family

ZERO_SHOT, DECODER = "zero-shot head", "decoder"
T2T = get_args(t2t.Kind)  # T2T-ViT's tokenizer, of either kind
PLAIN = ("layer scale", "zeros")  # folders of the plain ViT's graph
UNLIKE = [parts for parts in PARTS if parts not in PLAIN]
# INT8's graph has FP16 in all but the products, so FP16 alone is for what stands between them.
BUILT = [
    *(
        (parts, precision)
        for parts in (*UNLIKE, ZERO_SHOT, DECODER)
        for precision in ("fp32", "int8")
    ),
    *((parts, "fp16") for parts in ("mean, normalised", "qk_norm", "siglip")),
    *((parts, "int8") for parts in T2T),
]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """The arguments of an export for each part, but for its recipe."""
    folder = tmp_path_factory.mktemp("families")
    sources = {parts: write_family(folder / str(n), parts) for n, parts in enumerate(UNLIKE)}
    return {parts: ("--checkpoint", source) for parts, source in sources.items()}


@pytest.fixture(scope="module")
def zero_shot(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The same for a CLIP tower that is given the texts of its classes."""
    pytest.importorskip("transformers", reason="drawing a CLIP model needs transformers")
    from tests.checkpoints.test_hf_clip import drawn, saved

    folder = tmp_path_factory.mktemp("clip")
    clip = drawn("CLIPModel")
    clip.vision_model.embeddings.patch_embedding.weight.data.mul_(5)
    texts = np.random.default_rng(0).normal(size=(3, clip.config.projection_dim))
    np.save(folder / "texts.npy", texts.astype(np.float32))
    (folder / "labels.txt").write_text("a\nb\nc\n")
    return (
        *("--checkpoint", saved(clip, folder / "model")),
        *("--text-embeddings", str(folder / "texts.npy"), "--labels", str(folder / "labels.txt")),
    )


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The same for the pixels of a model for masked images."""
    pytest.importorskip("transformers", reason="drawing a model needs transformers")
    from tests.export.test_reconstruction import drawn, saved

    source = saved(drawn(), tmp_path_factory.mktemp("masked") / "model")
    return ("--checkpoint", source, "--outputs", "reconstruction")


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """The same for T2T-ViT, whose windows have a Transformer or Performer."""
    sources = {}
    for kind in T2T:
        path = tmp_path_factory.mktemp(kind) / "x.pth.tar"
        sources[kind] = ("--checkpoint", str(t2t.saved(t2t.Theirs(kind), path)))
    return sources


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 natural images."""
    return write_crops(tmp_path_factory.mktemp("calibration"), 16, 5, (64, 64))


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "precision"), BUILT)
def test_every_part_of_the_family_builds(
    parts: str,
    precision: str,
    calibration: Path,
    export_once: Exporter,
    request: pytest.FixtureRequest,
) -> None:
    """As the command line exports it, for one GPU."""
    if parts in UNLIKE:
        arguments = request.getfixturevalue("families")[parts]
    else:
        fixture = {ZERO_SHOT: "zero_shot", DECODER: "decoder"}.get(parts, "windows")
        arguments = request.getfixturevalue(fixture)
        arguments = arguments[parts] if isinstance(arguments, dict) else arguments
    lower: tuple[str, ...] = ()
    if precision != "fp32":
        lower = ("--calibration", str(calibration), "--parity-target", "sqnr_centred_db=14")
    if precision == "int8":
        lower += ("--set", "sensitivity_images=1", "--set", "float_budget=0")
    recipe = ("--recipe", f"gpu-{precision}", "--max-batch", "2")
    bundle = export_once(*arguments, *recipe, *lower)
    (build,) = builds(bundle.model_path, ["SM89"])
    assert build.errors == ()
    assert build.plan_bytes > 0
