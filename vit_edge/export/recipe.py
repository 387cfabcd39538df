"""Recipes: what to make, as data. The TOML files live in the top-level folder export/."""

from __future__ import annotations

import dataclasses
import logging
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import vit_edge.quantize as quantize
from vit_edge.build.options import option_problems
from vit_edge.bundle.manifest import Manifest, Scores
from vit_edge.errors import RecipeError, UsageError
from vit_edge.export.schedule import DEFAULT_TARGET, Merging, parse_merging
from vit_edge.export.trace import AttentionForm
from vit_edge.graphs.versions import FUSED_OPSET, MINIMUM_IR, NEWEST_OPSET, OLDEST_EXPORTED_OPSET
from vit_edge.parity.targets import LOGITS, Target, parse_target

if TYPE_CHECKING:
    from vit_edge.export.source import SourceFacts

_LOG = logging.getLogger(__name__)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Recipe:
    """One way of making a bundle, and of building it on the device it is for.

    A recipe for a device makes one precision and names others in `also`; their quantization is
    that of the recipe TARGET-PRECISION.
    """

    name: str
    target: Literal["cpu", "gpu"]
    precision: str
    opset: int
    ir_version: int
    attention: AttentionForm
    max_batch: int
    input: Literal["float32", "uint8"] = "float32"  # pixels, or images as they were resized
    parity_target: str = ""  # such as top1_agreement=0.99; empty: the precision's limit alone
    merge_tokens: str = ""  # how many each block merges: "8", "0,0,8,8", "auto"; empty: none
    also: list[str] = dataclasses.field(default_factory=list)  # precisions worth trying as well
    quantization: dict[str, Any] = dataclasses.field(default_factory=dict)  # see the quantizer
    build: dict[str, Any] = dataclasses.field(default_factory=dict)  # backend -> options

    @property
    def target_bounds(self) -> Target | None:
        """The parity target, read; there is always one where a schedule is to be chosen."""
        chosen = self.merging is not None and self.merging.counts is None
        text = self.parity_target or (DEFAULT_TARGET if chosen else "")
        return parse_target(text) if text else None

    @property
    def merging(self) -> Merging | None:
        """How tokens are merged, read."""
        return parse_merging(self.merge_tokens) if self.merge_tokens else None

    def problems(self) -> list[str]:
        """List everything that cannot be followed; empty if nothing."""
        problems = []
        if not OLDEST_EXPORTED_OPSET <= self.opset <= NEWEST_OPSET:
            problems.append(
                f"opset must lie in {OLDEST_EXPORTED_OPSET}..{NEWEST_OPSET}, not {self.opset}"
            )
        elif self.ir_version < MINIMUM_IR[self.opset]:
            problems.append(
                f"opset {self.opset} needs ir_version {MINIMUM_IR[self.opset]} or newer, "
                f"not {self.ir_version}"
            )
        if self.attention == "fused" and self.opset < FUSED_OPSET:
            decomposed = f"gpu-{self.precision}"
            problems.append(
                f'attention = "fused" needs opset {FUSED_OPSET} or newer, not {self.opset}'
                + f"; use --recipe {decomposed}, whose attention is decomposed"
                * (decomposed in recipe_names())
            )
        if not 1 <= self.max_batch <= 1024:
            problems.append(f"max_batch must lie in 1..1024, not {self.max_batch}")
        if self.precision not in quantize.names():
            known = quantize.names()
            problems.append(f"precision must be one of {known}, not {self.precision!r}")
        elif self.precision == quantize.FLOAT:
            if self.quantization:
                problems.append("fp32 is not quantized: it takes no [quantization]")
            if self.parity_target and not self.merge_tokens:
                problems.append("fp32 takes no target: nothing changes that could miss it")
            problems += self._target_problems()
        else:
            problems += self._quantization_problems()
        return problems + self._also_problems() + self._build_problems()

    def _quantization_problems(self) -> list[str]:
        settings = _problem(
            lambda: quantize.settings_from_table(self.precision, self.quantization, "quantization")
        )
        return settings + self._target_problems()

    def _target_problems(self) -> list[str]:
        return _problem(lambda: self.target_bounds) + _problem(lambda: self.merging)

    def _also_problems(self) -> list[str]:
        names = recipe_names()
        return [
            f"also: {precision!r} needs a recipe {self.target}-{precision}; there are: "
            + ", ".join(names)
            for precision in self.also
            if f"{self.target}-{precision}" not in names
        ]

    def _build_problems(self) -> list[str]:
        problems = []
        for backend, options in self.build.items():
            if not isinstance(options, dict):
                problems.append(f"build.{backend}: expected a table, got {options!r}")
                continue
            wrong = option_problems(backend, options, self.max_batch)
            remedy = f"a copy of the recipe may say otherwise in [build.{backend}]"
            problems += [f"build.{backend}: {problem}; {remedy}" for problem in wrong]
        return problems

    def in_precision(self, other: Recipe) -> Recipe:
        """This recipe with another's precision and quantization: for the same device."""
        rest = [precision for precision in self.also if precision != other.precision]
        return dataclasses.replace(
            self,
            precision=other.precision,
            quantization=other.quantization,
            parity_target=other.parity_target,
            also=[self.precision, *rest],
        )

    def changed(
        self,
        *,
        opset: int | None = None,
        max_batch: int | None = None,
        input: Literal["float32", "uint8"] | None = None,
        parity_target: str | None = None,
        merge_tokens: str | None = None,
        quantization: Sequence[str] = (),
    ) -> Recipe:
        """The recipe with what the command line overrides.

        Args:
            opset: Another operator set.
            max_batch: Another limit of the batch.
            input: What the model takes.
            parity_target: Another target.
            merge_tokens: How many tokens each block merges.
            quantization: Settings of the quantizer, as NAME=VALUE.

        Raises:
            RecipeError: The result cannot be followed.
        """
        changes: dict[str, Any] = {}
        if opset is not None:
            newer = max(self.ir_version, MINIMUM_IR.get(opset, 0))
            changes |= {"opset": opset, "ir_version": newer}
        if max_batch is not None:
            changes["max_batch"] = max_batch
        if input is not None:
            changes["input"] = input
        if parity_target is not None:
            changes["parity_target"] = parity_target
        if merge_tokens is not None:
            changes["merge_tokens"] = merge_tokens
        if quantization:
            if self.precision == quantize.FLOAT:
                raise RecipeError("--set is for quantizers, and fp32 has none; give --precision")
            chosen = quantize.settings_from_text(self.precision, quantization)
            changes["quantization"] = {**self.quantization, **chosen}
        recipe = dataclasses.replace(self, **changes)
        _refuse(recipe.name, recipe.problems())
        return recipe


def recipe_folder() -> Path:
    """Return the folder of our recipes: in the package once installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "export"


def recipe_names() -> list[str]:
    """The recipes that come with the package, sorted."""
    return sorted(file.stem for file in recipe_folder().glob("*.toml"))


def find_recipe(name_or_file: str | None, precision: str | None) -> Recipe:
    """The recipe that the command line means.

    Args:
        name_or_file: As for `load_recipe`; None takes the first of cpu-PRECISION, gpu-PRECISION.
        precision: None takes the recipe's, or fp32. A recipe for a device is followed in each
            precision that it names. Instead of a recipe of ours for another precision, the one
            for the same target is taken: gpu-fp32 and int8 make gpu-int8.

    Raises:
        UsageError: There is none, or the recipe is for other precisions.
        RecipeError: It cannot be followed.
    """
    names = recipe_names()
    if precision is not None and precision not in quantize.names():
        known = ", ".join(quantize.names())
        raise UsageError(f"no precision {precision!r}; there are: {known}")
    if name_or_file is None:
        wanted = precision or quantize.FLOAT
        matching = [name for name in (f"cpu-{wanted}", f"gpu-{wanted}") if name in names]
        return load_recipe(matching[0] if matching else f"cpu-{wanted}")
    recipe = load_recipe(name_or_file)
    if precision is None or recipe.precision == precision:
        return recipe
    sibling = f"{recipe.target}-{precision}"
    if precision in recipe.also:
        return recipe.in_precision(load_recipe(sibling))
    general = recipe.name in names and recipe.name == f"{recipe.target}-{recipe.precision}"
    if general and sibling in names:
        return load_recipe(sibling)
    precisions = " or ".join((recipe.precision, *recipe.also))
    raise UsageError(
        f"recipe {name_or_file} makes {precisions}, not {precision}; recipes of ours are "
        f"{', '.join(names)}; in a file of your own, change its precision, or add it to also"
    )


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
        names = ", ".join(recipe_names())
        raise UsageError(f"no recipe {name_or_file!r}; there are: {names}, or give a .toml file")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: not TOML: {error}") from None
    return _recipe_from_table(path, data)


def _recipe_from_table(path: Path, data: dict[str, Any]) -> Recipe:
    hints = {n: h for n, h in typing.get_type_hints(Recipe).items() if n != "name"}
    problems = [f"{key}: unknown key" for key in sorted(data.keys() - hints.keys())]
    optional = {"input", "parity_target", "merge_tokens", "also", "quantization", "build"}
    for key, hint in hints.items():
        allowed = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        hint = typing.get_origin(hint) or hint
        if key not in data:
            problems += [] if key in optional else [f"{key}: missing"]
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


def _problem(check: Callable[[], object]) -> list[str]:
    """What a check that raises finds."""
    try:
        check()
    except (RecipeError, UsageError) as error:
        return [str(error)]
    return []


def target_for(recipe: Recipe, model: Manifest | SourceFacts) -> Target | None:
    """Return the recipe's target, without bounds that mean nothing of the model's outputs."""
    target, scores = recipe.target_bounds, judged_scores(model)
    if target is None:
        return None
    kept = target.for_scores(scores)
    dropped = [name for name, _ in target.bounds if name not in kept.as_dict()]
    if dropped:
        what = "values" if scores == "none" else "each a yes or no"
        _LOG.warning(
            "the target %s is for one class of several; this model's outputs are %s",
            ", ".join(dropped),
            what,
        )
    return kept if kept.bounds else None


def judged_scores(model: Manifest | SourceFacts) -> Scores:
    """How answers are judged: as values where there are no logits."""
    return model.scores if LOGITS in {output.name for output in model.outputs} else "none"
