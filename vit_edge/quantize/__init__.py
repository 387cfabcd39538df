"""Quantizers: float32 ONNX in, ONNX of a lower precision out. One module is one precision.

A module of precisions/ exports

    Settings                        a frozen dataclass: what can be chosen, with its defaults
    CALIBRATION                     "required", "optional" or "unused": whether it looks at images
    LEAST_OPSET                     target -> the oldest operator set that its graph needs
    quantize(task, settings)        -> Quantized

The module's file name is its name on the command line, in recipes, manifests and reports, with a
hyphen for an underscore: int8_dynamic.py is `--precision int8-dynamic`. A quantizer keeps the
graph's input and outputs, their names and shapes, the dynamic batch and the metadata. It refuses a
graph that it does not understand, and names the node.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import onnx_ir

from vit_edge import plugins
from vit_edge.bundle.manifest import Scores
from vit_edge.callables import make_callable
from vit_edge.errors import RecipeError
from vit_edge.parity.targets import Target
from vit_edge.quantize.calibration import Calibration

if TYPE_CHECKING:
    from vit_edge.export.lowering import quantize as quantize

make_callable(__name__, "vit_edge.export.lowering")  # which stands above this room

FLOAT = "fp32"  # the precision that no quantizer makes
PRECISIONS = f"{__name__}.precisions"  # the package whose modules they are

CalibrationUse = Literal["required", "optional", "unused"]


class Bar(Protocol):
    """The part of a progress bar that is used."""

    def update(self, n: int) -> object:
        """Say that n more are done."""
        ...


class Progress(Protocol):
    """Shows that something long goes on."""

    def __call__(self, what: str, total: int, unit: str = "image") -> AbstractContextManager[Bar]:
        """Open a bar."""
        ...


@dataclass(frozen=True)
class Task:
    """The input of a quantizer."""

    model: onnx_ir.Model  # float32; its own to change
    target: Literal["cpu", "gpu"]  # the recipe's: which runtime's rules to keep
    calibration: Calibration | None
    parity_target: Target | None  # what the search stops at; judged on the calibration images
    scratch: Path  # a folder for files of its own, removed afterwards
    journal: Path | None  # where to keep what a search has found, to go on with it after a stop
    progress: Progress
    scores: Scores = "softmax"  # what is made of the logits; none also where there are no logits

    @property
    def images(self) -> Calibration:
        """The calibration images, where a quantizer cannot do without."""
        assert self.calibration is not None
        return self.calibration

    def record(self, method: str, settings: Any) -> dict[str, Any]:
        """Begin the record of a quantizer, for the manifest."""
        return {
            "method": method,
            "settings": dataclasses.asdict(settings),
            "calibration": None if self.calibration is None else self.calibration.as_dict(),
        }


@dataclass(frozen=True)
class Quantized:
    """The result of a quantizer."""

    model: onnx_ir.Model
    record: Mapping[str, Any]  # what was chosen and found, ready for JSON: into the manifest
    table: tuple[tuple[str, ...], ...] = field(default=())  # to print, the first row its heading
    # Where ONNX Runtime's CPU provider cannot run the graph: one that computes the same, and how.
    simulation: onnx_ir.Model | None = None
    simulated: str | None = None


class QuantizerModule(Protocol):
    """The members of a module of this folder, typed for its callers."""

    Settings: type[Any]
    CALIBRATION: CalibrationUse
    LEAST_OPSET: Mapping[str, int]
    quantize: Callable[[Task, Any], Quantized]


def names() -> list[str]:
    """Every precision that can be exported, fp32 first."""
    return [FLOAT, *(name.replace("_", "-") for name in plugins.names(PRECISIONS))]


def module(precision: str) -> QuantizerModule:
    """Import the quantizer of a precision other than fp32.

    Raises:
        UsageError: There is none.
    """
    quantizer: ModuleType = plugins.load(PRECISIONS, precision.replace("-", "_"))
    return cast(QuantizerModule, quantizer)


def settings_from_table(precision: str, table: Mapping[str, Any], where: str) -> Any:
    """Read a quantizer's settings strictly.

    Args:
        precision: Of the quantizer.
        table: Setting -> value, as in a recipe's [quantization]; what is missing gets its default.
        where: The file to name in errors.

    Returns:
        An instance of the quantizer's Settings.

    Raises:
        RecipeError: Unknown settings, values of the wrong type or out of range; all are listed.
    """
    kind = module(precision).Settings
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    problems = [
        f"{key}: {precision} has no such setting; it has {', '.join(names)}"
        for key in table
        if key not in names
    ]
    problems += [
        f"{key}: {problem}"
        for key, value in table.items()
        if key in names and (problem := _type_problem(hints[key], value))
    ]
    if not problems:
        settings = kind(**{key: _value(hints[key], value) for key, value in table.items()})
        problems = settings.problems()
        if not problems:
            return settings
    raise RecipeError(f"{where}: {len(problems)} problem(s):\n  " + "\n  ".join(problems))


def describe_settings(precision: str) -> list[tuple[str, str, str]]:
    """Name, default and allowed values of every setting, as text."""
    kind = module(precision).Settings
    hints = typing.get_type_hints(kind)
    return [
        (f.name, _written(f.default), _allowed(hints[f.name])) for f in dataclasses.fields(kind)
    ]


def _written(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return ",".join(default) or "none" if isinstance(default, tuple) else str(default)


def _allowed(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return ", ".join(str(value) for value in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return "names, separated by commas"
    return {bool: "true, false", int: "a whole number", float: "a number"}[hint]


def _type_problem(hint: Any, value: Any) -> str | None:
    """Settings are bool, int, float, a Literal of strings, or a tuple of strings."""
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        return None if value in allowed else f"{value!r} is not one of {list(allowed)}"
    if typing.get_origin(hint) is tuple:
        texts = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        return None if texts else f"expected a list of names, got {value!r}"
    numeric = hint is float and type(value) is int
    return None if type(value) is hint or numeric else f"expected {hint.__name__}, got {value!r}"


def _value(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        return tuple(value)
    return float(value) if hint is float else value


def settings_from_text(precision: str, assignments: Iterable[str]) -> dict[str, Any]:
    """Read `--set name=value` of the command line into a table for `settings_from_table`.

    Raises:
        RecipeError: Not of that form, an unknown name, or a value that cannot be read.
    """
    kind = module(precision).Settings
    hints = typing.get_type_hints(kind)
    table: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        hint = hints.get(name)
        if not equals or hint is None:
            names = ", ".join(f.name for f in dataclasses.fields(kind))
            raise RecipeError(f"--set {text}: write NAME=VALUE, NAME one of {names}")
        table[name] = _parse(hint, value, text)
    return table


def _parse(hint: Any, value: str, text: str) -> Any:
    if typing.get_origin(hint) is tuple:
        return [item for item in value.split(",") if item]
    if hint is bool:
        if value not in ("true", "false"):
            raise RecipeError(f"--set {text}: write true or false")
        return value == "true"
    if hint in (int, float):
        try:
            return hint(value)
        except ValueError:
            raise RecipeError(f"--set {text}: {value!r} is no {hint.__name__}") from None
    return value
