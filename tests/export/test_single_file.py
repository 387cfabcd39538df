"""Weights too large for one file are refused before any work where one file is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vit_edge
from vit_edge import Bundle, UsageError
from vit_edge.export import lowering, pipeline, preprocessing, single_file
from vit_edge.export.layouts import write_layout
from vit_edge.export.single_file import check_single_file

requires = ("torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript")

HUGE, GIANT = 632_000_000 * 4, 1_136_000_000 * 4  # bytes in float32


def refused_work(*_: Any, **__: Any) -> None:
    raise AssertionError("work began")


@pytest.mark.parametrize("asked", [{"layout": "transformers.js"}, {"include_preprocessing": True}])
def test_it_is_refused_before_any_work(
    asked: dict[str, Any], testing_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_file, "SINGLE_FILE_LIMIT_BYTES", 1000)
    monkeypatch.setattr(pipeline, "answer_golden_images", refused_work)
    monkeypatch.setattr(lowering.integrity, "ensure_verified", refused_work)
    (name,) = asked
    with pytest.raises(UsageError, match=f"^{name}.*: weights of .* do not fit into one ONNX file"):
        vit_edge.export("seeded:0", variant="testing", out=tmp_path / "out", **asked)
    with pytest.raises(UsageError, match=f"^{name}.*: weights of .* do not fit into one ONNX file"):
        vit_edge.quantize(testing_bundle, "int8-dynamic", out=tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_a_lower_precision_is_refused_where_even_its_least_is_too_much() -> None:
    for weights, precision in ((HUGE, "fp32"), (GIANT, "fp16")):
        with pytest.raises(UsageError, match=r"--layout x: weights of 2\.[35] GB"):
            check_single_file("--layout x", weights, precision)
    for weights, precision in ((HUGE, "fp16"), (GIANT, "int8"), (GIANT, "int4")):
        check_single_file("--layout x", weights, precision)


def test_what_stays_in_float_is_noticed_when_it_is_written(
    testing_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_file, "SINGLE_FILE_LIMIT_BYTES", 1000)
    with pytest.raises(UsageError, match=r"--layout transformers\.js: weights of"):
        write_layout(testing_bundle, tmp_path / "laid")
    with pytest.raises(UsageError, match="--include-preprocessing: weights of"):
        preprocessing.write_end_to_end(testing_bundle.path, testing_bundle.manifest)
