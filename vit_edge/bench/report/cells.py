"""A configuration's numbers as text, the same in every table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vit_edge.bench.report.lines import Line
from vit_edge.bench.results.runs import BuildMemory, Built
from vit_edge.bench.results.table import Summary, answers

NOISY = "⚠"


class Cell(NamedTuple):
    """One value: as it is shown, and as it is sorted."""

    text: str
    value: float | None = None  # None: by its text
    note: str = ""  # in small print
    number: bool = False


def table(lines: Sequence[Line]) -> tuple[list[str], list[list[Cell]]]:
    """The heading and the rows of configurations that were measured.

    What only some devices and backends tell (energy, temperature, throttling, what building takes)
    has a column if any of the configurations has it.
    """
    found = [_row(line) | _where_known(line) for line in lines]
    heading = list(dict.fromkeys(name for row in found for name in row))
    heading.sort(key=lambda name: name == "answers")  # wide, so it stands last
    kept = [name for name in heading if any(row[name].text != "-" for row in found)]
    return kept, [[row[name] for name in kept] for row in found]


def _row(line: Line) -> dict[str, Cell]:
    found = line.numbers
    value, low, high = found.latency_ms["p50"]
    memory = found.memory_bytes
    file_bytes = line.entry.model.model_bytes or None  # 0: nobody told
    return {
        "bundle": Cell(line.bundle),
        "precision": Cell(line.precision),
        "backend": Cell(line.setup),
        "batch": _number(line.batch, str),
        "p50 ms": Cell(
            ms(value) + f" {NOISY}" * line.noisy, value, interval(low, high), number=True
        ),
        "p90 ms": _tail(found, "p90"),
        "p99 ms": _tail(found, "p99"),
        "images/s": _number(found.images_per_s, ms),
        "cold start s": _number(found.cold_s.total, ms),
        "own MB": _number(memory.anonymous, mb),
        "peak MB": _number(memory.peak, mb),
        "file MB": _number(file_bytes, mb),
        "answers": Cell(
            answers(line.entry.parity) or "not looked at", _worth(line), _agreement(line)
        ),
    }


def _where_known(line: Line) -> dict[str, Cell]:
    found = line.numbers
    built = line.entry.built or Built()
    build_memory = built.build_memory_bytes or BuildMemory()
    throttled = ", ".join(found.throttled)
    return {
        "GPU MB": _number(found.gpu_memory_bytes, mb),
        "J/image": _number(found.energy_j_per_image, ms),
        "highest °C": _number(found.temperature_c, ms),
        "throttled": Cell(throttled or "-"),
        "build s": _number(built.build_s, ms),
        "build MB": _number(build_memory.peak, mb),
        "engine MB": _number(built.engine_bytes, mb),
        "download MB": _number(built.download_bytes, mb),
    }


def ms(value: float) -> str:
    """Milliseconds, seconds, or a rate, with the digits that a reader compares."""
    if value == 0:
        return "0"
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def interval(low: float, high: float) -> str:
    """The ends of an interval of times, of which none is below nothing."""
    return f"{ms(max(0.0, low))} to {ms(high)}"


def p50(line: Line) -> str:
    """The median with its interval, for a row that stands alone."""
    value, low, high = line.numbers.latency_ms["p50"]
    return f"{ms(value)} ({interval(low, high)}){f' {NOISY}' if line.doubtful else ''}"


def mb(size_bytes: float) -> str:
    """Bytes in MB (10**6)."""
    size = size_bytes / 1e6
    return f"{size:.1f}" if size < 10 else f"{size:.0f}"


def _number(value: float | None, written: Callable[[Any], str]) -> Cell:
    if value is None:
        return Cell("-", number=True)
    return Cell(written(value), float(value), number=True)


def _tail(found: Summary, name: str) -> Cell:
    """A percentile, if it has enough samples."""
    return _number(found.latency_ms[name].value if name in found.enough else None, ms)


def _agreement(line: Line) -> str:
    parity = line.entry.parity
    agreement = None if parity is None else parity.statistics.get("top1_agreement")
    return "" if agreement is None else f"top-1 {100 * agreement:.4g} %"


def _worth(line: Line) -> float | None:
    """For sorting: dB; more than any where the answers are the same, less where they are wrong."""
    if line.wrong:
        return -1e3
    return None if line.worth_db is None else min(line.worth_db, 1e3)
