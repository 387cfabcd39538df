"""Bundles in the other forms of the graph."""

from __future__ import annotations

import pytest

from tests.support.bundles import TESTING, Exporter
from vit_edge.bundle import Bundle


@pytest.fixture(scope="session")
def decomposed_bundle(export_once: Exporter) -> Bundle:
    """The testing variant with decomposed attention, opset 20."""
    return export_once(*TESTING, "--recipe", "gpu-fp32")


@pytest.fixture(scope="session")
def tokens_bundle(export_once: Exporter) -> Bundle:
    """The testing variant with every token, so that its last block is like the others."""
    return export_once(*TESTING, "--outputs", "logits,tokens")
