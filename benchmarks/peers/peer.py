"""One stock quantizer with one setting: a float32 ONNX file in, a quantized model out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

INPUT = "pixel_values"  # what hf_onnx.py calls it
BATCH = 100  # quantize_dynamic's answers depend on it; nobody else's do


@dataclass(frozen=True)
class Images:
    """Preprocessed images and their classes."""

    pixels: NDArray[np.float32]  # [N, 3, H, W]
    labels: NDArray[np.int64]  # [N]

    def __len__(self) -> int:
        return len(self.labels)


# (the float32 ONNX file, calibration images, where to write)
Quantize: TypeAlias = Callable[[Path, Images, Path], None]


@dataclass(frozen=True)
class Peer:
    """A stock quantizer with a setting, named as its own documentation names it.

    `calibration` says what it reads: no images; all of them, once, because it takes minutes; or
    also one random subset per seed.
    """

    tool: str
    setting: str
    quantize: Quantize
    calibration: Literal["none", "all", "seeds"] = "seeds"
    suffix: Literal[".onnx", ".xml"] = ".onnx"  # onnxruntime or OpenVINO runs it
    session: Mapping[str, str] = field(default_factory=dict)  # entries of onnxruntime's options


def logits(model: Path, session: Mapping[str, str], images: Images) -> NDArray[np.float32]:
    """Run a model over all images.

    Args:
        model: An .onnx file, run by onnxruntime's CPU provider, or an .xml file, by OpenVINO.
        session: Entries of onnxruntime's session options.
        images: N of them.

    Returns:
        float32[N, classes].
    """
    run = _onnxruntime(model, session) if model.suffix == ".onnx" else _openvino(model)
    parts = [run(images.pixels[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    return np.concatenate(parts).astype(np.float32)


_Run: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def _onnxruntime(model: Path, entries: Mapping[str, str]) -> _Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others work here too
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(model), options, ["CPUExecutionProvider"])

    def run(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        answer: NDArray[np.float32] = session.run(None, {INPUT: pixels})[0]
        return answer

    return run


def _openvino(model: Path) -> _Run:
    import openvino

    # Without the hint a CPU with BF16 runs everything that is not INT8 in BF16.
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        answer: NDArray[np.float32] = compiled(pixels)[0].copy()  # the next run reuses the buffer
        return answer

    return run
