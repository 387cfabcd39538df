"""Options of a backend's build, as typed (`--set profiles=1,8,32`) or as a recipe has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from vit_edge import backends, plugins
from vit_edge.backends import Option
from vit_edge.errors import UsageError

_KIND_NAMES: dict[type, str] = {bool: "true or false", int: "a whole number", str: "text"}


def options_from_text(name: str, settings: Sequence[str]) -> dict[str, Option]:
    """Read options of a backend's `build`, each as NAME=VALUE.

    Raises:
        UsageError: No such option, or no such value.
    """
    hints = _build_hints(name)
    options: dict[str, Option] = {}
    for setting in settings:
        option, separator, text = setting.partition("=")
        if option not in hints or not separator:
            known = ", ".join(hints) or "none"
            raise UsageError(
                f"--set {setting}: expected NAME=VALUE with an option of backend {name}'s build: "
                f"{known}"
            )
        options[option] = _value(text, hints[option], setting)
    return options


def option_problems(name: str, options: Mapping[str, Any], max_batch: int) -> list[str]:
    """List the problems of a backend's `build` options that a recipe gives; empty if none.

    Args:
        name: A backend's.
        options: Option -> value.
        max_batch: The largest batch of the bundles they are for.
    """
    if name not in backends.runtimes():
        return [f"no such backend; there are: {', '.join(backends.runtimes())}"]
    hints = _build_hints(name)
    problems = [
        f"{option}: no build option of this backend; there are: {', '.join(hints) or 'none'}"
        for option in options
        if option not in hints
    ]
    problems += [
        f"{option}: expected {_described(hints[option])}, got {value!r}"
        for option, value in options.items()
        if option in hints and not _fits(value, hints[option])
    ]
    check = getattr(_module(name), "check_build_options", None)
    if check is not None and not problems:
        try:
            check(options, max_batch)
        except UsageError as error:
            problems += str(error).splitlines()
    return problems


def option_rows(name: str) -> list[tuple[str, str, str]]:
    """The options of a backend's `build`, as a table with its heading: name, default, values."""
    defaults = {f.name: str(f.default) for f in dataclasses.fields(_module(name).BuildOptions)}
    hints = _build_hints(name)
    rows = [(option, defaults[option], _described(hint)) for option, hint in hints.items()]
    return [("option", "default", "values"), *rows]


def _build_hints(name: str) -> dict[str, Any]:
    module = _module(name)
    hints = get_type_hints(module.BuildOptions, include_extras=True)
    return {option: hints[option] for option in hints if option in module.BUILD_OPTIONS}


def _kinds(hint: Any) -> list[Any]:
    """Return what a hint allows: types, and the values of a Literal."""
    if get_origin(hint) is Annotated:
        return _kinds(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [kind for part in get_args(hint) for kind in _kinds(part)] or [hint]


def _value(text: str, hint: Any, setting: str) -> Option:
    for kind in _kinds(hint):
        if kind is bool and text in ("true", "false"):
            return text == "true"
        if kind is int and text.lstrip("-").isdecimal():
            return int(text)
        if kind is str:
            return text
        if not isinstance(kind, type) and str(kind) == text:
            value: Option = kind
            return value
    raise UsageError(f"--set {setting}: expected {_described(hint)}")


def _fits(value: Any, hint: Any) -> bool:
    """True if a value, read from TOML, is what a hint allows; true is no whole number."""
    kinds = _kinds(hint)
    return type(value) in kinds or (type(value) in (int, str) and value in kinds)


def _described(hint: Any) -> str:
    kinds = [kind for kind in _kinds(hint) if kind is not type(None)]
    text = " or ".join(_KIND_NAMES[kind] if isinstance(kind, type) else str(kind) for kind in kinds)
    return f"{text} ({get_args(hint)[1]})" if get_origin(hint) is Annotated else text


def _module(name: str) -> Any:
    """A backend's module, whether its runtime is here or not."""
    if name not in backends.runtimes():
        raise UsageError(f"no backend {name!r}; there are: {', '.join(backends.runtimes())}")
    return plugins.load(backends.__name__, name)
