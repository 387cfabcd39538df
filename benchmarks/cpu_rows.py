"""What cpu.py compares: the ways to run a model, and the bars."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cpu_setup import Setup

from vit_edge.bench.run.operations import multiply_adds
from vit_edge.variants import variant


class Candidate(NamedTuple):
    """One way to run a model; `kind` and `options` are those of candidates.py."""

    name: str
    groups: tuple[str, ...]  # what rows pick by
    kind: str
    model: str  # a bundle's precision, a file of cpu_models.py, "weights", or "none"
    options: Mapping[str, Any] = {}
    batches: tuple[int, ...] = (1,)
    limit: str | None = None  # the precision whose parity limit the answers must hold, to count

    @property
    def answers(self) -> bool:
        """Whether it classifies images."""
        return self.model != "none"

    def at(self, batch: int) -> str:
        """Its name with a batch size."""
        return f"{self.name}, batch {batch}" if self.answers else self.name

    def argv(self, setup: Setup, threads: int) -> list[str]:
        """The command of its worker."""
        spec = {
            "kind": self.kind,
            "model": str(self._path(setup)),
            "pixels": str(setup.peers / "pixels.npy"),
            "threads": threads,
            "options": {**self.options, "variant": setup.variant, "timm": setup.timm_name}
            if self.kind.startswith("torch")
            else dict(self.options),
        }
        pythons = setup.pythons
        special = {
            "onnxruntime": pythons.peers,
            "openvino": pythons.peers,
            "torch_timm": pythons.timm,
        }
        python = special.get(self.kind, pythons.here)
        script = Path(__file__).with_name("candidates.py")
        return [str(python), str(script), json.dumps(spec)]

    def _path(self, setup: Setup) -> Path:
        bundles = {"int8": setup.int8, "fp32": setup.fp32, "bf16": setup.bf16}
        files = {"weights": "weights.safetensors"}
        return bundles.get(self.model) or setup.peers / files.get(self.model, self.model)


class Row(NamedTuple):
    """A bar: the fastest of one group takes at most `bar` times as long as that of another."""

    number: int
    words: str
    batch: int
    ours: str
    theirs: str
    bar: float

    def needs(self, candidate: Candidate) -> bool:
        """Whether it plays a part."""
        played = {self.ours, self.theirs} & set(candidate.groups)
        return bool(played) and self.batch in candidate.batches


def _int8(execution: str) -> tuple[Candidate, ...]:
    """Our INT8 bundle in OpenVINO: for latency, tokens split, and a batch by two streams."""
    name, groups = f"vit_edge int8, openvino {execution}", ("int8",)
    latency = {"backend": "openvino", "execution_precision": execution}
    throughput = {**latency, "mode": "throughput", "streams": 2}
    split = {**latency, "split_tokens": "full blocks"}
    return (
        Candidate(name, groups, "vit_edge", "int8", latency, (1, 8), "int8"),
        Candidate(f"{name}, split", groups, "vit_edge", "int8", split, (1,), "int8"),
        Candidate(f"{name}, 2 streams", groups, "vit_edge", "int8", throughput, (8,), "int8"),
    )


def _float(precision: Literal["fp32", "bf16"], execution: str, *, split: bool = False) -> Candidate:
    """A bundle that is not quantized, in OpenVINO."""
    options: dict[str, Any] = {"backend": "openvino", "execution_precision": execution}
    name, limit = f"vit_edge {precision}, openvino {execution}", "bf16"
    if (precision, execution) == ("fp32", "f32"):
        limit = "fp32"
    if split:
        name, options = f"{name}, split", {**options, "split_tokens": "full blocks"}
    return Candidate(name, ("float",), "vit_edge", precision, options, limit=limit)


def _openvino(
    name: str, group: str, model: Literal["timm.onnx", "nncf.xml"], execution: str, streams: int
) -> Candidate:
    mode = "LATENCY" if streams == 1 else "THROUGHPUT"
    options = {"precision": execution, "mode": mode, "streams": streams}
    words = f"{name} {execution}" + (f", {streams} streams" if streams > 1 else "")
    batches = (8,) if streams > 1 else (1, 8) if model == "nncf.xml" else (1,)
    return Candidate(words, (group,), "openvino", model, options, batches)


_ORT = {"backend": "ort"}
_BF16 = {"dtype": "bfloat16"}
_NNCF = "OpenVINO + NNCF"
CANDIDATES: tuple[Candidate, ...] = (
    Candidate("vit_edge int8, ort", ("int8",), "vit_edge", "int8", _ORT, (1, 8), "int8"),
    Candidate(
        "vit_edge int8, ort, one by one",
        ("int8",),
        "vit_edge",
        "int8",
        {**_ORT, "micro_batch": 1},
        (8,),
        "int8",
    ),
    *_int8("f32"),
    *_int8("bf16-products"),
    Candidate("vit_edge fp32, ort", ("float", "clean"), "vit_edge", "fp32", _ORT, limit="fp32"),
    _float("fp32", "f32", split=True),
    _float("fp32", "bf16-products", split=True),
    _float("bf16", "bf16"),
    _float("bf16", "bf16", split=True),
    *(_openvino(_NNCF, "nncf", "nncf.xml", p, n) for n in (1, 2) for p in ("f32", "bf16")),
    Candidate("quantize_dynamic", ("dynamic",), "onnxruntime", "dynamic.onnx"),
    _openvino("OpenVINO, timm's export,", "float peers", "timm.onnx", "bf16", 1),
    Candidate("PyTorch bf16, our model", ("float peers",), "torch_vit_edge", "weights", _BF16),
    Candidate("PyTorch bf16, timm", ("float peers",), "torch_timm", "weights", _BF16),
    Candidate("float32 product, PyTorch", ("limit",), "gemm_torch", "none"),
    Candidate("float32 product, onnxruntime", ("limit",), "gemm_onnxruntime", "none"),
)

# The table of what to show: against whom, and how much faster.
ROWS: tuple[Row, ...] = (
    Row(1, "INT8 against OpenVINO + NNCF", 1, "int8", "nncf", 0.90),
    Row(2, "INT8 against quantize_dynamic", 1, "int8", "dynamic", 0.75),
    Row(3, "INT8 against our FP32 on ort", 1, "int8", "clean", 0.36),
    Row(4, "INT8, batch 8, against OpenVINO + NNCF", 8, "int8", "nncf", 0.92),
    Row(5, "FP32/BF16 against PyTorch and OpenVINO bf16", 1, "float", "float peers", 0.95),
    Row(6, "INT8 against the limit of this CPU", 1, "int8", "limit", 1.5),
)
START_ROW, START_BAR = 7, 0.06


def operations(name: str) -> int:
    """Multiplications and additions of a whole model for one image: 35.1e9 for base-patch16-224."""
    return 2 * multiply_adds(variant(name).architecture)
