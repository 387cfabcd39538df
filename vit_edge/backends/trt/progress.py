"""The progress of a build: TensorRT's phases, as a line on stderr."""

from __future__ import annotations

import sys
import time
from typing import Any

_TERMINAL_S = 0.1  # between two updates of the line on a terminal
_LOG_S = 10.0  # between two lines of a log


def progress_monitor(trt: Any, terminal: bool) -> Any:
    """An IProgressMonitor that writes the outermost phase, its share done and the time it takes.

    Args:
        trt: The module; its IProgressMonitor is what a monitor has to be made of.
        terminal: Whether the line may be rewritten.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Called by TensorRT, from threads of its own."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases: dict[str, list[int]] = {}  # name -> [steps done, steps]
            self._started = self._shown = time.monotonic()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """A phase begins, inside another."""
            self._phases[phase_name] = [0, num_steps]

        def step_complete(self, phase_name: str, step: int) -> bool:
            """A step is done; False would end the build."""
            if phase_name in self._phases:
                self._phases[phase_name][0] = step + 1
            now = time.monotonic()
            if now - self._shown >= (_TERMINAL_S if terminal else _LOG_S):
                self._shown = now
                self._show(now)
            return True

        def phase_finish(self, phase_name: str) -> None:
            """A phase ends, perhaps before its last step."""
            self._phases.pop(phase_name, None)
            if terminal and not self._phases:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)

        def _show(self, now: float) -> None:
            phases = " > ".join(
                f"{name} {done}/{steps}" for name, (done, steps) in list(self._phases.items())
            )
            line = f"building: {now - self._started:.0f} s, {phases}"
            if terminal:
                print(f"\r\x1b[K{line[:100]}", end="", file=sys.stderr, flush=True)
            else:
                print(line, file=sys.stderr, flush=True)

    return Monitor()
