"""The plot to choose by: latency against the answers' worth against memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vit_edge.bench.report.cells import mb, ms
from vit_edge.bench.report.lines import Line
from vit_edge.bench.report.looks import Looks, scale
from vit_edge.report.drawing import BAD, INK, Figure, legend, plot, svg

_AREA = (24.0, 200.0)  # of marks, in square points: what can be seen, the most memory
_SAME_DB = 6.0  # above the best finite one: where answers without any noise are drawn


def pareto(lines: Sequence[Line], looks: Looks, prefix: str) -> Figure:
    """Draw configurations, and the front of those whose answers hold.

    Args:
        lines: Of one batch size; of each it is known what its answers are worth.
        looks: Of the page.
        prefix: Of the ids inside the picture.
    """
    figure, axes = plot(370)
    worths = [math.inf if line.worth_db is None else line.worth_db for line in lines]
    finite = [worth for worth in worths if worth < math.inf]
    top = max(finite, default=40.0) + _SAME_DB
    points = [(line.latency_ms, min(w, top)) for line, w in zip(lines, worths, strict=True)]
    sizes = [line.peak_bytes for line in lines]
    for line, (x, y), size in zip(lines, points, sizes, strict=True):
        axes.scatter(
            [x], [y], s=_area(size, sizes), marker="x" if line.wrong else looks.shape(line),
            color=BAD if line.wrong else looks.colour(line), alpha=0.8, zorder=2,
        )  # fmt: skip
    holding = [place for place, line in enumerate(lines) if not line.wrong]
    best = [holding[place] for place in front([points[place] for place in holding])]
    axes.plot(
        *zip(*(points[place] for place in best), strict=True) if best else ([], []),
        drawstyle="steps-post", color=INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1,
    )  # fmt: skip
    for number, place in enumerate(best, 1):
        axes.annotate(
            str(number), points[place], xytext=(9, 7), textcoords="offset points", weight="bold"
        )
    scale(axes, "x", [x for x, _ in points])
    axes.margins(0.14, 0.16)
    axes.set_xlabel("p50, ms")
    axes.set_ylabel("answers: SQNR, dB")
    legend(figure, looks.key(lines))
    names = "; ".join(f"{number} {_said(lines[place])}" for number, place in enumerate(best, 1))
    memory = " to ".join(dict.fromkeys([mb(min(sizes)), mb(max(sizes))]))
    same = " At the very top: no noise at all." if len(finite) < len(lines) else ""
    wrong = " Crosses: answers that do not hold." if any(line.wrong for line in lines) else ""
    return Figure(
        "Speed, answers, memory",
        f"Batch {lines[0].batch}. Left and up is better; the area is the peak memory, {memory} MB. "
        f"Dashed: the front, which nothing beats in both: {names or 'none holds'}.{same}{wrong}",
        svg(figure, prefix, "Latency against the signal-to-noise ratio of the answers"),
    )


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other is both faster and more exact than.

    Args:
        points: (time, worth).

    Returns:
        Their places, the fastest first.
    """
    found: list[int] = []
    best = -math.inf
    for place in sorted(range(len(points)), key=lambda at: (points[at][0], -points[at][1])):
        if points[place][1] > best:
            found.append(place)
            best = points[place][1]
    return found


def _area(size: float, sizes: Sequence[float]) -> float:
    """Of a mark: in proportion to the memory, and large enough to be seen."""
    least, most = _AREA
    return max(least, most * size / max(sizes)) if max(sizes) > 0 else least


def _said(line: Line) -> str:
    worth = line.worth_db
    noise = "exact" if worth is None or worth == math.inf else f"{worth:.0f} dB"
    where = f"{line.bundle} on {line.setup}"
    return f"{where}, {ms(line.latency_ms)} ms, {noise}, {mb(line.peak_bytes)} MB"
