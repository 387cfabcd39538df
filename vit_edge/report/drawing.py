"""Plots for a page: matplotlib's SVG, in the colours of the page that it stands in.

Colours are written as rare hexadecimal numbers and replaced by the CSS variables of page.css, so
one picture serves light and dark; text stays text, in the page's own font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vit_edge.report.extra import needed

# In CSS pixels (1/96 inch; matplotlib's points are 1/72). As wide as a phone of 390 px leaves:
# there text is as large as it was written, and a wide page sets several plots side by side.
WIDTH_PX = 350
_PX_PER_INCH, POINTS_PER_PX = 96, 0.75
TEXT_PX = 12
TEXT_POINTS = TEXT_PX * POINTS_PER_PX

# Written by matplotlib -> what the page calls it.
INK, MUTED, GRID, BAD = "#010203", "#020304", "#030405", "#040506"
SERIES = ("#110203", "#120304", "#130405", "#140506", "#150607", "#160708")
_PARTS = ((SERIES[0], 1.0), (SERIES[1], 0.55), (SERIES[2], 0.8))  # of a bar: colour, opacity
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", BAD: "fail"} | {
    colour: f"series-{place}" for place, colour in enumerate(SERIES, 1)
}
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "vit_edge", "text.parse_math": False,
    "font.size": TEXT_POINTS, "path.simplify": False,
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


def style() -> Any:
    """The settings that plots are drawn under, as a context.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return needed("matplotlib").rc_context(_STYLE)


def plot(height_px: int, *, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """An empty figure and its axes."""
    size = (WIDTH_PX / _PX_PER_INCH, height_px / _PX_PER_INCH)
    figure = needed("matplotlib.figure").Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns)


def legend(figure: Any, handles: Sequence[Any] | None = None) -> None:
    """What colours and shapes mean, above the plot; of `handles`, or all that has a label."""
    chosen = {} if handles is None else {"handles": handles}
    figure.legend(
        **chosen, loc="outside upper left", ncols=3, fontsize=TEXT_POINTS, borderpad=0,
        handletextpad=0.4, columnspacing=1.0, handlelength=1.8,
    )  # fmt: skip


def stacked(axes: Any, parts: Sequence[Sequence[float]], names: Sequence[str]) -> None:
    """One bar a row, of several parts, and what they mean."""
    left = [0.0] * len(parts[0])
    for part, name, (drawn, alpha) in zip(parts, names, _PARTS, strict=False):
        axes.barh(range(len(left)), part, left=left, height=0.34, color=drawn, alpha=alpha,
                  label=name)  # fmt: skip
        left = [start + width for start, width in zip(left, part, strict=True)]
    legend(axes.figure)


def colour(place: int) -> str:
    """The colour of the n-th series."""
    return SERIES[place % len(SERIES)]


def plain(label: str, most: int = 24) -> str:
    """A label that any font can draw: nothing that a file says may stop a plot."""
    return "".join(c if " " <= c <= "~" else "?" for c in label[:most])


def svg(figure: Any, prefix: str, words: str) -> str:
    """The picture as an element for a page: no colours, ids or fonts of its own.

    Args:
        figure: What was drawn.
        prefix: Of its ids: they must differ on one page.
        words: What it shows, for those who cannot see it.
    """
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
    for written, variable in _VARIABLES.items():
        text = text.replace(written, f"var(--{variable})")
    return re.sub(r">\s+<", "><", text).strip()


def _head(words: str) -> Callable[[re.Match[str]], str]:
    return lambda found: f'<svg viewBox="{found[1]}" role="img" aria-label="{words}">'
