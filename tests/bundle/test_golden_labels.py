"""True classes travel with a golden file, where its images have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_edge.bundle.golden import Golden, write_golden
from vit_edge.errors import BundleError


def written(path: Path, labels: list[int] | None) -> Path:
    write_golden(
        path,
        probes=[],
        names=["x", "y", "z"],
        images=np.zeros((3, 4, 4, 3), np.uint8),
        answers={"logits": np.zeros((3, 5), np.float32)},
        reference_dtype="float64",
        labels=labels,
    )
    return path


def test_labels_come_back_as_written(tmp_path: Path) -> None:
    with Golden(written(tmp_path / "golden.npz", [4, -1, 0])) as golden:
        found = golden.labels([2, 0, 1])
    assert found is not None
    assert found.dtype == np.int64
    assert found.tolist() == [0, 4, -1]


def test_a_golden_file_without_labels_has_none(tmp_path: Path) -> None:
    with Golden(written(tmp_path / "golden.npz", None)) as golden:
        assert golden.labels([0]) is None


@pytest.mark.parametrize("labels", [[1, 2], [1, 2, "3"], [1, 2, -2], [0, 0, 2**70], {}, 7])
def test_labels_that_are_none_are_a_typed_error(tmp_path: Path, labels: Any) -> None:
    with np.load(written(tmp_path / "golden.npz", [0, 1, 2])) as file:
        members = dict(file)
    meta = json.loads(bytes(members["meta"])) | {"labels": labels}
    members["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(tmp_path / "broken.npz", **members)
    with pytest.raises(BundleError, match="broken.npz"):
        Golden(tmp_path / "broken.npz")
