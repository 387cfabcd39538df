"""Bundles in the other forms of the graph."""

from __future__ import annotations

import pytest

from tests.export.conftest import foreign_file
from vit_edge.bundle import Bundle

__all__ = ["decomposed_bundle", "foreign_file", "tokens_bundle"]

ARGUMENTS = ["--variant", "testing", "--checkpoint", "seeded:0", "--max-batch", "4"]


def exported(arguments: list[str], factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("torch", reason="making a bundle needs the export extra")
    from vit_edge.export.__main__ import main

    out = factory.mktemp("bundles") / "bundle"
    assert main([*ARGUMENTS, *arguments, "--out", str(out)]) == 0
    return Bundle.read(out)


@pytest.fixture(scope="session")
def decomposed_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The testing variant with decomposed attention, opset 20."""
    return exported(["--recipe", "gpu-fp32"], tmp_path_factory)


@pytest.fixture(scope="session")
def tokens_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The testing variant with every token, so that its last block is like the others."""
    return exported(["--outputs", "logits,tokens"], tmp_path_factory)
