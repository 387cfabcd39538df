"""A finding, and the probe that makes it: whatever happens, there is a finding."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vit_edge.errors import VitEdgeError
from vit_edge.machine import child

Mark = Literal["ok", "absent", "trouble"]

PROBE_TIMEOUT_S = 30.0  # a runtime's first import from an SD card takes seconds; this is a hang


@dataclass(frozen=True)
class Finding:
    """The facts about one thing."""

    mark: Mark  # absent: not here, which may be fine; trouble: here, and something is wrong
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)  # the same for programs, fit for JSON


class Probe(NamedTuple):
    """Looks at one thing.

    Attributes:
        section: Under which heading the finding is shown.
        name: What it is about.
        target: "package.module:function", called with the root directory; returns a Finding.
        isolated: Whether it runs in a child process: all that loads foreign libraries does.
    """

    section: str
    name: str
    target: str
    isolated: bool = False


def find_out(probe: Probe, root: Path, timeout_s: float = PROBE_TIMEOUT_S) -> Finding:
    """Run a probe; one that raises, dies or hangs becomes a finding too.

    Args:
        probe: The probe.
        root: Where proc/, sys/, etc/ and the like are.
        timeout_s: For an isolated probe.
    """
    if probe.isolated:
        answer, reason = in_child(probe.target, root, timeout_s=timeout_s)[:2]
    else:
        try:
            answer, reason = _call(probe.target, root), ""
        except (Exception, SystemExit) as error:
            answer, reason = None, f"{type(error).__name__}: {error}"
    if isinstance(answer, Finding):
        return answer
    reason = reason or f"{probe.target} returned {type(answer).__name__}"
    return Finding("trouble", f"could not be found out: {one_line(reason)}", {"error": reason})


class Outcome(NamedTuple):
    """The outcome of a function that was called in a child process."""

    value: Any  # None where it did not return
    reason: str  # why it did not; empty if it did
    refused: bool = False  # one of our own errors, with its remedy, and no accident
    peak_rss_bytes: int = 0


def in_child(
    target: str, *arguments: Any, timeout_s: float, memory_limit_bytes: int | None = None
) -> Outcome:
    """Call a function in a child process; never raises. See machine/child.py."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a runtime's warnings are no finding
            call = child.attempted_call(
                target, *arguments, timeout_s=timeout_s, memory_limit_bytes=memory_limit_bytes
            )
    except VitEdgeError as error:
        return Outcome(None, str(error), refused=True)
    except Exception as error:
        return Outcome(None, f"{type(error).__name__}: {error}")
    if call.child.death is None and call.child.returncode == 0:
        return Outcome(call.value, "", peak_rss_bytes=call.child.peak_rss_bytes)
    said = call.child.stderr.strip().splitlines()[-1:]
    died = call.child.death or f"it ended with exit code {call.child.returncode}"
    return Outcome(None, "; ".join([died, *said]))


def one_line(text: str) -> str:
    """The first line of a message."""
    return (text.strip().splitlines() or [""])[0]


def _call(target: str, root: Path) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)(root)
