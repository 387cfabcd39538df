"""How far a long run is: a line on stderr, since stdout holds the result."""

from __future__ import annotations

import sys
import time

_TERMINAL_S = 0.1  # between two updates of the line on a terminal
_BAR = 20  # characters
_LOG_S = 30.0  # between two lines of a log: some hundred for an hour


class Progress:
    """Counts; on a terminal in one line that changes, elsewhere in a line every half minute.

    >>> with Progress("evaluating", 50_000) as progress:  # doctest: +SKIP
    ...     progress(1)
    """

    def __init__(self, what: str, total: int | None, *, quiet: bool = False) -> None:
        """Begin to count.

        Args:
            what: In front of the numbers.
            total: How many images there will be; None where nobody knows.
            quiet: Show nothing: where results are printed on the same terminal.
        """
        self._quiet = quiet
        self._what = what
        self._total = total
        self._done = self._free = 0
        self._terminal = sys.stderr.isatty()
        self._every_s = _TERMINAL_S if self._terminal else _LOG_S
        self._started = self._shown = time.monotonic()

    def __call__(self, images: int, *, free: bool = False) -> None:
        """Count images; those that were `free`, known from before, say nothing of the speed."""
        self._done += images
        self._free += images if free else 0
        now = time.monotonic()
        if now - self._shown >= self._every_s and not self._quiet:
            self._shown = now
            self._show(self._line(now), end="" if self._terminal else "\n")

    def tell(self, text: str) -> None:
        """Print a line on stderr, where the count does not stand."""
        if self._terminal and not self._quiet:
            self._show("", end="")
        print(text, file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._terminal and not self._quiet:
            self._show("", end="")

    def _line(self, now: float) -> str:
        speed = (self._done - self._free) / max(now - self._started, 1e-9)
        pace = f", {speed:.3g} a second" if speed else ""
        if self._total is None:
            return f"{self._what}: {self._done:,} images{pace}"
        line = f"{self._what}: {self._bar()}{self._done:,} of {self._total:,} images{pace}"
        if speed:
            line += f", {_duration(max(self._total - self._done, 0) / speed)} left"
        return line

    def _bar(self) -> str:
        """A bar for a terminal; a log is read and not looked at."""
        if not self._terminal or not self._total:
            return ""
        full = min(_BAR * self._done // self._total, _BAR)
        return f"[{'#' * full}{'-' * (_BAR - full)}] "

    def _show(self, line: str, *, end: str) -> None:
        start = "\r\x1b[K" if self._terminal else ""  # back to the start, and clear the line
        print(f"{start}{line}", end=end, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
