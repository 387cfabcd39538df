"""The plots of a report: matplotlib's SVG, in the colours of the page that it stands in.

Colours are written as rare hexadecimal numbers and replaced by the CSS variables of page.css, so
one picture serves light and dark; text stays text, in the page's own font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_edge.parity.compare import LOGITS
from vit_edge.parity.report.extra import needed
from vit_edge.parity.report.judged import limit_of, target_of
from vit_edge.parity.report.numbers import fullest_row
from vit_edge.parity.report.sections import Column, Section

# In CSS pixels (1/96 inch; matplotlib's points are 1/72). As wide as a phone of 390 px leaves:
# there text is as large as it was written, and a wide page sets several plots side by side.
WIDTH_PX = 350
SCATTERS = 6  # more panels would show nothing that six do not
_PX_PER_INCH, _POINTS_PER_PX = 96, 0.75
_TEXT_PX = 12

# Written by matplotlib -> what the page calls it.
INK, MUTED, GRID, BAD = "#010203", "#020304", "#030405", "#040506"
SERIES = ("#110203", "#120304", "#130405", "#140506", "#150607", "#160708")
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", BAD: "fail"} | {
    colour: f"series-{place}" for place, colour in enumerate(SERIES, 1)
}
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "vit_edge", "text.parse_math": False,
    "font.size": _TEXT_PX * _POINTS_PER_PX, "path.simplify": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED,
    "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "grid.color": GRID,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "legend.frameon": False, "axes.grid": True,
}  # fmt: skip


class Figure(NamedTuple):
    """A plot for the page."""

    title: str
    caption: str
    svg: str  # without a script, a link or a style of its own


def figures(section: Section, prefix: str) -> Iterator[Figure]:
    """Draw what a section's runs found.

    Args:
        section: Runs of one model and one golden file.
        prefix: Of the ids inside the pictures: they must differ on one page.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with needed("matplotlib").rc_context(_STYLE):
        for place, (draws, draw) in enumerate(_PLOTS):
            columns = [column for column in section.columns if draws(column)]
            if columns:
                yield draw(columns, f"{prefix}{place}")


def _agreement(columns: Sequence[Column], prefix: str) -> Figure:
    figure, axes = _plot(_bars_px(columns))
    bounds: set[float] = set()
    for place, column in enumerate(columns):
        row = fullest_row(column)
        assert row is not None  # _PLOTS asked
        low, high = (100 * end for end in row["top1_agreement_interval"])
        value = 100 * row["top1_agreement"]
        colour = _colour(place)
        axes.barh(place, high - low, left=low, height=0.42, color=colour, alpha=0.3)
        axes.plot([value, value], [place - 0.3, place + 0.3], color=colour, linewidth=2.4)
        target = target_of(column.run, LOGITS)
        bounds |= {b for name, b in (target.bounds if target else ()) if name == "top1_agreement"}
        limit = limit_of(column.run)
        if limit.top1_agreement is not None and limit.judges_agreement(row):
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
        _svg(figure, prefix, "Top-1 agreement with its interval for each backend"),
    )


def _scatter(columns: Sequence[Column], prefix: str) -> Figure:
    shown = columns[:SCATTERS]
    across = min(len(shown), 2)
    down = -(-len(shown) // across)
    side_px = WIDTH_PX // across
    figure, grid = _plot(down * (side_px + 14), rows=down, columns=across)
    panels = np.ravel(grid)
    values = [v for c in shown for kind in c.run["scatter"].values() for v in kind]
    ends = (min(values), max(values))
    for place, (panel, column) in enumerate(zip(panels, shown, strict=False)):
        pairs = column.run["scatter"]
        panel.plot(ends, ends, color=MUTED, linewidth=1)
        panel.add_patch(_dots(pairs["reference"], pairs["candidate"], _colour(place)))
        panel.set_title(_plain(column.label), fontsize=_TEXT_PX * _POINTS_PER_PX)
        panel.set_aspect("equal", adjustable="datalim")
        panel.autoscale_view()
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    figure.supxlabel("reference", fontsize=_TEXT_PX * _POINTS_PER_PX)
    figure.supylabel("candidate", fontsize=_TEXT_PX * _POINTS_PER_PX)
    left = f" Of {len(columns)} backends the first {SCATTERS}." if len(columns) > SCATTERS else ""
    return Figure(
        "Logits",
        f"Each dot is one logit; on the line both computed the same.{left}",
        _svg(figure, prefix, "Logits of the candidate over those of the reference"),
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
    figure, axes = _plot(230)
    taps = list(dict.fromkeys(block["tap"] for column in columns for block in column.run["blocks"]))
    for place, column in enumerate(columns):
        known = {b["tap"]: b["sqnr_db"] for b in column.run["blocks"] if b["sqnr_db"] is not None}
        axes.plot(
            [taps.index(tap) for tap in known], list(known.values()),
            marker="o", markersize=3.5, linewidth=1.6, color=_colour(place),
            label=_plain(column.label),
        )  # fmt: skip
    step = -(-len(taps) // 8)  # eight names fit on a phone
    axes.set_xticks(range(0, len(taps), step), [_plain(tap) for tap in taps[::step]])
    axes.tick_params(axis="x", labelrotation=35)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("right")
        label.set_rotation_mode("anchor")
    axes.set_ylabel("SQNR, dB")
    if len(columns) > 1:
        axes.legend(fontsize=_TEXT_PX * _POINTS_PER_PX)
    return Figure(
        "Error per block",
        "Signal over noise after each block, in dB: a sudden fall is where the fault is.",
        _svg(figure, prefix, "Signal-to-noise ratio after each block"),
    )


def _memory(columns: Sequence[Column], prefix: str) -> Figure:
    figure, axes = _plot(_bars_px(columns, key=True))
    own = [(c.run["memory"].get("peak_anonymous_bytes") or 0) / 1e6 for c in columns]
    all_ = [c.run["memory"]["peak_rss_bytes"] / 1e6 for c in columns]
    _stacked(axes, columns, own, all_, ("its own", "with its files"))
    limits = {c.run["memory"]["limit_bytes"] for c in columns} - {None}
    for limit in sorted(limits):
        axes.axvline(limit / 1e6, color=BAD, linestyle=(0, (4, 3)), linewidth=1.2)
    axes.set_xlabel("peak memory, MB")
    return Figure(
        "Memory",
        "Of the process that ran the backend, Python included. Files that are mapped can be taken "
        f"back by the system.{' The dashed line is the limit.' if limits else ''}",
        _svg(figure, prefix, "Peak memory of each backend"),
    )


def _time(columns: Sequence[Column], prefix: str) -> Figure:
    figure, axes = _plot(_bars_px(columns, key=True))
    running = [column.run["seconds"]["running"] for column in columns]
    total = [column.run["seconds"]["total"] for column in columns]
    _stacked(axes, columns, running, total, ("in the backend", "in all"))
    axes.set_xlabel("seconds")
    return Figure(
        "Time",
        "How long the comparison took. No benchmark: other work on the machine is in it.",
        _svg(figure, prefix, "Time of the comparison for each backend"),
    )


def _stacked(
    axes: Any,
    columns: Sequence[Column],
    part: Sequence[float],
    whole: Sequence[float],
    names: tuple[str, str],
) -> None:
    """A bar of `whole` per column, its first `part` strong and the rest pale."""
    rest = [max(0.0, w - p) for p, w in zip(part, whole, strict=True)]
    places = range(len(columns))
    axes.barh(places, part, height=0.42, color=SERIES[0], label=names[0])
    axes.barh(places, rest, left=part, height=0.42, color=SERIES[0], alpha=0.3, label=names[1])
    _named(axes, columns)
    axes.figure.legend(
        loc="outside upper left", ncols=2, fontsize=_TEXT_PX * _POINTS_PER_PX, borderpad=0
    )


def _named(axes: Any, columns: Sequence[Column]) -> None:
    axes.set_yticks(range(len(columns)), [_plain(column.label) for column in columns])
    axes.set_ylim(len(columns) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _bars_px(columns: Sequence[Column], *, key: bool = False) -> int:
    return 62 + 34 * len(columns) + 18 * key


def _colour(place: int) -> str:
    return SERIES[place % len(SERIES)]


def _plain(label: str) -> str:
    """A label that any font can draw: nothing that a file says may stop a plot."""
    return "".join(c if " " <= c <= "~" else "?" for c in label[:24])


def _plot(height_px: int, *, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    size = (WIDTH_PX / _PX_PER_INCH, height_px / _PX_PER_INCH)
    figure = needed("matplotlib.figure").Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns)


def _svg(figure: Any, prefix: str, words: str) -> str:
    """The picture as an element for a page: no colours, ids or fonts of its own."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"(?s)<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text)
    text = re.sub(r"<svg[^>]*viewBox=\"([^\"]*)\"[^>]*>", _head(words), text, count=1)
    text = re.sub(r"xlink:href=", "href=", text)
    text = re.sub(r"(\bid=\"|href=\"#|url\(#)", rf"\g<1>{prefix}-", text)
    text = re.sub(r"(\d\.\d)\d+(?=[\s\")])", r"\1", text)  # no screen shows more
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return re.sub(r">\s+<", "><", text).strip()


def _head(words: str) -> Callable[[re.Match[str]], str]:
    return lambda found: f'<svg viewBox="{found[1]}" role="img" aria-label="{words}">'


def _has_agreement(column: Column) -> bool:
    row = fullest_row(column)
    return row is not None and row.get("top1_agreement") is not None


_PLOTS: tuple[tuple[Callable[[Column], bool], Callable[[Sequence[Column], str], Figure]], ...] = (
    (_has_agreement, _agreement),
    (lambda column: bool(column.run["blocks"]), _blocks),
    (lambda column: bool(column.run["scatter"]["reference"]), _scatter),
    (lambda column: bool(column.run["memory"].get("peak_rss_bytes")), _memory),
    (lambda column: column.run["seconds"]["total"] > 0, _time),
)
