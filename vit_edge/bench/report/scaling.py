"""What changes with batch, threads, image size and model: a line for each way to run one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from vit_edge.bench.report.lines import Line
from vit_edge.bench.report.looks import ROWS, Looks, fastest_of, scale
from vit_edge.report.drawing import Figure, legend, plot, style, svg

Points = list[tuple[float, Line]]

_AXES = {"image size": "image side, px", "model": "multiply-adds of one image, 10⁹"}


def scalings(lines: Sequence[Line], looks: Looks, prefix: str) -> Iterator[Figure]:
    """Draw images a second over batch and threads, where they were varied.

    Args:
        lines: Of one variant.
        looks: Of the page.
        prefix: Of the ids inside the pictures.
    """
    for place, (over, of) in enumerate((("batch", _batch), ("threads", _threads))):
        series = _series(lines, of)
        if series:
            yield _scaling(series, looks, over, f"{prefix}{place}")


def across(lines: Sequence[Line], looks: Looks, prefix: str) -> Iterator[Figure]:
    """Draw latency over image size and over the size of models, where several were measured.

    Args:
        lines: Of one machine.
        looks: Of the page.
        prefix: Of the ids inside the pictures.
    """
    with style():
        if sides := _series(lines, _side):
            yield _scaling(sides, looks, "image size", f"{prefix}0")
        if models := _series(lines, _arithmetic):
            yield _scaling(models, looks, "model", f"{prefix}1")


def _scaling(series: Sequence[tuple[str, Points]], looks: Looks, over: str, prefix: str) -> Figure:
    shown = sorted(series, key=lambda one: min(line.latency_ms for _, line in one[1]))[:ROWS]
    figure, axes = plot(300)
    rate = over in ("batch", "threads")
    for _, points in shown:
        line = points[0][1]
        values = [one.numbers.images_per_s if rate else one.latency_ms for _, one in points]
        axes.plot(
            [x for x, _ in points], values, marker=looks.shape(line), markersize=6, linewidth=1.6,
            color=looks.colour(line), linestyle=looks.dashes(line), alpha=0.85,
        )  # fmt: skip
    xs = sorted({x for _, points in shown for x, _ in points})
    scale(axes, "x", xs)
    if over == "model":
        scale(axes, "y", [line.latency_ms for _, points in shown for _, line in points])
    else:
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.set_ylim(bottom=0)
    axes.set_xlabel(_AXES.get(over, over))
    axes.set_ylabel("images/s" if rate else "p50, ms")
    legend(figure, looks.key([points[0][1] for _, points in shown]))
    what = "Images a second" if rate else "Latency (p50)"
    names = ""
    if over == "model":
        found = {x: line.entry.model.variant for _, points in shown for x, line in points}
        names = f" Models: {'; '.join(f'{x:.3g} {name}' for x, name in sorted(found.items()))}."
    return Figure(
        f"Scaling with {over}",
        f"{what} over {over}; each line is one way to run it.{names}"
        f"{fastest_of(shown, len(series))}",
        svg(figure, prefix, f"{what} over {over}"),
    )


def _series(
    lines: Sequence[Line], of: Callable[[Line], tuple[str, float] | None]
) -> list[tuple[str, Points]]:
    """Configurations that differ in one number only, those with two values of it or more."""
    found: dict[str, Points] = {}
    for line in lines:
        if (place := of(line)) is not None:
            found.setdefault(place[0], []).append((place[1], line))
    return [
        (name, sorted(points, key=lambda point: point[0]))
        for name, points in found.items()
        if len({x for x, _ in points}) > 1
    ]


def _batch(line: Line) -> tuple[str, float]:
    return f"{line.bundle} {line.setup}", line.batch


def _threads(line: Line) -> tuple[str, float] | None:
    """Those that the backend says it ran with, whether they were asked for or not."""
    options = dict(line.entry.options)
    options.pop("threads", None)
    threads = line.entry.facts.get("threads")
    if not (isinstance(threads, str) and threads.isdecimal() and len(threads) < 5):
        return None
    same = f"{line.bundle} {line.entry.backend} {sorted(options.items())} {line.batch}"
    return same, int(threads)


def _arithmetic(line: Line) -> tuple[str, float] | None:
    """Models at the image size in their name: others belong to the plot of image sizes."""
    entry, work = line.entry, line.entry.model.multiply_adds
    if not work or work < 0 or not line.at_its_size:
        return None
    kind = (entry.scenario, entry.queries_per_second, entry.stage)
    return f"{line.precision} {line.setup} {line.batch} {kind}", work / 1e9


def _side(line: Line) -> tuple[str, float]:
    """The family is what the variant is called before its size: base-patch16-224."""
    model, entry = line.entry.model, line.entry
    family = "-".join(part for part in model.variant.split("-") if not part.isdecimal())
    kind = (entry.scenario, entry.queries_per_second, entry.stage)
    height, width = model.image_hw
    return f"{family} {line.precision} {line.setup} {line.batch} {kind}", math.sqrt(height * width)
