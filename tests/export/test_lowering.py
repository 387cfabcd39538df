"""Lower precision from the command line: what is published, what is refused, and what is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.quantize.workbench import crops
from vit_edge import Predictor, quantize
from vit_edge.bundle import Bundle
from vit_edge.bundle.integrity import ensure_verified
from vit_edge.errors import RecipeError, UsageError
from vit_edge.export import pipeline
from vit_edge.export.__main__ import main
from vit_edge.export.foreign.conventions import CONVENTIONS
from vit_edge.export.plan import ExportOptions, plan_export
from vit_edge.export.recipe import find_recipe, load_recipe, recipe_names
from vit_edge.parity import __main__ as parity
from vit_edge.quantize import Quantized, Task
from vit_edge.quantize.calibration import CalibrationRequest, calibration_files, load_calibration
from vit_edge.quantize.linears import constant, set_constant

requires = ("torch", "onnx", "onnxscript", "onnxruntime")

ARGUMENTS = ["--variant", "testing", "--checkpoint", "seeded:0", "--max-batch", "4"]
FAST = ["--set", "sensitivity_images=2", "--set", "float_budget=0"]
GOAL = ["--parity-target", "sqnr_centred_db=15"]  # seeded weights hardly decide


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 natural images in two folders."""
    folder = tmp_path_factory.mktemp("images")
    for index, crop in enumerate(crops(24, 5, (64, 64))):
        place = folder / ("class_3" if index % 2 else "elsewhere")
        place.mkdir(exist_ok=True)
        Image.fromarray(crop).save(place / f"{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def int8_bundle(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "int8"
    arguments = [*ARGUMENTS, *FAST, *GOAL, "--precision", "int8", "--calibration", str(images)]
    assert main([*arguments, "--out", str(out)]) == 0
    return Bundle.read(out)


def test_an_int8_bundle_verifies_predicts_and_holds_its_parity(
    int8_bundle: Bundle, photos: list[Path]
) -> None:
    ensure_verified(int8_bundle, full=True)
    assert parity.main([str(int8_bundle.path)]) == 0
    with Predictor(int8_bundle) as predictor:
        assert predictor.facts["precision"] == "int8"
        assert np.isfinite(predictor.predict(photos[0]).logits).all()


def test_the_manifest_tells_how_it_was_made(int8_bundle: Bundle, images: Path) -> None:
    manifest = int8_bundle.manifest
    found = manifest.quantization
    assert manifest.precision == "int8"
    assert manifest.recipe["name"] == "cpu-int8"
    assert found is not None
    assert found["calibration"]["images"] == 24
    assert len(found["calibration"]["sha256"]) == 64
    assert found["settings"]["sensitivity_images"] == 2
    assert sum(row["share"] for row in found["linears"]) == pytest.approx(1)
    assert found["table"][0][0] == "linear"
    assert "onnxruntime" in found["gate"]


def test_the_gate_writes_every_statistic(int8_bundle: Bundle) -> None:
    rows = [row for row in int8_bundle.parity()["comparisons"] if row["output"] == "logits"]
    names = {
        *("top1_agreement", "top5_agreement", "cosine_min", "kl_median", "sqnr_centred_db"),
        *("worst_image", "flips", "margin_weighted_flips", "batch_relative"),
    }
    assert {row["batch"] for row in rows} == {1, 2, 3, 4}
    assert all(names <= row.keys() for row in rows)


def test_labelled_folders_give_accuracy_too(images: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(images / "class_3", half / "class_3")
    shutil.copytree(images / "elsewhere", tmp_path / "rest")
    arguments = [
        *ARGUMENTS,
        *FAST,
        *GOAL,
        "--precision",
        "int8",
        "--calibration",
        str(tmp_path / "rest"),
    ]
    assert main([*arguments, "--golden-images", str(half), "--out", str(tmp_path / "b")]) == 0
    rows = Bundle.read(tmp_path / "b").parity()["comparisons"]
    row = max((row for row in rows if row["output"] == "logits"), key=lambda row: row["images"])
    assert 0 <= row["accuracy"] <= 1
    assert row["accuracy_drop"] == pytest.approx(row["reference_accuracy"] - row["accuracy"])


def test_a_graph_of_lower_precision_that_lost_the_answers_is_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = quantize.module("int8").quantize

    def faulty(task: Task, settings: Any) -> Quantized:
        made: Quantized = honest(task, settings)
        for name, value in made.model.graph.initializers.items():
            if name == "blocks.1.mlp.fc1.weight_scale":
                set_constant(value, np.roll(constant(value), 1) * 1.5)
        return made

    monkeypatch.setattr(quantize.module("int8"), "quantize", faulty)
    arguments = [*ARGUMENTS, *FAST, *GOAL, "--precision", "int8", "--calibration", str(images)]
    assert main([*arguments, "--out", str(tmp_path / "b")]) == 4
    assert not (tmp_path / "b").exists()


def test_a_target_that_cannot_be_reached_exits_with_4(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*ARGUMENTS, *FAST, *GOAL, "--precision", "int8", "--calibration", str(images)]
    arguments += ["--parity-target", "sqnr_centred_db=150", "--out", str(tmp_path / "b")]
    assert main(arguments) == 4
    assert "float_budget" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "int8"], "--calibration DIR"),
        (["--precision", "int7"], "no precision 'int7'"),
        (["--set", "shift=false"], "--set is for quantizers"),
        (["--precision", "int8", "--set", "shft=false"], "shft"),
        (["--precision", "int8", "--calibration", "nowhere"], "nowhere"),
        (["--calibration", "nowhere"], "nothing of fp32 is chosen on images; leave it out"),
        (["--merge-tokens", "2", "--calibration", "nowhere"], "nothing of fp32 is chosen"),
        (["--precision", "int8-dynamic", "--calibration-seed", "1"], "give that as well"),
        (["--precision", "int8", "--parity-target", "top1=1"], "top1"),
        (["--onnx", "x.onnx"], "cannot be had with --onnx|needs --preprocess"),
        (["--preprocess", "google-vit"], "is for --onnx"),
    ],
)
def test_wrong_usage_is_said_before_any_work(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([*ARGUMENTS, *arguments, "--out", str(tmp_path / "b")])
    assert code in (2, 3)
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert any(word in errors for word in words.split("|")), errors


def test_a_schedule_is_chosen_on_images_in_fp32_as_well() -> None:
    recipe = find_recipe(None, None).changed(merge_tokens="auto")
    plan = plan_export(ExportOptions(recipe, calibration=CalibrationRequest("random", 8)))
    assert plan.calibration is not None


def test_images_to_be_judged_by_are_not_calibrated_on(images: Path, tmp_path: Path) -> None:
    recipe = find_recipe(None, "int8")
    request = CalibrationRequest(str(images))
    options = ExportOptions(recipe, golden_images=images, calibration=request)
    with pytest.raises(UsageError, match="24 of 24 calibration images"):
        plan_export(options)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(next(images.rglob("*.png")), other / "renamed.png")
    with pytest.raises(UsageError, match="must not be judged"):
        plan_export(
            ExportOptions(recipe, golden_images=images, calibration=CalibrationRequest(str(other)))
        )


def test_calibration_images_follow_from_the_seed(
    images: Path, testing_bundle: Bundle, tmp_path: Path
) -> None:
    spec = testing_bundle.manifest.preprocessing
    one, again, other = (
        load_calibration(
            calibration_files(CalibrationRequest(str(images), 8, seed)), spec, tmp_path
        )
        for seed in (1, 1, 2)
    )
    assert one.names == again.names
    assert one.as_dict() == again.as_dict()
    assert one.names != other.names
    assert one.as_dict()["sha256"] != other.as_dict()["sha256"]
    np.testing.assert_array_equal(one.resized, again.resized)
    assert len(calibration_files(CalibrationRequest(str(images), 1000))) == 24


def test_noise_has_to_be_asked_for_by_name(testing_bundle: Bundle, tmp_path: Path) -> None:
    spec = testing_bundle.manifest.preprocessing
    noise = load_calibration(calibration_files(CalibrationRequest("random", 3)), spec, tmp_path)
    assert len(noise) == 3
    assert noise.as_dict()["source"] == "random noise"
    with pytest.raises(UsageError, match="at least 1"):
        calibration_files(CalibrationRequest("random", 0))


def test_a_precision_finds_its_recipe_for_the_target() -> None:
    assert find_recipe(None, None).name == "cpu-fp32"
    assert find_recipe(None, "int8").name == "cpu-int8"
    assert find_recipe(None, "fp16").name == "gpu-fp16"
    assert find_recipe("gpu-fp32", "int8").name == "gpu-int8"
    with pytest.raises(UsageError, match="makes fp32, not fp8"):
        find_recipe("cpu-fp32", "fp8")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_its_command_cost_and_expectation(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.also or name == f"{recipe.target}-{recipe.precision}"
    folder = Path(pipeline.__file__).parents[2] / "export"
    text = (folder / f"{name}.toml").read_text()
    assert all(f"# {word} " in text for word in ("command", "cost", "expected"))


def test_a_quantization_table_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    folder = Path(pipeline.__file__).parents[2] / "export"
    text = (folder / "cpu-int8.toml").read_text()
    path.write_text(text.replace("shift = true", 'shift = "on"\nlevel = 3'))
    with pytest.raises(RecipeError, match=r"(?s)level.*shift"):
        load_recipe(str(path))


def test_every_precision_has_a_recipe_and_a_limit() -> None:
    from vit_edge.parity.limits import LIMITS

    made = {load_recipe(name).precision for name in recipe_names()}
    assert made == set(quantize.names()) == set(LIMITS)


@pytest.mark.parametrize("precision", quantize.names()[1:])
def test_every_quantizer_exports_what_the_contract_says(precision: str) -> None:
    module = quantize.module(precision)
    assert module.CALIBRATION in ("required", "optional", "unused")
    assert set(module.LEAST_OPSET) == {"cpu", "gpu"}
    assert module.Settings().problems() == []
    assert callable(module.quantize)


def test_the_settings_of_a_quantizer_can_be_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--precision", "int8", "--set", "help"]) == 0
    assert "float_budget" in capsys.readouterr().out


def test_the_help_names_every_convention(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.replace("-\n", "-").split()).replace("- ", "-")
    assert all(name in text for name in CONVENTIONS)


def test_the_result_as_json_holds_the_quantization(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *ARGUMENTS,
        *FAST,
        *GOAL,
        "--precision",
        "int8",
        "--calibration",
        str(images),
        "--json",
    ]
    assert main([*arguments, "--out", str(tmp_path / "b")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["precision"] == "int8"
    assert result["quantization"]["linears"]
