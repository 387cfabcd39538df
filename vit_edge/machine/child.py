"""Run a command in a child process, with a memory limit, and say what it cost and how it ended.

Some work may die for lack of memory (compiling an engine, calibrating), or must be measured as a
whole (a cold start). It runs in its own process, so that the parent lives to report what happened.

    result = run_child([sys.executable, "-m", "vit_edge", ...], memory_limit_bytes=300 << 20)
    answer = call_in_child("math:factorial", 20, timeout_s=600)

Linux only: the numbers come from /proc. Where we may make a memory
cgroup, it is the limit: the kernel enforces it, and it counts the page cache too. Elsewhere the
process tree is watched, and killed up to POLL_S after it passes the limit. `limited_by` says which.
"""

from __future__ import annotations

import codecs
import ctypes
import dataclasses
import importlib
import math
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from vit_edge.errors import ResourceError, UsageError
from vit_edge.machine import cgroups, processes

POLL_S = 0.02  # what lives shorter is seen through the high-water marks only
_TERMINAL = "VIT_EDGE_STDERR_IS_TERMINAL"  # of a child's environment
_UTF_8 = {"PYTHONIOENCODING": "utf-8:backslashreplace"}  # what we decode, whatever the locale
_MIB = 1 << 20
_INEXACT_BYTES = 4 * _MIB  # the kernel counts pages per CPU, and sums them up now and then


@dataclass(frozen=True)
class ChildResult:
    """The output of a child process, its cost, and what it died of."""

    returncode: int  # negative: killed by that signal
    stdout: str
    stderr: str
    peak_rss_bytes: int  # of the process tree, the mapped part of the page cache included
    peak_anonymous_bytes: int  # the part the kernel cannot take back; sampled every POLL_S
    wall_s: float
    death: str | None  # what ended it, unless it ended by itself
    limited_by: Literal["cgroup", "watching"] | None  # None without a limit

    def check(self, what: str) -> ChildResult:
        """Return this result if the child ended by itself with exit code 0.

        Raises:
            ResourceError: It died or failed; the message ends with what it printed last.
        """
        if self.death is None and self.returncode == 0:
            return self
        last = "".join(f"\n  | {line}" for line in self.stderr.splitlines()[-10:])
        raise ResourceError(
            f"{what} did not finish: {self.death or f'exit code {self.returncode}'} "
            f"(after {self.wall_s:.1f} s, peak {self.peak_rss_bytes / _MIB:.0f} MiB){last}"
        )


def run_child(
    argv: Sequence[str],
    *,
    memory_limit_bytes: int | None = None,
    timeout_s: float | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    echo: bool = False,
    poll_s: float = POLL_S,
) -> ChildResult:
    """Run a command to its end, and measure the memory of it and of all its children.

    Args:
        argv: The command. Its standard input is empty.
        memory_limit_bytes: It is killed when it and its children need more.
        timeout_s: It is killed after this long.
        env: Its whole environment; ours by default.
        cwd: Where it runs; here by default.
        echo: Pass on what it writes to stderr, as it comes.
        poll_s: How often it is looked at, which takes a little of the machine.

    Returns:
        The result, also of a command that failed or was killed: see `death`, or call check().

    Raises:
        ResourceError: It could not be started.
        UsageError: This is not Linux, or the limit is not positive.
    """
    if not sys.platform.startswith("linux"):
        raise UsageError(f"measuring child processes needs Linux's /proc; this is {sys.platform}")
    if memory_limit_bytes is not None and memory_limit_bytes <= 0:
        raise UsageError(f"a memory limit must be positive, not {memory_limit_bytes} bytes")
    group = cgroups.memory_group(memory_limit_bytes) if memory_limit_bytes else None
    own_group = next(cgroups.own_groups("memory"), Path())
    kills_before = cgroups.oom_kills(own_group)
    # Files and not pipes: they never fill up, and keep what a killed child wrote.
    with _waiting_for_children, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        try:
            child = subprocess.Popen(
                group.command(list(argv)) if group else list(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,  # Ctrl-C is ours to handle, and killpg reaches all of it
            )
        except (OSError, ValueError) as error:
            if group:
                group.close()
            raise ResourceError(f"{argv[0]} could not be started: {error}") from None
        echoed = _Echo(err.fileno()) if echo else None
        watch = _Watch(child.pid, None if group else memory_limit_bytes, timeout_s, echoed)
        try:
            child.returncode, peak_rss_bytes = watch.until_dead(poll_s)
            wall_s = time.monotonic() - started
            by_limit = group is not None and cgroups.oom_kills(group.path) > 0
        finally:
            watch.kill()
            if group:
                group.close()
        death = watch.reason
        if by_limit or death == "memory":
            death = f"it needed more than its limit of {(memory_limit_bytes or 0) / _MIB:.0f} MiB"
        elif child.returncode == -signal.SIGKILL and cgroups.oom_kills(own_group) > kills_before:
            death = "the kernel killed it: the memory of this machine or container ran out"
        elif death is None and child.returncode < 0:
            death = f"killed by {_signal_name(-child.returncode)}"
        return ChildResult(
            returncode=child.returncode,
            stdout=_content(out),
            stderr=_content(err),
            peak_rss_bytes=peak_rss_bytes,
            peak_anonymous_bytes=watch.peak_anonymous_bytes,
            wall_s=wall_s,
            death=death,
            limited_by=("cgroup" if group else "watching") if memory_limit_bytes else None,
        )


class Call(NamedTuple):
    """The value a function returned in a child, and what the child cost."""

    value: Any
    child: ChildResult


def call_in_child(
    target: str,
    *arguments: Any,
    memory_limit_bytes: int | None = None,
    timeout_s: float | None = None,
) -> Any:
    """Call "package.module:function" in a fresh Python process and return what it returns.

    See `measured_call`.
    """
    return measured_call(
        target, *arguments, memory_limit_bytes=memory_limit_bytes, timeout_s=timeout_s
    ).value


def measured_call(
    target: str,
    *arguments: Any,
    memory_limit_bytes: int | None = None,
    timeout_s: float | None = None,
) -> Call:
    """Call "package.module:function" in a fresh Python process, and measure that process.

    As `attempted_call`, but a child that died is an error.

    Raises:
        ResourceError: The child died, or ended without an answer.
        Exception: What the function raised.
    """
    call = attempted_call(
        target, *arguments, memory_limit_bytes=memory_limit_bytes, timeout_s=timeout_s
    )
    call.child.check(target)
    return call


def attempted_call(
    target: str,
    *arguments: Any,
    memory_limit_bytes: int | None = None,
    timeout_s: float | None = None,
    echo: bool = False,
    poll_s: float = POLL_S,
) -> Call:
    """Call "package.module:function" in a fresh Python process that may die.

    Args:
        target: The function by name.
        arguments: What it is called with; pickled, as is its result.
        memory_limit_bytes: See run_child.
        timeout_s: See run_child.
        echo: See run_child; what it wrote is passed on at its end otherwise.
        poll_s: See run_child.

    Returns:
        What the function returned; None where the child did not end by itself, see `child.death`.

    Raises:
        Exception: What the function raised.
    """
    with tempfile.TemporaryDirectory(prefix="vit_edge-") as folder:
        request, answer = Path(folder, "request"), Path(folder, "answer")
        request.write_bytes(pickle.dumps((target, arguments)))
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        terminal = "1" if echo and shown_on_terminal() else "0"
        done = run_child(
            [sys.executable, "-m", "vit_edge.machine.child", str(request), str(answer)],
            memory_limit_bytes=memory_limit_bytes,
            timeout_s=timeout_s,
            env={**os.environ, **_UTF_8, "PYTHONPATH": path, _TERMINAL: terminal},
            echo=echo,
            poll_s=poll_s,
        )
        if done.returncode == os.EX_IOERR:
            death = f"its answer could not be written below {folder} (TMPDIR)"
            done = dataclasses.replace(done, death=death)
        if done.death is not None or done.returncode != 0:
            return Call(None, done)
        if not echo:
            _pass_on(done.stderr)
        try:  # our own child wrote it, into a folder that only we can read
            outcome, value = pickle.loads(answer.read_bytes())
        except Exception as error:  # it left before, or what it raised cannot be rebuilt here
            death = f"it ended without an answer that can be read ({error!r})"
            return Call(None, dataclasses.replace(done, death=death))
    if outcome == "raised":
        raise value
    return Call(value, done)


def shown_on_terminal() -> bool:
    """True if what is written to stderr comes to a terminal, if by way of parents that echo it."""
    return os.environ.get(_TERMINAL) == "1" or (_has_stderr() and sys.stderr.isatty())


def _has_stderr() -> bool:
    """Python has none where it was closed before the start; type checkers do not know that."""
    return getattr(sys, "stderr", None) is not None


def _pass_on(text: str) -> None:
    if _has_stderr():
        sys.stderr.write(text)
        sys.stderr.flush()


class _WaitingForChildren:
    """While SIGCHLD is ignored, as some parents leave it, the kernel forgets how a child ended.

    By sigaction's elder, since Python lets only the main thread change it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0
        self._ignored = False

    def __enter__(self) -> None:
        with self._lock:
            self._waiting += 1
            if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN and self._waiting == 1:
                self._ignored = True
                _set_handler(signal.SIGCHLD, signal.SIG_DFL)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._waiting -= 1
            if self._ignored and self._waiting == 0:
                self._ignored = False
                _set_handler(signal.SIGCHLD, signal.SIG_IGN)


def _set_handler(number: int, handler: signal.Handlers) -> None:
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(number, handler)


_waiting_for_children = _WaitingForChildren()


class _Echo:
    """Passes on what a child has written to a file."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.at = 0
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self) -> None:
        """Write to our stderr what is new."""
        # not read(): the child writes where the position is that it shares with us
        while piece := os.pread(self.handle, _MIB, self.at):
            self.at += len(piece)
            _pass_on(self.decoder.decode(piece))


class _Watch:
    """Polls a process tree: what it uses, and whether it must be stopped."""

    def __init__(
        self,
        pid: int,
        limit_bytes: int | None,
        timeout_s: float | None,
        echo: Callable[[], None] | None = None,
    ) -> None:
        self.pid = pid
        self.echo = echo or (lambda: None)
        self.limit_bytes = math.inf if limit_bytes is None else limit_bytes
        self.deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        self.timeout_s = timeout_s
        self.peak_bytes = 0
        self.peak_anonymous_bytes = 0
        self.reason: str | None = None

    def until_dead(self, poll_s: float) -> tuple[int, int]:
        """Wait for the process; return its exit code and the tree's peak in bytes."""
        exited = os.pidfd_open(self.pid)
        try:
            waiting = select.poll()
            waiting.register(exited, select.POLLIN)
            self.look()
            while not waiting.poll(1000 * poll_s):
                self.look()
        finally:
            os.close(exited)
            self.kill()  # what it left behind; itself, if we are being interrupted
            _, status, usage = os.wait4(self.pid, 0)
            self.echo()
        # The kernel hands our own high-water mark on to a child that we start; only a larger one
        # is the child's.
        own_bytes = processes.status_bytes(os.getpid()).get("VmHWM", 0) + _INEXACT_BYTES
        mark_bytes = 1024 * usage.ru_maxrss
        peak_bytes = max(self.peak_bytes, mark_bytes if mark_bytes > own_bytes else 0)
        return os.waitstatus_to_exitcode(status), peak_bytes

    def look(self) -> None:
        """Measure once; kill what is over its limit or its time."""
        self.echo()
        now_bytes, mark_bytes, anonymous_bytes = processes.tree_memory_bytes(self.pid)
        self.peak_bytes = max(self.peak_bytes, now_bytes, mark_bytes)
        self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, anonymous_bytes)
        if now_bytes > self.limit_bytes:
            self.reason = "memory"
            self.kill()
        elif time.monotonic() > self.deadline:
            self.reason = f"it took longer than {self.timeout_s:g} s"
            self.kill()

    def kill(self) -> None:
        """End the process and all that it started."""
        for pid in processes.process_tree(self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _content(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", "replace")


def _main(request: str, answer: str) -> None:
    """The child's side of call_in_child."""
    target, arguments = pickle.loads(Path(request).read_bytes())
    module, _, name = target.partition(":")
    outcome: tuple[str, Any]
    try:
        outcome = "returned", getattr(importlib.import_module(module), name)(*arguments)
    except Exception as error:
        outcome = "raised", error
    try:
        Path(answer).write_bytes(pickle.dumps(outcome))
    except OSError as error:
        with suppress(OSError):  # what it prints goes to the same disk
            print(f"{answer}: {error.strerror}", file=sys.stderr)
        sys.exit(os.EX_IOERR)


if __name__ == "__main__":
    _main(*sys.argv[1:])
