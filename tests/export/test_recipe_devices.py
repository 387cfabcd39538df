"""Recipes for devices: followed in each precision they name, and built there as they say."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_edge import backends, quantize
from vit_edge.build import __main__ as build
from vit_edge.build.options import option_problems, options_from_text
from vit_edge.bundle import Bundle
from vit_edge.errors import RecipeError, UsageError
from vit_edge.export import __main__ as export
from vit_edge.export import pipeline
from vit_edge.export.recipe import Recipe, find_recipe, load_recipe, recipe_folder, recipe_names

requires = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime")

DEVICES = [name for name in recipe_names() if load_recipe(name).also]
VARIANTS = [(name, other) for name in DEVICES for other in load_recipe(name).also]
OF_THE_DEVICE = ("name", "target", "opset", "ir_version", "attention", "max_batch", "build")


def settings(recipe: Recipe) -> Any:
    return quantize.settings_from_table(recipe.precision, recipe.quantization, recipe.name)


def commands(name: str) -> list[list[str]]:
    """What the comment on top of a recipe tells to type, as words."""
    lines = (recipe_folder() / f"{name}.toml").read_text().splitlines()
    text = "\n".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    found = re.findall(r"vit-edge [a-z]+ .*", text.replace("\\\n", " "))
    return [shlex.split(command) for command in found]


def test_the_devices_are_there() -> None:
    assert DEVICES == ["datacenter", "orin-nano", "orin-nx-agx", "rtx-desktop", "thor"]


@pytest.mark.parametrize(("name", "precision"), VARIANTS)
def test_another_precision_keeps_the_device_and_takes_its_quantization(
    name: str, precision: str
) -> None:
    device, found = load_recipe(name), find_recipe(name, precision)
    general = load_recipe(f"gpu-{precision}")
    assert found.precision == precision
    assert settings(found) == settings(general)
    assert found.parity_target == general.parity_target
    for field in OF_THE_DEVICE:
        assert getattr(found, field) == getattr(device, field)
    assert {found.precision, *found.also} == {device.precision, *device.also}


@pytest.mark.parametrize("name", DEVICES)
def test_a_devices_own_precision_is_quantized_as_elsewhere(name: str) -> None:
    recipe = load_recipe(name)
    assert find_recipe(name, recipe.precision) == recipe == find_recipe(name, None)
    assert settings(recipe) == settings(load_recipe(f"gpu-{recipe.precision}"))


@pytest.mark.parametrize("precision", ["fp8", "int4", "fp32"])
def test_a_precision_that_the_device_lacks_is_refused_with_those_it_has(precision: str) -> None:
    with pytest.raises(UsageError, match=f"makes fp16 or int8 or bf16, not {precision}"):
        find_recipe("orin-nano", precision)


def test_a_device_of_the_users_own_takes_quantization_from_ours(tmp_path: Path) -> None:
    text = (recipe_folder() / "orin-nano.toml").read_text()
    mine = tmp_path / "mine.toml"
    mine.write_text(text.replace("max_batch = 8", "max_batch = 3"))
    found = find_recipe(str(mine), "int8")
    assert (found.name, found.max_batch) == ("mine", 3)
    assert found.quantization == load_recipe("gpu-int8").quantization


@pytest.mark.parametrize("name", DEVICES)
def test_the_commands_on_top_are_taken_by_the_command_lines(name: str) -> None:
    recipe = load_recipe(name)
    parsed: dict[str, list[argparse.Namespace]] = {"export": [], "build": []}
    parsers = {"export": export.parser(), "build": build.parser()}
    for _, verb, *words in commands(name):
        parsed[verb].append(parsers[verb].parse_args(words))
    (exported,) = parsed["export"]
    assert exported.recipe == name
    assert any(call.tune and call.more for call in parsed["build"])
    for call in parsed["build"]:
        for path in (call.bundle, *call.more):
            assert Path(path).name.rpartition("-")[2] in (recipe.precision, *recipe.also)
        options = options_from_text("trt", call.set)
        assert option_problems("trt", options, recipe.max_batch) == []


@given(st.integers(1, 200))
def test_a_largest_batch_below_the_profiles_is_refused_before_the_export(max_batch: int) -> None:
    recipe = load_recipe("datacenter")
    if max_batch >= 64:
        assert recipe.changed(max_batch=max_batch).max_batch == max_batch
        return
    with pytest.raises(RecipeError, match=rf"build.trt: profiles .* <= {max_batch}, .*a copy of"):
        recipe.changed(max_batch=max_batch)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("[build.tensorflow]", r"build.tensorflow: no such backend; there are: eager, "),
        ("[build.trt]\nspeed = 9", r"speed: no build option of this backend; there are: .*tf32"),
        ("[build.trt]\ntf32 = 1", "tf32: expected true or false, got 1"),
        ("[build.trt]\nworkspace_mb = true", "workspace_mb: expected a whole number, got True"),
        ("[build.trt]\nworkspace_mb = 1.5", "workspace_mb: expected a whole number, got 1.5"),
        ("[build.trt]\nworkspace_mb = 0", "workspace_mb"),
        ("[build.trt]\nlibrary = 'cudnn'", "library: expected tensorrt or tensorrt_rtx"),
        ("[build.trt]\nprofiles = [1]", "profiles: expected text"),
        ("[build.trt]\nprofiles = '2,2,2'", "must begin at batch size 1"),
        ("[build.ort]\naccuracy_level = 3", "accuracy_level: expected 0 or 4, got 3"),
        ("[build.eager]\nlevel = 1", "there are: none"),
        ("[build]\ntrt = 3", "build.trt: expected a table, got 3"),
    ],
)
def test_a_wrong_build_table_is_refused_when_it_is_read(
    tmp_path: Path, table: str, problem: str
) -> None:
    general = (recipe_folder() / "gpu-fp32.toml").read_text()
    (tmp_path / "r.toml").write_text(f"{general}\n{table}\n")
    with pytest.raises(RecipeError, match=problem):
        load_recipe(str(tmp_path / "r.toml"))


def test_right_build_tables_are_read(tmp_path: Path) -> None:
    general = (recipe_folder() / "gpu-fp32.toml").read_text()
    tables = "[build.trt]\nlibrary = 'tensorrt'\ntf32 = true\n[build.ort]\naccuracy_level = 4\n"
    (tmp_path / "r.toml").write_text(general + tables)
    assert load_recipe(str(tmp_path / "r.toml")).build == {
        "trt": {"library": "tensorrt", "tf32": True},
        "ort": {"accuracy_level": 4},
    }


def test_a_precision_without_a_recipe_of_ours_is_no_also(tmp_path: Path) -> None:
    general = (recipe_folder() / "gpu-fp32.toml").read_text()
    (tmp_path / "r.toml").write_text(f'also = ["int4", 3]\n{general}')
    with pytest.raises(RecipeError, match=r"(?s)'int4' needs a recipe gpu-int4.*3 needs a recipe"):
        load_recipe(str(tmp_path / "r.toml"))


def test_the_bundle_carries_how_it_is_built(bundle: Bundle) -> None:
    bundle.manifest.recipe.update(dataclasses.asdict(load_recipe("orin-nano")))
    assert backends.recipe_options(bundle, "trt") == {"workspace_mb": 512}
    assert backends.recipe_options(bundle, "ort") == {}


def test_a_bundle_from_before_these_tables_is_built_by_default(bundle: Bundle) -> None:
    for name in ("also", "build"):
        del bundle.manifest.recipe[name]
    assert backends.recipe_options(bundle, "trt") == {}


def test_a_search_is_the_same_for_every_device(tmp_path: Path) -> None:
    draft: Any = SimpleNamespace(folder=tmp_path, manifest=SimpleNamespace(producer={}))
    general = load_recipe("gpu-int8")
    device = find_recipe("thor", "int8")
    assert device.max_batch == general.max_batch
    assert device.build
    assert pipeline._journal(draft, device, None) == pipeline._journal(draft, general, None)
    further = general.changed(parity_target="sqnr_db=1", quantization=("float_budget=9",))
    assert pipeline._journal(draft, further, None) == pipeline._journal(draft, general, None)
    other = dataclasses.replace(general, opset=19)
    assert pipeline._journal(draft, other, None) != pipeline._journal(draft, general, None)
