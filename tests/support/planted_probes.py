"""Probes that go wrong in every way there is, for tests/doctor/test_doctor.py; cheap to import."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any

from vit_edge.doctor.findings import Finding


def fine(root: Path) -> Finding:
    return Finding("ok", "fine")


def steering(root: Path) -> Finding:
    return Finding("ok", "red \x1b[31m and \ud800 and a bell \a")


def raises(root: Path) -> Finding:
    raise RuntimeError("the planted reason\nand a second line")


def leaves(root: Path) -> Finding:
    sys.exit("the planted exit")


def vanishes(root: Path) -> Finding:
    os._exit(0)


def aborts(root: Path) -> Finding:
    print("the planted last words", file=sys.stderr, flush=True)
    os.abort()


def crashes(root: Path) -> Finding:
    ctypes.string_at(8)
    raise AssertionError("unreachable")


def hangs(root: Path) -> Finding:
    time.sleep(600)
    raise AssertionError("unreachable")


def recurses(root: Path) -> Finding:
    return recurses(root)


def answers_nonsense(root: Path) -> Any:
    return 42


def cannot_be_pickled(root: Path) -> Any:
    return lambda: None
