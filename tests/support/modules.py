"""Modules that belong to no package: scripts of the repository."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def module_from(path: Path) -> ModuleType:
    """Import a file as a module of its name, anew."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
