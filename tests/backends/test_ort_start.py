"""A start of Python to an answer: what is loaded on the way, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from vit_edge.backends import ort
from vit_edge.backends.ort import version
from vit_edge.bundle import Bundle

requires = ("onnxruntime",)

# What a start that is recorded and built need not load: what checks, builds, fetches, or reads
# formats that are rare; and of Python the parser of packages' metadata.
LATE = {
    "vit_edge.hub", "vit_edge.bundle.hub", "vit_edge.bundle.staging", "vit_edge.onnxfile",
    "vit_edge.backends.ort.packed", "vit_edge.backends.ort.binding", "vit_edge.backends.ort.device",
    "vit_edge.images.pnm", "vit_edge.images.bmp", "vit_edge.images.deep",
    "importlib.metadata", "email", "shutil", "tempfile", "zipfile", "csv", "socket",
    "urllib.request",
}  # fmt: skip
START = """
import json, sys, numpy, PIL.Image, onnxruntime
before = set(sys.modules)
from vit_edge import Predictor
predictor = Predictor(sys.argv[1])
predictor.predict(numpy.zeros((40, 40, 3), numpy.uint8))
print(json.dumps([predictor.facts["engine"], *sorted(set(sys.modules) - before)]))
"""


def test_a_start_to_an_answer_loads_only_what_it_needs(bundle: Bundle) -> None:
    built = ort.build(bundle)  # it also records that the bundle was hashed
    code = [sys.executable, "-c", START, str(bundle.path)]
    done = subprocess.run(code, check=True, capture_output=True, text=True)
    engine, *loaded = json.loads(done.stdout)
    assert engine == built.name
    assert not LATE & set(loaded)
    assert len([name for name in loaded if name.startswith("vit_edge.")]) <= 39, loaded


def test_the_version_is_that_of_the_metadata_without_reading_it() -> None:
    assert version.installed_version() == metadata.version("onnxruntime")


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["onnxruntime-1.23.2.dist-info"], "1.23.2"),
        (["onnxruntime_gpu-1.23.0+cu126.dist-info"], "1.23.0+cu126"),
        (["onnxruntime_genai-0.9.0.dist-info", "onnxruntime-1.25.1.dist-info"], "1.25.1"),
        # no wheel, or two that overwrote each other: importlib.metadata says
        ([], None),
        (["onnxruntime-1.23.2.dist-info", "onnxruntime_gpu-1.24.0.dist-info"], None),
    ],
)
def test_the_version_stands_in_the_name_of_the_wheels_metadata(
    folders: list[str], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "onnxruntime"
    for folder in (package, *(tmp_path / name for name in folders)):
        folder.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr(metadata, "version", lambda name: f"metadata of {name}")
    assert version.installed_version() == (expected or "metadata of onnxruntime")
