"""What a SOURCE means that does not say so itself: a path, a hub's id, a variant, a graph."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from vit_edge.checkpoints.request import exists, is_hub_id
from vit_edge.variants import VARIANTS

_LOG = logging.getLogger(__name__)

Kind = Literal["variant", "checkpoint", "onnx"]


def named(source: str) -> tuple[Kind, str | Path]:
    """Tell which option a source stands for, and its value.

    What lies here comes before a name: a folder called like a variant is that folder. A bare
    ORG/NAME that is no path is a repository of the Hugging Face hub.
    """
    path = Path(source)
    if source.lower().endswith(".onnx") and not path.is_dir():
        return "onnx", path
    if exists(path):
        return "checkpoint", source
    if source in VARIANTS:
        return "variant", source
    if "/" in source and is_hub_id(source):
        _LOG.info("%s: no such path here, so it is taken for hf:%s", source, source)
        return "checkpoint", f"hf:{source}"
    return "checkpoint", source
