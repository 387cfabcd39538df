"""Mean and covariance of what enters each Linear, over all tokens of all calibration images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from vit_edge.errors import ModelError
from vit_edge.graphs.workspace import Workspace, batch_size
from vit_edge.quantize import Progress
from vit_edge.quantize.calibration import Calibration
from vit_edge.quantize.linears import Linear
from vit_edge.quantize.rescale.folding import Group

# Of covariances held at once, in float32. Base has 45 MB a block, so it takes three passes over
# the images; huge has 124 MB.
PASS_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Moment:
    """The first two moments of a Linear's input."""

    mean: NDArray[np.float64]  # [in]
    covariance: NDArray[np.float32]  # [in, in]

    @property
    def second(self) -> NDArray[np.float32]:
        """float32[in, in]: the mean of x x^T, which is what counts where no bias takes the mean."""
        return self.covariance + np.outer(self.mean, self.mean).astype(np.float32)

    @property
    def mean_square(self) -> NDArray[np.float64]:
        """float64[in]: of each channel."""
        return np.diag(self.covariance) + self.mean**2

    def rescale(self, scale: NDArray[np.float64]) -> Moment:
        """The moments of x / scale, for a positive scale [in]."""
        inverse = (1 / scale).astype(np.float32)
        return Moment(self.mean / scale, self.covariance * inverse[:, None] * inverse)


# Some Linears at a time, with the moments of what enters them, by the value's name.
Runs = Iterable[tuple[Sequence[Linear], Mapping[str, Moment]]]


class _Sums:
    """Running sums around a provisional mean, so that a large mean does not drown the variance."""

    def __init__(self, x: NDArray[np.float32]) -> None:
        width = x.shape[1]
        self._middle = x.mean(axis=0)
        self._first = np.zeros(width)
        self._second = np.zeros((width, width), np.float32)
        self._rows = 0

    def add(self, x: NDArray[np.float32]) -> None:
        """Count in float32[rows, in]."""
        x = x - self._middle
        self._first += x.sum(axis=0, dtype=np.float64)
        self._second += x.T @ x
        self._rows += len(x)

    def moment(self) -> Moment:
        """Return what has been counted, and end the counting: the memory is handed on."""
        off = self._first / self._rows
        self._second /= np.float32(self._rows)
        self._second -= np.outer(off, off).astype(np.float32)
        return Moment(self._middle + off, self._second)


def collect_moments(
    workspace: Workspace,
    model: onnx_ir.Model,
    linears: Sequence[Linear],
    calibration: Calibration,
    progress: Progress,
) -> dict[str, Moment]:
    """Run the model over the calibration images.

    Args:
        workspace: Of the model.
        model: Settled there.
        linears: Of this model, or of one whose values are called the same.
        calibration: The images.
        progress: Shows them.

    Returns:
        The moments by the name of the value that enters a Linear. Where its rows are divided, they
        are those of the rows before: what the Linear makes is multiplied by their sizes again.

    Raises:
        ModelError: An activation is NaN or infinite; the Linear is named.
    """
    readers = {str(linear.undivided.name): linear.name for linear in linears}
    values = list({linear.undivided.name: linear.undivided for linear in linears}.values())
    sums: dict[str, _Sums] = {}
    seen, size = 0, batch_size(values)
    with progress("calibration", len(calibration)) as bar:
        for observed in workspace.observe(model, values, calibration.batches(size)):
            for name, array in observed.items():
                x = array.reshape(-1, array.shape[-1])
                if not np.isfinite(x).all():
                    raise ModelError(f"{readers[name]}: its input is NaN or infinite")
                sums.setdefault(name, _Sums(x)).add(x)
            bar.update(min(size, len(calibration) - seen))
            seen += size
    return {name: total.moment() for name, total in sums.items()}


def collect_in_passes(
    workspace: Workspace,
    model: onnx_ir.Model,
    linears: Sequence[Linear],
    calibration: Calibration,
    progress: Progress,
) -> Iterator[tuple[list[Linear], dict[str, Moment]]]:
    """Give some of the Linears at a time, with their moments, as far as these fit into memory.

    The moments are gone when the next are asked for.
    """
    for run in passes(linears, ()):
        moments = collect_moments(workspace, model, run, calibration, progress)
        yield run, moments
        moments.clear()


def passes(
    linears: Sequence[Linear], groups: Sequence[Group], limit_bytes: int = PASS_BYTES
) -> list[list[Linear]]:
    """Cut the Linears into runs whose covariances fit into memory together.

    What a group ties together stays together: its scale changes the weights of all of it.
    """
    place = {linear.weight: index for index, linear in enumerate(linears)}
    forbidden: set[int] = set()  # positions in front of which there is no cut
    for group in groups:
        tied = [place[f.value] for f in group.factors if f.value in place]
        forbidden.update(range(min(tied) + 1, max(tied) + 1))
    runs: list[list[Linear]] = []
    used = limit_bytes
    for index, linear in enumerate(linears):
        width = linear.matrix().shape[0]
        used += 4 * width * width
        if not runs or (used > limit_bytes and index not in forbidden):
            runs.append([])
            used = 4 * width * width
        runs[-1].append(linear)
    return runs
