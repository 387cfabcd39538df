"""Graphs of other exporters, each made at the first call."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

FOREIGN = ("hf-torchscript-17", "hf-dynamo-18", "timm-torchscript-17", "timm-dynamo-20")


def foreign_files(folder: Path) -> Callable[[str], Path]:
    """`FAMILY-EXPORTER-OPSET` -> an ONNX file of that kind."""

    @lru_cache
    def export(kind: str) -> Path:
        from tests.support import foreign_graphs as graphs

        family, exporter, opset = kind.split("-")
        shape = graphs.Shape()
        model = graphs.hf_vit(shape) if family == "hf" else graphs.TimmViT(shape)
        # TorchScript's exporter merges equal biases through Identity nodes, dynamo's without any
        model = graphs.with_random_weights(model, spare_biases=family == "hf")
        return graphs.export(model, folder / f"{kind}.onnx", exporter, int(opset))

    return export
