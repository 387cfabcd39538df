"""Plugins are modules of a package: named by their file, imported only when asked for."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from types import ModuleType

from vit_edge.errors import UsageError


def names(package: str) -> list[str]:
    """List the plugins of a package without importing any of them.

    Args:
        package: Dotted name, such as "vit_edge.checkpoints".

    Returns:
        Sorted module names; those that start with an underscore are private helpers, not plugins.
    """
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    if folders is None:
        raise ValueError(f"{package} is not a package")
    return sorted(m.name for m in pkgutil.iter_modules(folders) if not m.name.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """Import one plugin by its name.

    Raises:
        UsageError: There is no such plugin; those that exist are listed.
    """
    known = names(package)
    if name not in known:
        kind = package.rpartition(".")[2]
        raise UsageError(f"no {name!r} among the {kind}. There are: {', '.join(known)}")
    return importlib.import_module(f"{package}.{name}")
