"""Bundles that several tests need: one run of the suite exports each of them once.

Workers of pytest-xdist share what they export. Each worker gets a copy of its own, so that a test
that writes into a bundle disturbs the tests of its own worker at most, as it does without workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vit_edge.bundle import Bundle
from vit_edge.machine.child import run_child

TESTING = ("--variant", "testing", "--checkpoint", "seeded:0", "--max-batch", "4")


def trained_on_cifar10(precision: str, shared_data: Path) -> tuple[str, ...]:
    """The arguments for vit-cifar10 in a precision, calibrated and gated on CIFAR-10.

    The folder of 260 images is what judges, since every test compares with all of them.
    """
    images = shared_data / "images" / "cifar10"
    arguments = ("--checkpoint", "embedded", "--max-batch", "8", "--precision", precision)
    if precision != "fp32":
        arguments += ("--calibration", str(images / "eval"))
    return (*arguments, "--golden-images", str(images / "calibration"))


class Exporter:
    """Export bundles by their arguments on the command line, each once for all workers."""

    def __init__(self, shared: Path, own: Path | None) -> None:
        """Remember the folders.

        Args:
            shared: Where the workers keep what they export.
            own: Where this worker keeps its copies; None where there is one process only.
        """
        self.shared = shared
        self.own = own
        self.bundles: dict[tuple[str, ...], Bundle] = {}

    def __call__(self, *arguments: str) -> Bundle:
        """Return the bundle that `vit_edge.export` makes of these arguments."""
        if arguments not in self.bundles:
            self.bundles[arguments] = Bundle.read(self._borrow(arguments))
        return self.bundles[arguments]

    def _borrow(self, arguments: tuple[str, ...]) -> Path:
        name = hashlib.sha256(json.dumps(arguments).encode()).hexdigest()[:16]
        folder = self.shared / name
        with locked(self.shared / f"{name}.lock"):
            if not folder.exists():
                _export(arguments, folder)
        if self.own is None:
            return folder
        return Path(shutil.copytree(folder, self.own / name))


def exporter(factory: pytest.TempPathFactory) -> Exporter:
    """The exporter of this process."""
    own, shared = factory.mktemp("bundles"), shared_folder(factory, "bundles")
    return Exporter(shared or own, own if shared else None)


def shared_folder(factory: pytest.TempPathFactory, name: str) -> Path | None:
    """A folder that all workers see; None where there is one process only."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return None
    folder = factory.getbasetemp().parent / name  # the parent is the same for all workers
    folder.mkdir(exist_ok=True)
    return folder


def base_export(factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """base-patch16-224 as a process of its own exports it, and that process's peak memory."""
    folder = shared_folder(factory, "base") or factory.mktemp("base")
    bundle, peak = folder / "bundle", folder / "peak_rss_bytes"
    with locked(folder / "lock"):
        if not peak.exists():
            shutil.rmtree(bundle, ignore_errors=True)
            arguments = ["--variant", "base-patch16-224", "--checkpoint", "seeded:0"]
            command = [sys.executable, "-m", "vit_edge.export", *arguments, "--max-batch", "32"]
            done = run_child([*command, "--out", str(bundle)]).check("export")
            peak.write_text(str(done.peak_rss_bytes))
    return bundle, int(peak.read_text())


def _export(arguments: tuple[str, ...], out: Path) -> None:
    """Export without a word: whoever asks first must not be told apart from the others."""
    pytest.importorskip("torch", reason="making a bundle needs the export extra")
    from vit_edge.export.__main__ import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main([*arguments, "--out", str(out)])
    assert code == 0, printed.getvalue()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one worker at a time do what several need."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
