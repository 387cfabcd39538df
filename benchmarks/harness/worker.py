"""Calls answered by a process of its own that stays alive, so that neighbours do not disturb it.

Runtimes keep threads that spin for a while after each run, allocators that keep what they had, and
versions that do not go together. What is compared therefore lives in one process each, and the
parent takes turns among them:

    in the child     serve({"seconds": lambda batch: ..., "facts": lambda: {...}})
    in the parent    with Worker([sys.executable, "child.py"]) as worker:
                         worker.call("seconds", batch=8)

One line of JSON each way, through the child's standard input and output. Linux and other POSIX.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from vit_edge.errors import ResourceError

TIMEOUT_S = 300.0  # of one call: large models on small boards load for minutes
GRACE_S = 5.0  # to end by itself once its input is closed
_LAST_LINES = 10


def serve(calls: Mapping[str, Callable[..., Any]]) -> None:
    """Answer the parent's calls until it closes the pipe.

    What a call raises goes to the parent as an error, and the next call is answered. Whatever else
    prints on standard output is sent to standard error: the pipe is for answers.

    Args:
        calls: By name; called with keyword arguments, and their results must fit into JSON.
    """
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            if request["call"] not in calls:
                raise LookupError(f"no call {request['call']!r}, only {', '.join(calls)}")
            answer = {"value": calls[request["call"]](**request["arguments"])}
        except Exception as error:  # the parent's to judge
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Worker:
    """A child process that answers calls; close it, or use it in a with statement."""

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
        """Start it; it gets ready while its first call waits.

        Args:
            argv: The command, which must come to call `serve`.
            env: Its whole environment; ours by default.

        Raises:
            ResourceError: It could not be started.
        """
        self._name = " ".join(argv)[:200]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  a file never fills up, as pipes do
        self._unread = b""
        try:
            self._child = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=None if env is None else dict(env),
                bufsize=0,
            )
        except OSError as error:
            self._stderr.close()
            raise ResourceError(f"{argv[0]} could not be started: {error}") from None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, name: str, *, timeout_s: float = TIMEOUT_S, **arguments: Any) -> Any:
        """Call one of what it serves, and return the result.

        Args:
            name: Of the call.
            timeout_s: It is killed after this long.
            arguments: Of the call; what JSON can hold.

        Raises:
            ResourceError: The call failed, or the child died, is closed, or took too long.
        """
        request = json.dumps({"call": name, "arguments": arguments}) + "\n"
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(request.encode())
        except (OSError, ValueError):  # it died, or is closed
            raise self._ended(name) from None
        answer = json.loads(self._line(name, timeout_s))
        if "error" in answer:
            raise ResourceError(f"{self._name}: {name} failed: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        """End it, by force if it does not end by itself; idempotent."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        try:
            self._child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
        self._stderr.close()

    def _line(self, name: str, timeout_s: float) -> bytes:
        assert self._child.stdout is not None
        pipe = self._child.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self._child.kill()
                raise ResourceError(f"{self._name}: no answer to {name} within {timeout_s:g} s")
            part = os.read(pipe, 65536)
            if not part:
                raise self._ended(name)
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _ended(self, name: str) -> ResourceError:
        if self._stderr.closed:
            return ResourceError(f"{self._name}: {name} was called after it was closed")
        code = self._child.wait(GRACE_S)
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
        last = "".join(f"\n  | {line}" for line in lines)
        return ResourceError(f"{self._name}: ended with exit code {code} during {name}{last}")
