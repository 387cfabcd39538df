"""A GPU and a TensorRT that are not there: see tests/support/fake_gpu."""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vit_edge.backends.trt import library
from vit_edge.machine import child

FOLDER = Path(__file__).resolve().parents[2] / "support" / "fake_gpu"
FAKES = ("tensorrt", "fake_cuda")


@pytest.fixture(params=["10", "11"])
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The fake CUDA's state, with the fake TensorRT of one version installed; leaks fail a test."""
    monkeypatch.setenv("FAKE_TENSORRT", request.param)
    monkeypatch.syspath_prepend(str(FOLDER))
    forget()
    cuda = importlib.import_module("fake_cuda")
    monkeypatch.setattr(ctypes, "CDLL", cuda.CDLL)
    if "real_children" not in request.fixturenames:
        monkeypatch.setattr(child, "attempted_call", called_here)
    gc.freeze()  # what is there already, torch above all, is no test's leak: not to be walked
    yield cuda.STATE
    gc.collect()
    gc.unfreeze()
    left, errors = cuda.STATE.live(), cuda.STATE.errors
    forget()
    assert (left, errors) == ({}, [])


@pytest.fixture
def real_children() -> None:
    """Builds run in child processes, as they do for users; slower."""


def called_here(target: str, *arguments: Any, **limits: Any) -> child.Call:
    """As child.attempted_call, in this process."""
    module, _, name = target.partition(":")
    value = getattr(importlib.import_module(module), name)(*arguments)
    return child.Call(value, child.ChildResult(0, "", "", 0, 0, 0.0, None, None))


def forget() -> None:
    """Let the next test import its own."""
    for name in FAKES:
        sys.modules.pop(name, None)
    library.installed_version.cache_clear()
