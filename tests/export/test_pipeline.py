"""The export as a user runs it: published whole, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from vit_edge.backends import ort
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.bundle.integrity import ensure_verified
from vit_edge.checkpoints import Request
from vit_edge.errors import IntegrityError, ParityError, RecipeError, UsageError, VitEdgeError
from vit_edge.export import draft, pipeline, plan, source
from vit_edge.export.__main__ import image_size, main
from vit_edge.export.pipeline import export_bundle
from vit_edge.export.plan import ExportOptions
from vit_edge.export.recipe import load_recipe
from vit_edge.parity import __main__ as parity
from vit_edge.variants import variant

requires = ("torch", "onnx", "onnxscript", "onnxruntime")

ARGUMENTS = ["--variant", "testing", "--checkpoint", "seeded:0", "--max-batch", "4"]


def options(out: Path, **changes: Any) -> ExportOptions:
    recipe = load_recipe("cpu-fp32").changed(opset=None, max_batch=4)
    return ExportOptions(recipe, "seeded:0", Request(variant("testing")), out=out, **changes)


def test_the_bundle_holds_what_the_manifest_says(testing_bundle: Bundle) -> None:
    names = {path.name for path in testing_bundle.path.iterdir()}
    assert names == {"manifest.json", *testing_bundle.manifest.files}
    ensure_verified(testing_bundle, full=True)


def test_the_model_is_standard_onnx_with_labels_and_preprocessing(testing_bundle: Bundle) -> None:
    model = onnx.load(testing_bundle.model_path)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 10
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 23)]
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert tuple(json.loads(properties["vit_edge.labels"])) == testing_bundle.labels
    spec = json.loads(properties["vit_edge.preprocessing"])
    assert spec["interpolation"] == testing_bundle.manifest.preprocessing.interpolation


def test_parity_was_proven_at_batch_1_2_3_and_the_limit(testing_bundle: Bundle) -> None:
    parity = json.loads((testing_bundle.path / "parity.json").read_text())
    assert parity["passed"]
    assert {row["batch"] for row in parity["comparisons"]} == {1, 2, 3, 4}
    assert {row["output"] for row in parity["comparisons"]} == {"logits", "features"}
    assert all(0 < row["relative"] < 1e-5 for row in parity["comparisons"])


def test_golden_answers_are_kept_for_the_device(testing_bundle: Bundle) -> None:
    with Golden(testing_bundle.golden_path) as golden:
        assert len(golden) == 16
        assert golden.reference_dtype == "float64"
        assert golden.images([0]).shape == (1, 64, 64, 3)
        assert golden.answers([3, 5])["logits"].shape == (2, 10)
        assert len(golden.probes()) >= 6


@pytest.mark.traced_anew
def test_the_same_export_twice_gives_the_same_files(testing_bundle: Bundle, tmp_path: Path) -> None:
    again = export_bundle(options(tmp_path / "again"))
    for name in ("model.onnx", "golden.npz", "labels.txt"):
        assert again.manifest.files[name] == testing_bundle.manifest.files[name], name


def test_a_model_too_large_for_one_file_is_proven_and_published_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for huge: 2.5 GB of weights exceed what one ONNX file may hold."""
    monkeypatch.setattr(plan, "SINGLE_FILE_LIMIT_BYTES", 1000)
    bundle = export_bundle(options(tmp_path / "b"))
    assert set(bundle.model_files) == {"model.onnx", "model.onnx.data"}
    assert bundle.model_path.stat().st_size < 100_000
    ensure_verified(bundle, full=True)
    engine = ort.build(bundle)
    assert ort.load(bundle).facts["engine"] == engine.name
    assert parity.main([str(bundle.path)]) == 0
    data = bundle.path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-4096] + bytes(4096))
    with pytest.raises(IntegrityError, match=r"model\.onnx\.data"):
        ort.load(bundle)


def test_a_graph_that_computes_something_else_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = draft.finish_graph

    def drop_a_bias(model: Any, *rest: Any) -> None:
        finish(model, *rest)
        bias = model.graph.initializers["blocks.1.mlp.fc2.bias"].const_value
        bias.raw.data.zero_()

    monkeypatch.setattr(draft, "finish_graph", drop_a_bias)
    with pytest.raises(ParityError, match="nothing was published"):
        export_bundle(options(tmp_path / "b"))
    assert not list(tmp_path.iterdir())


def test_a_failed_forced_export_leaves_the_old_bundle(
    testing_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(testing_bundle.path, tmp_path / "b")

    def fail(*_: Any, **__: Any) -> None:
        raise ParityError("planted")

    monkeypatch.setattr(pipeline, "gate", fail)
    with pytest.raises(ParityError, match="planted"):
        export_bundle(options(tmp_path / "b", force=True))
    ensure_verified(Bundle.read(tmp_path / "b"), full=True)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_another_size_moves_the_positions_and_says_so(tmp_path: Path) -> None:
    request = Request(variant("testing"), image_hw=(48, 96))
    bundle = export_bundle(
        ExportOptions(load_recipe("cpu-fp32"), "seeded:0", request, out=tmp_path / "b")
    )
    moved = bundle.manifest.checkpoint.position_interpolation
    assert moved is not None
    assert (moved.from_grid_hw, moved.to_grid_hw) == ((4, 4), (3, 6))
    assert bundle.manifest.input.shape == (None, 3, 48, 96)
    assert bundle.manifest.preprocessing.crop_hw == (48, 96)


def test_a_headless_model_has_features_and_no_logits(tmp_path: Path) -> None:
    row = variant("base-patch16-224-in21k")
    assert not row.has_head
    specs = source.output_specs(("features", "tokens"), row.architecture, "x")
    assert [spec.name for spec in specs] == ["features", "tokens"]
    with pytest.raises(UsageError, match="--outputs features"):
        source.output_specs(("logits",), row.architecture, "x")


@pytest.mark.parametrize("outputs", [(), ("logits", "logits"), ("probabilities",), ("pre_logits",)])
def test_outputs_that_do_not_exist_are_refused(outputs: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="--outputs must name some of"):
        source.output_specs(outputs, variant("testing").architecture, "x")


def test_golden_images_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(rng.integers(0, 255, (50, 70, 3), np.uint8)).save(folder / f"{index}.png")
    bundle = export_bundle(options(tmp_path / "b", golden_images=folder))
    with Golden(bundle.golden_path) as golden:
        assert golden.names == ["0.png", "1.png", "2.png"]


def test_a_broken_golden_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    with pytest.raises(VitEdgeError, match="broken.jpg"):
        export_bundle(options(tmp_path / "b", golden_images=tmp_path))
    assert not (tmp_path / "b").exists()


def test_the_command_line_publishes_and_prints_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ARGUMENTS, "--out", str(tmp_path / "b"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["variant"] == "testing"
    assert result["parity"]["passed"]
    assert main([*ARGUMENTS, "--out", str(tmp_path / "b")]) == 2
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to export"),
        (["--variant", "base-patch16-225"], "Did you mean base-patch16-224"),
        ([*ARGUMENTS, "--recipe", "quantum"], "no recipe"),
        ([*ARGUMENTS, "--outputs", "logits,loss"], "--outputs must name"),
    ],
)
def test_wrong_calls_exit_with_2_and_no_traceback(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "b")]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed


def test_the_parity_gate_exits_with_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ParityError("planted")

    monkeypatch.setattr(pipeline, "gate", fail)
    assert main([*ARGUMENTS, "--out", str(tmp_path / "b")]) == 4


def test_fused_attention_below_opset_23_points_to_the_other_recipe() -> None:
    with pytest.raises(RecipeError, match="gpu-fp32"):
        load_recipe("cpu-fp32").changed(opset=20, max_batch=None)
    assert load_recipe("gpu-fp32").changed(opset=18, max_batch=None).opset == 18


def test_every_problem_of_a_recipe_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('target = "fpga"\nprecision = "fp32"\nopset = "new"\nsurprise = 1\n')
    with pytest.raises(RecipeError, match=r"(?s)surprise: unknown.*fpga.*opset.*ir_version"):
        load_recipe(str(path))


def test_sizes_are_read_as_height_x_width() -> None:
    assert image_size("384") == (384, 384)
    assert image_size("320x448") == (320, 448)
