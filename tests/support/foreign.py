"""Graphs of other exporters, made once: a plugin of tests/conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

FOREIGN = ("hf-torchscript-17", "hf-dynamo-18", "timm-torchscript-17", "timm-dynamo-20")


@pytest.fixture(scope="session")
def foreign_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`FAMILY-EXPORTER-OPSET` -> an ONNX file of that kind, made at the first call."""
    folder = tmp_path_factory.mktemp("foreign")

    @lru_cache
    def made(kind: str) -> Path:
        from tests.support import foreign_graphs as graphs

        family, exporter, opset = kind.split("-")
        shape = graphs.Shape()
        model = graphs.hf_vit(shape) if family == "hf" else graphs.TimmViT(shape)
        # TorchScript's exporter merges equal biases through Identity nodes, dynamo's without any
        model = graphs.with_random_weights(model, spare_biases=family == "hf")
        return graphs.export(model, folder / f"{kind}.onnx", exporter, int(opset))

    return made
