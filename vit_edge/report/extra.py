"""The packages of the extra `report`, found by name: the core imports and runs without them."""

from __future__ import annotations

import importlib
from typing import Any

from vit_edge.errors import MissingExtraError


def needed(module: str) -> Any:
    """Import a module of the extra.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # something that it needs itself is missing: its own words say what
        raise MissingExtraError(
            f"the HTML report needs {package}, which is not installed; type: "
            "pip install 'vit-edge[report]'"
        ) from None
