"""The competitors: which script runs whom, in which environment, and what it is held to."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Competitor(NamedTuple):
    """One way of one script of peers/."""

    tool: str  # what --only names
    way: str  # of the script
    requirements: str  # peers/requirements-<this>.txt
    precision: str  # whose parity limit its answers are held to
    stage: Literal["model", "end-to-end"] = "model"
    variant: str | None = None  # another model than the ViT

    @property
    def script(self) -> str:
        """Its file in peers/."""
        return f"{self.tool}_peer.py"

    @property
    def name(self) -> str:
        """What it is called in tables, but for the batch."""
        return f"{self.tool} {self.way}"


def _rows(tool: str, requirements: str, ways: dict[str, str]) -> tuple[Competitor, ...]:
    return tuple(Competitor(tool, way, requirements, kind) for way, kind in ways.items())


COMPETITORS: tuple[Competitor, ...] = (
    *_rows("torch", "cpu", {"eager-fp32": "fp32", "eager-bf16": "bf16",
                            "compiled-fp32": "fp32", "compiled-bf16": "bf16"}),
    Competitor("transformers", "eager-fp32", "stock", "fp32"),
    Competitor("transformers", "pipeline", "stock", "fp32", "end-to-end"),
    *_rows("timm", "cpu", {"fp32": "fp32", "dynamic": "int8", "static": "int8"}),
    *_rows("optimum", "optimum", {"fp32": "fp32", "dynamic-int8": "int8"}),
    *_rows("openvino", "cpu", {"fp32": "fp32", "bf16": "bf16", "nncf-int8": "int8",
                               "nncf-int8-bf16": "int8"}),
    *_rows("executorch", "executorch", {"fp32": "fp32", "int8": "int8"}),
    *_rows("litert", "litert", {"fp32": "fp32", "dynamic-int8": "int8"}),
    *(
        Competitor("cnn", f"{model}-{precision}", "cpu", precision, "model", model)
        for model in ("resnet50", "densenet121")
        for precision in ("fp32", "int8")
    ),
    Competitor("vit_cpp", "binary", "none", "fp16", "end-to-end", "user's model"),
)  # fmt: skip
