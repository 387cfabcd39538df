"""The plots of a parity report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vit_edge.parity.report.numbers import fullest_row
from vit_edge.parity.report.sections import Column, Section
from vit_edge.parity.targets import LOGITS
from vit_edge.report.drawing import (
    BAD,
    MUTED,
    TEXT_POINTS,
    WIDTH_PX,
    Figure,
    colour,
    legend,
    plain,
    plot,
    stacked,
    style,
    svg,
)
from vit_edge.report.extra import needed

SCATTERS = 6  # more panels would show nothing that six do not


def figures(section: Section, prefix: str) -> Iterator[Figure]:
    """Draw what a section's runs found.

    Args:
        section: Runs of one model and one golden file.
        prefix: Of the ids inside the pictures: they must differ on one page.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with style():
        for place, (draws, draw) in enumerate(_PLOTS):
            columns = [column for column in section.columns if draws(column)]
            if columns:
                yield draw(columns, f"{prefix}{place}")


def _agreement(columns: Sequence[Column], prefix: str) -> Figure:
    figure, axes = plot(_bars_px(columns))
    bounds: set[float] = set()
    for place, column in enumerate(columns):
        row = fullest_row(column)
        assert row is not None  # _PLOTS asked
        low, high = (100 * end for end in row.summary["top1_agreement_interval"])
        value = 100 * row.summary["top1_agreement"]
        drawn = colour(place)
        axes.barh(place, high - low, left=low, height=0.42, color=drawn, alpha=0.3)
        axes.plot([value, value], [place - 0.3, place + 0.3], color=drawn, linewidth=2.4)
        target = column.run.target_of(LOGITS)
        bounds |= {b for name, b in (target.bounds if target else ()) if name == "top1_agreement"}
        limit = column.run.held_against()
        if limit.top1_agreement is not None and limit.judges_agreement(row.summary):
            bounds.add(limit.top1_agreement)
    for bound in sorted(bounds):
        axes.axvline(100 * bound, color=BAD, linestyle=(0, (4, 3)), linewidth=1.2)
    axes.set_xlim(right=100.5)
    _named(axes, columns)
    axes.set_xlabel("top-1 agreement, %")
    line = "Dashed: what is asked for. " if bounds else ""
    return Figure(
        "Agreement with the reference",
        f"{line}A mark is the rate found, the bar what it may be (95 %).",
        svg(figure, prefix, "Top-1 agreement with its interval for each backend"),
    )


def _scatter(columns: Sequence[Column], prefix: str) -> Figure:
    shown = columns[:SCATTERS]
    across = min(len(shown), 2)
    down = -(-len(shown) // across)
    side_px = WIDTH_PX // across
    figure, grid = plot(down * (side_px + 14), rows=down, columns=across)
    panels = np.ravel(grid)
    values = [v for c in shown for v in (*c.run.scatter.reference, *c.run.scatter.candidate)]
    ends = (min(values), max(values))
    for place, (panel, column) in enumerate(zip(panels, shown, strict=False)):
        pairs = column.run.scatter
        panel.plot(ends, ends, color=MUTED, linewidth=1)
        panel.add_patch(_dots(pairs.reference, pairs.candidate, colour(place)))
        panel.set_title(plain(column.label), fontsize=TEXT_POINTS)
        panel.set_aspect("equal", adjustable="datalim")
        panel.autoscale_view()
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    figure.supxlabel("reference", fontsize=TEXT_POINTS)
    figure.supylabel("candidate", fontsize=TEXT_POINTS)
    left = f" Of {len(columns)} backends the first {SCATTERS}." if len(columns) > SCATTERS else ""
    return Figure(
        "Logits",
        f"Each dot is one logit; on the line both computed the same.{left}",
        svg(figure, prefix, "Logits of the candidate over those of the reference"),
    )


def _dots(x: Sequence[float], y: Sequence[float], colour: str) -> Any:
    """All dots as one path of strokes without length: a tenth of the size of an element each."""
    path = needed("matplotlib.path").Path
    points = np.repeat(np.stack([x, y], axis=1), 2, axis=0)
    codes = [path.MOVETO, path.LINETO] * len(x)
    return needed("matplotlib.patches").PathPatch(
        path(points, codes), fill=False, edgecolor=colour, linewidth=2.6, capstyle="round",
        alpha=0.55,
    )  # fmt: skip


def _blocks(columns: Sequence[Column], prefix: str) -> Figure:
    figure, axes = plot(230)
    taps = list(dict.fromkeys(block.tap for column in columns for block in column.run.blocks or ()))
    for place, column in enumerate(columns):
        known = {b.tap: b.sqnr_db for b in column.run.blocks or () if b.sqnr_db is not None}
        axes.plot(
            [taps.index(tap) for tap in known], list(known.values()),
            marker="o", markersize=3.5, linewidth=1.6, color=colour(place),
            label=plain(column.label),
        )  # fmt: skip
    step = -(-len(taps) // 8)  # eight names fit on a phone
    axes.set_xticks(range(0, len(taps), step), [plain(tap) for tap in taps[::step]])
    axes.tick_params(axis="x", labelrotation=35)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("right")
        label.set_rotation_mode("anchor")
    axes.set_ylabel("SQNR, dB")
    if len(columns) > 1:
        legend(figure)
    return Figure(
        "Error per block",
        "Signal over noise after each block, in dB: a sudden fall is where the fault is.",
        svg(figure, prefix, "Signal-to-noise ratio after each block"),
    )


def _memory(columns: Sequence[Column], prefix: str) -> Figure:
    figure, axes = plot(_bars_px(columns, key=True))
    own = [(c.run.memory.peak_anonymous_bytes or 0) / 1e6 for c in columns]
    whole = [(c.run.memory.peak_rss_bytes or 0) / 1e6 for c in columns]
    stacked(axes, [own, _rest(own, whole)], ("its own", "of mapped files"))
    _named(axes, columns)
    limits = {c.run.memory.limit_bytes for c in columns if c.run.memory.limit_bytes is not None}
    for limit in sorted(limits):
        axes.axvline(limit / 1e6, color=BAD, linestyle=(0, (4, 3)), linewidth=1.2)
    axes.set_xlabel("peak memory, MB")
    return Figure(
        "Memory",
        "Of the process that ran the backend, Python included. Files that are mapped can be taken "
        f"back by the system.{' The dashed line is the limit.' if limits else ''}",
        svg(figure, prefix, "Peak memory of each backend"),
    )


def _time(columns: Sequence[Column], prefix: str) -> Figure:
    figure, axes = plot(_bars_px(columns, key=True))
    running = [column.run.seconds.running for column in columns]
    total = [column.run.seconds.total for column in columns]
    stacked(axes, [running, _rest(running, total)], ("in the backend", "the rest"))
    _named(axes, columns)
    axes.set_xlabel("seconds")
    return Figure(
        "Time",
        "How long the comparison took. No benchmark: other work on the machine is in it.",
        svg(figure, prefix, "Time of the comparison for each backend"),
    )


def _rest(part: Sequence[float], whole: Sequence[float]) -> list[float]:
    return [max(0.0, w - p) for p, w in zip(part, whole, strict=True)]


def _named(axes: Any, columns: Sequence[Column]) -> None:
    axes.set_yticks(range(len(columns)), [plain(column.label) for column in columns])
    axes.set_ylim(len(columns) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _bars_px(columns: Sequence[Column], *, key: bool = False) -> int:
    return 62 + 34 * len(columns) + 18 * key


def _has_agreement(column: Column) -> bool:
    row = fullest_row(column)
    return row is not None and row.summary.get("top1_agreement") is not None


_PLOTS: tuple[tuple[Callable[[Column], bool], Callable[[Sequence[Column], str], Figure]], ...] = (
    (_has_agreement, _agreement),
    (lambda column: bool(column.run.blocks), _blocks),
    (lambda column: bool(column.run.scatter.reference), _scatter),
    (lambda column: bool(column.run.memory.peak_rss_bytes), _memory),
    (lambda column: column.run.seconds.total > 0, _time),
)
