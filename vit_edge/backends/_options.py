"""Options of a backend: declared once, in a frozen dataclass, for all functions that take them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from vit_edge.bundle import Bundle

Given = ParamSpec("Given")
Options = TypeVar("Options")
Result = TypeVar("Result")


@dataclass(frozen=True)
class BuildOptions:
    """What every backend's `find` and `build` take; a backend adds its own.

    Attributes:
        engines_dir: Where engines are; by default the bundle's own engines/, or the user's cache
            where the bundle is read-only.
    """

    engines_dir: Path | None = None


def build_names(declared: type[BuildOptions]) -> frozenset[str]:
    """The options of a backend's own."""
    names = {field.name for field in dataclasses.fields(declared)}
    return frozenset(names - {"engines_dir"})


def takes(
    declared: Callable[Given, Options],
) -> Callable[[Callable[[Bundle, Options], Result]], Callable[Concatenate[Bundle, Given], Result]]:
    """Give a function of a bundle and options the options as arguments.

    `@takes(LoadOptions) def load(bundle, options)` is called as `load(bundle, threads=2)`.

    Args:
        declared: The dataclass.
    """

    def taking(
        function: Callable[[Bundle, Options], Result],
    ) -> Callable[Concatenate[Bundle, Given], Result]:
        @functools.wraps(function)
        def call(bundle: Bundle, *args: Given.args, **kwargs: Given.kwargs) -> Result:
            return function(bundle, declared(*args, **kwargs))

        signature = inspect.signature(function)
        own = inspect.signature(declared).parameters.values()
        untyped: Any = call
        untyped.__signature__ = signature.replace(parameters=[signature.parameters["bundle"], *own])
        typed: Callable[Concatenate[Bundle, Given], Result] = untyped
        return typed

    return taking
