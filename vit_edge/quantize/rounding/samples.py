"""The inputs of each Linear on the calibration images: exact extremes, and a sample of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.errors import ModelError
from vit_edge.graphs.workspace import Workspace, batch_size
from vit_edge.quantize import Progress
from vit_edge.quantize.calibration import Calibration

SMALLEST_ROW = np.float32(1e-6)  # a row is divided by its maximum, or by this
ROWS = 1024  # per Linear; base then holds 264 MB of samples, large 700 MB


class Reader(Protocol):
    """A Linear, or whatever else reads activations."""

    @property
    def name(self) -> str: ...

    @property
    def input(self) -> onnx_ir.Value: ...


@dataclass
class Sample:
    """The input of a Linear over all calibration images.

    Every other image gives the rows, the rest give `fit_low` and `fit_high`. So a search is judged
    on other images than it is made from. Otherwise it would fit the extremes of these images, and
    clip the next ones.
    """

    low: NDArray[np.float32]  # [in], the exact minimum of each channel
    high: NDArray[np.float32]  # [in]
    fit_low: NDArray[np.float32]  # [in], of the images that gave no rows
    fit_high: NDArray[np.float32]  # [in]
    rows: NDArray[np.float32]  # [<= ROWS, in]: class tokens and others drawn at random
    sizes: NDArray[np.float32] | None = None  # [rows, 1], by which what comes out is multiplied

    def by_row(self, *, two_sided: bool = False) -> Sample:
        """The sample of rows divided by their maxima, or by those of |x| where some lie below 0."""
        reach = np.abs(self.rows) if two_sided else self.rows
        sizes = np.maximum(reach.max(axis=1, keepdims=True), SMALLEST_ROW)
        ones = np.ones_like(self.low)
        low = -ones if two_sided else np.zeros_like(ones)
        return Sample(low, ones, low, ones, self.rows / sizes, sizes)

    def squared(self, difference: NDArray[np.float32]) -> float:
        """Sum the squares of what differs behind the Linear, where a row has its size again."""
        if self.sizes is not None:
            difference = difference * self.sizes
        return float(np.square(difference, dtype=np.float64).sum())

    def rescale(self, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> Sample:
        """The sample of (x - shift) / scale, for a positive scale [in]."""
        parts = (self.low, self.high, self.fit_low, self.fit_high, self.rows)
        return Sample(*(((part - shift) / scale).astype(np.float32) for part in parts))

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

    Of every other image the class token and some others are kept, the same number from each, so
    that memory does not grow with the number of images.

    Returns:
        A sample for each value that they read.

    Raises:
        ModelError: An activation is NaN or infinite; its reader is named.
    """
    name_of = {reader.input: reader.name for reader in readers}
    values = list(name_of)
    if not values:  # a run without names would give every output
        return {}
    rng = np.random.default_rng(0)
    keep = max(1, 2 * rows // len(calibration))
    extremes = {value: _Extremes() for value in values}
    fitted = {value: _Extremes() for value in values}
    kept: dict[onnx_ir.Value, list[NDArray[np.float32]]] = {value: [] for value in values}
    seen = 0
    with progress("calibration", len(calibration)) as bar:
        size = batch_size(values)
        for observed in workspace.observe(model, values, calibration.batches(size)):
            images = min(size, len(calibration) - seen)
            judging = (seen + np.arange(images)) % 2 == 0
            for value in values:
                x = observed[str(value.name)]
                x = x.reshape(images, -1, x.shape[-1])  # [N, tokens, in]
                if not extremes[value].add(x):
                    raise ModelError(f"{name_of[value]}: its input is NaN or infinite")
                fitted[value].add(x[~judging])
                if judging.any() and sum(len(part) for part in kept[value]) < rows:
                    kept[value].append(_some_tokens(x[judging], keep, rng))
            seen += images
            bar.update(images)
    samples = {}
    for value in values:
        whole = extremes[value]
        part = fitted[value] if fitted[value].images else whole  # of a single image
        samples[value] = Sample(
            whole.low, whole.high, part.low, part.high, np.concatenate(kept[value])[:rows]
        )
    return samples


class _Extremes:
    """The least and largest of each channel so far."""

    def __init__(self) -> None:
        self.images = 0
        self.low = self.high = np.empty(0, np.float32)

    def add(self, x: NDArray[np.float32]) -> bool:
        """Take float32[N, tokens, channels]; False if something in it is no number."""
        if not len(x):
            return True
        low, high = x.min(axis=(0, 1)), x.max(axis=(0, 1))
        self.low = np.minimum(self.low, low) if self.images else low
        self.high = np.maximum(self.high, high) if self.images else high
        self.images += len(x)
        return bool(np.isfinite(low).all() and np.isfinite(high).all())


def _some_tokens(
    x: NDArray[np.float32], keep: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """The first token and keep - 1 others of each image: float32[N, tokens, in] -> [rows, in]."""
    images, tokens, width = x.shape
    if keep >= tokens:
        everything: NDArray[np.float32] = x.reshape(-1, width).copy()
        return everything
    others: NDArray[np.intp] = rng.permuted(np.tile(np.arange(1, tokens), (images, 1)), axis=1)[
        :, : keep - 1
    ]
    picked = np.concatenate([np.zeros((images, 1), np.intp), others], axis=1)
    kept: NDArray[np.float32] = np.take_along_axis(x, picked[:, :, None], axis=1)
    rows: NDArray[np.float32] = kept.reshape(-1, width)
    return rows
