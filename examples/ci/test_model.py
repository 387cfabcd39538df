"""Tests for the repository that deploys a bundle: red when a runtime or an export changes answers.

    pip install "vit-edge[cpu]" pytest
    BUNDLE=bundles/cifar10 pytest examples/ci

Nothing here needs PyTorch: the bundle carries the reference's answers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import vit_edge
from vit_edge import Predictor
from vit_edge.parity.pytest_plugin import Check

BUNDLE = os.environ.get("BUNDLE", "bundles/cifar10")
PHOTOS = Path(vit_edge.__file__).parent / "data" / "photos"
KNOWN = {"cat.jpg": "cat"}  # photos of your own, and what the model must call them


@pytest.fixture(scope="module")
def predictor() -> Iterator[Predictor]:
    """Open the bundle once for all photos."""
    with Predictor(BUNDLE, backend="ort") as opened:
        yield opened


def test_the_answers_are_the_reference_s(vit_edge_parity: Check) -> None:
    """Compare the bundle's golden answers in a process of its own."""
    vit_edge_parity(BUNDLE, backend="ort", target="top1_agreement=0.99")


@pytest.mark.parametrize(("photo", "label"), KNOWN.items())
def test_a_known_photo_keeps_its_class(predictor: Predictor, photo: str, label: str) -> None:
    """Notice a change in front of the model too: decoding, resizing, labels."""
    assert predictor.predict(PHOTOS / photo).label == label
