"""How configurations look on every plot of a page: colours, shapes, axes, names of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vit_edge.bench.report.lines import Line
from vit_edge.bench.report.machines import PRECISIONS
from vit_edge.report.drawing import MUTED, colour, plain
from vit_edge.report.extra import needed

ROWS = 20  # of a plot that names each configuration: more would be a table
_INSET = 0.012  # of the width: names do not touch the axis
_LABEL = 46  # characters above a row: a phone's width
_WIDE = 6.0  # largest over smallest from which a logarithmic axis reads better
_SHAPES = "osD^vPX<>*phd8"  # of backends; competitors are some, too
_DASHES = ("-", (0, (4, 1)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (2, 1)), (0, (5, 1, 1, 1, 1, 1)))


class Looks:
    """Which colour a precision has, and which shape a backend, on a whole page."""

    def __init__(self, lines: Sequence[Line]) -> None:
        found = {line.precision for line in lines}
        known = [name for name in PRECISIONS if name in found]
        self._precisions = [*known, *sorted(found - set(known))]
        self._backends = sorted({line.entry.backend for line in lines})

    def colour(self, line: Line) -> str:
        """Of its precision."""
        return colour(self._precisions.index(line.precision))

    def shape(self, line: Line) -> str:
        """Of its backend."""
        return _SHAPES[self._backends.index(line.entry.backend) % len(_SHAPES)]

    def dashes(self, line: Line) -> Any:
        """Of a line: a second sign of the precision, for those who see colours as alike."""
        return _DASHES[self._precisions.index(line.precision) % len(_DASHES)]

    def key(self, lines: Sequence[Line]) -> list[Any]:
        """What the legend shows of some configurations."""
        mark = needed("matplotlib.lines").Line2D
        precisions = {line.precision: line for line in lines}
        backends = {line.entry.backend: line for line in lines}
        return [
            mark([], [], color=self.colour(precisions[name]), linewidth=3,
                 linestyle=self.dashes(precisions[name]), label=plain(name))
            for name in self._precisions if name in precisions
        ] + [
            mark([], [], color=MUTED, marker=self.shape(backends[name]), linestyle="none",
                 markersize=7, label=plain(name))
            for name in self._backends if name in backends
        ]  # fmt: skip


def named(axes: Any, labels: Sequence[str]) -> None:
    """Names above their rows: beside them they would leave no room on a phone."""
    for place, label in enumerate(labels):
        axes.text(
            _INSET,
            place - 0.33,
            label,
            transform=axes.get_yaxis_transform(),
            va="bottom",
            clip_on=False,
        )
    axes.set_yticks([])
    axes.set_ylim(len(labels) - 0.45, -0.95)
    axes.grid(axis="y", visible=False)


def scale(axes: Any, which: str, values: Sequence[float]) -> bool:
    """A logarithmic axis with plain numbers, if the values are far apart; whether it is one."""
    low, high = min(values), max(values)
    if not (low > 0 and high / low > _WIDE):
        return False
    ticker = needed("matplotlib.ticker")
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    subs = (1, 2, 5) if high / low < 200 else (1,)
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())
    return True


def label(line: Line) -> str:
    """The name of a row."""
    return plain(f"{line.bundle}, {line.setup}", _LABEL)


def fastest_of(shown: Sequence[object], count: int) -> str:
    """Say so where not all are shown."""
    return f" The {len(shown)} fastest of {count}." if len(shown) < count else ""


def rows_px(lines: Sequence[Line], *, key: bool = False) -> int:
    """The height of a plot with rows, and perhaps a legend."""
    return 60 + 40 * len(lines) + 18 * key
