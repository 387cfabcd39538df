"""Recipes: what to make, as data. The TOML files live in the top-level folder export/."""

from __future__ import annotations

import dataclasses
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vit_edge.errors import RecipeError, UsageError
from vit_edge.export.graph import AttentionForm
from vit_edge.parity.limits import LIMITS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OLDEST_OPSET = 18  # of torch.onnx's dynamo exporter
NEWEST_OPSET = 23  # the newest proven here
FUSED_OPSET = 23  # brought the Attention operator
# onnx's own versions table: the IR each opset was released with; older runtimes refuse newer ones
MINIMUM_IR = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 10}


@dataclass(frozen=True)
class Recipe:
    """One way of making a bundle."""

    name: str
    target: Literal["cpu", "gpu"]
    precision: str
    opset: int
    ir_version: int
    attention: AttentionForm
    max_batch: int

    def problems(self) -> list[str]:
        """Everything that cannot be followed; empty if nothing."""
        found = []
        if not OLDEST_OPSET <= self.opset <= NEWEST_OPSET:
            found.append(f"opset must lie in {OLDEST_OPSET}..{NEWEST_OPSET}, not {self.opset}")
        elif self.ir_version < MINIMUM_IR[self.opset]:
            found.append(
                f"opset {self.opset} needs ir_version {MINIMUM_IR[self.opset]} or newer, "
                f"not {self.ir_version}"
            )
        if self.attention == "fused" and self.opset < FUSED_OPSET:
            found.append(
                f'attention = "fused" needs opset {FUSED_OPSET} or newer, not {self.opset}; '
                "use --recipe gpu-fp32, whose attention is decomposed"
            )
        if not 1 <= self.max_batch <= 1024:
            found.append(f"max_batch must lie in 1..1024, not {self.max_batch}")
        if self.precision not in LIMITS:
            found.append(f"precision must be one of {list(LIMITS)}, not {self.precision!r}")
        return found

    def changed(self, *, opset: int | None, max_batch: int | None) -> Recipe:
        """The recipe with what the command line overrides.

        Raises:
            RecipeError: The result cannot be followed.
        """
        changes: dict[str, int] = {}
        if opset is not None:
            newer = max(self.ir_version, MINIMUM_IR.get(opset, 0))
            changes |= {"opset": opset, "ir_version": newer}
        if max_batch is not None:
            changes["max_batch"] = max_batch
        recipe = dataclasses.replace(self, **changes)  # type: ignore[arg-type]
        _refuse(recipe.name, recipe.problems())
        return recipe


def recipe_folder() -> Path:
    """Where the recipes are: in the package once installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "export"


def load_recipe(name_or_file: str) -> Recipe:
    """Read a recipe by the name of one of ours or by its file.

    Raises:
        UsageError: No such recipe.
        RecipeError: Not TOML, or keys missing, unknown, or with values that cannot be followed.
    """
    path = Path(name_or_file)
    if path.suffix != ".toml":
        path = recipe_folder() / f"{name_or_file}.toml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in recipe_folder().glob("*.toml")))
        raise UsageError(f"no recipe {name_or_file!r}; there are: {names}, or give a .toml file")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: not TOML: {error}") from None
    return _recipe_from_table(path, data)


def _recipe_from_table(path: Path, data: dict[str, Any]) -> Recipe:
    hints = {n: h for n, h in typing.get_type_hints(Recipe).items() if n != "name"}
    problems = [f"{key}: unknown key" for key in sorted(data.keys() - hints.keys())]
    for key, hint in hints.items():
        allowed = typing.get_args(hint)
        if key not in data:
            problems.append(f"{key}: missing")
        elif allowed and data[key] not in allowed:
            problems.append(f"{key}: {data[key]!r} is not one of {list(allowed)}")
        elif not allowed and type(data[key]) is not hint:
            problems.append(f"{key}: expected {hint.__name__}, got {data[key]!r}")
    _refuse(str(path), problems)
    recipe = Recipe(name=path.stem, **data)
    _refuse(str(path), recipe.problems())
    return recipe


def _refuse(where: str, problems: list[str]) -> None:
    if problems:
        raise RecipeError(f"{where}: {len(problems)} problem(s):\n  " + "\n  ".join(problems))
