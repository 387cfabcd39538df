"""Graphs of other exporters, each made at the first call; all workers share them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from tests.support.bundles import locked

FOREIGN = ("hf-torchscript-17", "hf-dynamo-18", "timm-torchscript-17", "timm-dynamo-20")
# models of which several nodes share a scope, and so would share a name
SCOPED = (
    "torchvision-torchscript-17",
    "torchvision-dynamo-18",
    "encoderlayer-torchscript-18",
    "functional-torchscript-17",
    "functional-dynamo-23",
    "openclip-dynamo-20",
    "openclip-torchscript-18",
    "shared-torchscript-17",
    "shared-dynamo-18",
)


def foreign_files(folder: Path) -> Callable[[str], Path]:
    """`FAMILY-EXPORTER-OPSET` -> an ONNX file of that kind."""

    @lru_cache
    def file(kind: str) -> Path:
        path = folder / f"{kind}.onnx"
        with locked(folder / f"{kind}.lock"):
            if not path.exists():
                export(kind).rename(path)
        return path

    def export(kind: str) -> Path:
        import torch

        from tests.support import foreign_graphs as graphs
        from tests.support.foreign_families import FAMILIES, without_fast_path

        family, exporter, opset = kind.split("-")
        shape = graphs.Shape()
        with torch.random.fork_rng():
            torch.manual_seed(1)  # what is added below comes on top of what modules draw
            model = graphs.hf_vit(shape) if family == "hf" else FAMILIES[family](shape)
        # TorchScript's exporter merges equal biases through Identity nodes, dynamo's without any
        model = graphs.with_random_weights(model, spare_biases=family == "hf")
        with without_fast_path():
            return graphs.export(model, folder / f"{kind}.partial", exporter, int(opset))

    return file
