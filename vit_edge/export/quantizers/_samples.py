"""What enters each Linear on the calibration images: exact extremes, and a sample of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.errors import ModelError
from vit_edge.export.calibration import Calibration
from vit_edge.export.quantizers import Progress
from vit_edge.export.quantizers._workspace import Workspace, batch_size

ROWS = 1024  # per Linear; base then holds 264 MB of samples, large 700 MB


class Reader(Protocol):
    """A Linear, or whatever else reads activations."""

    @property
    def name(self) -> str: ...

    @property
    def input(self) -> onnx_ir.Value: ...


@dataclass
class Sample:
    """The input of a Linear over all calibration images."""

    low: NDArray[np.float32]  # [in], the exact minimum of each channel
    high: NDArray[np.float32]  # [in]
    rows: NDArray[np.float32]  # [<= ROWS, in]: class tokens and others drawn at random

    def rescaled(self, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> Sample:
        """The sample of (x - shift) / scale, for a positive scale [in]."""
        return Sample(
            *(
                ((part - shift) / scale).astype(np.float32)
                for part in (self.low, self.high, self.rows)
            )
        )

    @property
    def mean_square(self) -> NDArray[np.float64]:
        """float64[in]: how much each channel matters."""
        mean: NDArray[np.float64] = np.square(self.rows, dtype=np.float64).mean(axis=0)
        return mean


def collect_samples(
    workspace: Workspace,
    model: onnx_ir.Model,
    readers: Sequence[Reader],
    calibration: Calibration,
    progress: Progress,
    rows: int = ROWS,
) -> dict[onnx_ir.Value, Sample]:
    """Run the float model once over the calibration images.

    Of every image the class token and some others are kept, the same number from each, so that
    memory does not grow with the number of images.

    Returns:
        A sample for each value that they read.

    Raises:
        ModelError: An activation is NaN or infinite; its reader is named.
    """
    name_of = {reader.input: reader.name for reader in readers}
    values = list(name_of)
    rng = np.random.default_rng(0)
    keep = max(1, rows // len(calibration))
    low: dict[onnx_ir.Value, NDArray[np.float32]] = {}
    high: dict[onnx_ir.Value, NDArray[np.float32]] = {}
    kept: dict[onnx_ir.Value, list[NDArray[np.float32]]] = {value: [] for value in values}
    with progress("calibration", len(calibration)) as bar:
        batches = calibration.batches(batch_size(values))
        for found in workspace.observe(model, values, batches):
            for value in values:
                x = found[str(value.name)]
                x = x.reshape(len(x), -1, x.shape[-1])  # [N, tokens, in]
                lowest, highest = x.min(axis=(0, 1)), x.max(axis=(0, 1))
                if not np.isfinite(lowest).all() or not np.isfinite(highest).all():
                    raise ModelError(f"{name_of[value]}: its input is NaN or infinite")
                low[value] = np.minimum(low.get(value, lowest), lowest)
                high[value] = np.maximum(high.get(value, highest), highest)
                if sum(len(part) for part in kept[value]) < rows:
                    kept[value].append(_some_tokens(x, keep, rng))
            bar.update(len(x))
    return {v: Sample(low[v], high[v], np.concatenate(kept[v])[:rows]) for v in values}


def _some_tokens(
    x: NDArray[np.float32], keep: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """The first token and keep - 1 others of each image: float32[N, tokens, in] -> [rows, in]."""
    images, tokens, width = x.shape
    if keep >= tokens:
        return x.reshape(-1, width).copy()
    others = rng.permuted(np.tile(np.arange(1, tokens), (images, 1)), axis=1)[:, : keep - 1]
    picked = np.concatenate([np.zeros((images, 1), np.intp), others], axis=1)
    kept: NDArray[np.float32] = np.take_along_axis(x, picked[:, :, None], axis=1)
    rows: NDArray[np.float32] = kept.reshape(-1, width)
    return rows
