"""Packages that are called: `vit_edge.export(...)`, where `vit_edge.export` is a package, too.

Importing a package binds its name in the one above, so a function of that name would be gone after
`import vit_edge.export`. The package itself is made callable instead, and calls its function. That
is imported when it is first asked for.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vit_edge.errors import MissingExtraError, VitEdgeError

if TYPE_CHECKING:
    from inspect import Signature

# Options of the command lines that are called otherwise in Python.
_KEYWORDS = {
    "checkpoint": "source",
    "onnx": "source",
    "preprocess": "processor",
    "set": "options",
    "images": "golden_images",
}


class CallableModule(ModuleType):
    """A module whose call is that of its function of the same name."""

    _function_in: str  # the module that has the function

    @property
    def _function(self) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(
            import_module(self._function_in), self.__name__.rpartition(".")[2]
        )
        return function

    @property
    def __signature__(self) -> Signature:
        """The function's, for inspect.signature and editors."""
        import inspect

        return inspect.signature(self._function)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the function; its errors speak of keywords, not of a command line's options."""
        function = self._function
        try:
            return function(*arguments, **keywords)
        except VitEdgeError as error:
            error.args = tuple(
                in_python(text, function) if isinstance(text, str) else text for text in error.args
            )
            raise

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), self.__name__.rpartition(".")[2]]

    def __getattr__(self, name: str) -> object:
        """Import the function when it is asked for by its name, as help() does."""
        if name == self.__name__.rpartition(".")[2]:
            return self._function
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def make_callable(module: str, function_in: str) -> None:
    """Make a module callable by the function of its name.

    Args:
        module: The module's name, fully imported or about to be.
        function_in: The name of the module that holds the function; not imported yet.
    """
    called = sys.modules[module]
    called.__class__ = CallableModule
    called._function_in = function_in  # type: ignore[attr-defined]
    called.__all__ = [module.rpartition(".")[2]]  # type: ignore[attr-defined]


def import_verb(module: str) -> Callable[..., Any]:
    """Import a callable module; where what it needs is absent, the call says so."""
    try:
        verb: Any = import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("vit_edge"):
            raise
        message = f'{module} needs {error.name}: pip install "vit-edge[export]"'

        def absent(*arguments: Any, **keywords: Any) -> Any:
            raise MissingExtraError(message)

        return absent
    called: Callable[..., Any] = verb
    return called


def in_python(text: str, function: Callable[..., Any]) -> str:
    """Say in a message `image_size` for `--image-size`, where the function has such a keyword."""
    from inspect import signature

    known = signature(function).parameters

    def keyword(option: re.Match[str]) -> str:
        own = option[1].replace("-", "_")
        name = own if own in known else _KEYWORDS.get(option[1], own)
        return name if name in known else option[0]

    return re.sub(r"(?<![\w-])--([a-z][a-z-]*[a-z])", keyword, text)
