"""The plots of a group of configurations, each readable on a phone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vit_edge.bench.report.lines import Group, Line
from vit_edge.bench.report.looks import (
    ROWS,
    Looks,
    fastest_of,
    label,
    named,
    rows_px,
    scale,
)
from vit_edge.bench.report.pareto import pareto
from vit_edge.bench.report.scaling import scalings
from vit_edge.report.drawing import INK, Figure, plot, stacked, style, svg

_BINS = 60  # of a distribution: two pixels each


def figures(group: Group, looks: Looks, prefix: str) -> Iterator[Figure]:
    """Draw what was measured of a group.

    Args:
        group: Configurations of one variant.
        looks: Of the page.
        prefix: Of the ids inside the pictures: they must differ on one page.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    judged = [line for line in group.smallest if line.worth_db is not None]
    shown = group.smallest[:ROWS]
    with style():
        if len(judged) > 1:
            yield pareto(judged, looks, f"{prefix}p")
        yield _distributions(shown, len(group.smallest), looks, f"{prefix}d")
        yield _memory(shown, len(group.smallest), f"{prefix}m")
        yield _cold(shown, len(group.smallest), f"{prefix}c")
        yield from scalings(group.lines, looks, f"{prefix}s")


def _distributions(lines: Sequence[Line], of: int, looks: Looks, prefix: str) -> Figure:
    figure, axes = plot(rows_px(lines))
    kept = [_middle(line) for line in lines]
    ends = [float(end) for values in kept for end in (values[0], values[-1])]
    log = scale(axes, "x", ends)
    for place, (line, values) in enumerate(zip(lines, kept, strict=True)):
        edges, height = _outline(values, log)
        drawn = looks.colour(line)
        axes.fill_between(
            edges, place - height, place + height, color=drawn, alpha=0.35, linewidth=0
        )
        axes.plot([line.latency_ms] * 2, [place - 0.24, place + 0.24], color=drawn, linewidth=2.2)
    named(axes, [label(line) for line in lines])
    axes.set_xlabel("latency, ms")
    return Figure(
        "Latencies",
        f"Batch {lines[0].batch}: the middle 99 % of all samples, a line at the median."
        f"{fastest_of(lines, of)}",
        svg(figure, prefix, "Distribution of the latencies of each configuration"),
    )


def _memory(lines: Sequence[Line], of: int, prefix: str) -> Figure:
    memory = [line.numbers.memory_bytes for line in lines]
    parts = [[one.anonymous / 1e6 for one in memory], [one.file / 1e6 for one in memory]]
    figure, axes = plot(rows_px(lines, key=True))
    stacked(axes, parts, ("its own", "of mapped files"))
    for place, line in enumerate(lines):
        axes.plot(
            [line.peak_bytes / 1e6] * 2, [place - 0.24, place + 0.24], color=INK, linewidth=1.6
        )
    axes.set_xlim(left=0)
    named(axes, [label(line) for line in lines])
    axes.set_xlabel("memory, MB")
    return Figure(
        "Memory",
        f"Batch {lines[0].batch}: of the process at its end, Python included; the line is the "
        f"peak. Mapped files can be taken back by the system.{fastest_of(lines, of)}",
        svg(figure, prefix, "Memory of each configuration"),
    )


def _cold(lines: Sequence[Line], of: int, prefix: str) -> Figure:
    cold = [line.numbers.cold_s for line in lines]
    parts = [
        [one.imports for one in cold],
        [one.load for one in cold],
        [one.first_answer for one in cold],
    ]
    figure, axes = plot(rows_px(lines, key=True))
    stacked(axes, parts, ("Python, imports", "load", "first answer"))
    axes.set_xlim(left=0)
    named(axes, [label(line) for line in lines])
    axes.set_xlabel("seconds")
    return Figure(
        "Cold start",
        f"Batch {lines[0].batch}: from starting Python to the first answer, the middle of the "
        f"processes; files that were read before may still be in memory.{fastest_of(lines, of)}",
        svg(figure, prefix, "Cold start of each configuration in three parts"),
    )


def _middle(line: Line) -> NDArray[np.float64]:
    """Its samples in order, without the half per cent at either end."""
    values = np.sort(np.concatenate([np.asarray(one, float) for one in line.entry.samples]))
    cut = int(0.005 * len(values))
    return values[cut : len(values) - cut]


def _outline(
    values: NDArray[np.float64], log: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Half the height of a distribution over its values: a histogram, as high as a row allows."""
    if values[0] == values[-1]:
        return values[[0, -1]], np.array([0.24, 0.24])
    space = np.geomspace if log else np.linspace
    edges = space(values[0], values[-1], min(_BINS, max(6, len(values) // 8)) + 1)
    counts, _ = np.histogram(values, edges)
    middles = np.sqrt(edges[1:] * edges[:-1]) if log else (edges[1:] + edges[:-1]) / 2
    return middles, 0.24 * counts / counts.max()
