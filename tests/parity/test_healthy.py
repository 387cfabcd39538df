"""No false alarms: what export makes, in whatever precision, holds on every backend installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.bundles import Exporter, trained_on_cifar10
from vit_edge import backends
from vit_edge.bundle import Bundle
from vit_edge.parity.result import PASS
from vit_edge.parity.run import Question, compare_here

requires = ("torch", "onnx", "onnxscript", "onnxruntime")

# of 8 images of noise one class more or less says nothing
FEW = (
    *("--calibration", "random", "--calibration-images", "8"),
    *("--parity-target", "sqnr_centred_db=20"),
)
PRECISIONS = ["fp32", "fp16", "int8"]
DEVICES = [name for name in backends.installed() if name != "eager"]


def exported(out: Path, *arguments: str) -> Bundle:
    from vit_edge.export.__main__ import main

    assert main([*arguments, "--max-batch", "4", "--out", str(out)]) == 0
    return Bundle.read(out)


def check(bundle: Bundle, names: list[str]) -> None:
    for name in names:
        found = compare_here(Question(str(bundle.path), name, str(bundle.golden_path), None))
        assert found.verdict == PASS, (name, found.problems)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_twenty_seeds_raise_no_alarm(seed: int, shared_data: Path, tmp_path: Path) -> None:
    """Agreement is not asked for: seeded weights do not decide (parity.targets.DECIDED)."""
    images = str(shared_data / "images" / "cifar10" / "calibration")
    seen = ("--calibration", images, "--calibration-images", "64")
    asked = ("--parity-target", "sqnr_centred_db=20")
    for precision in PRECISIONS:
        bundle = exported(
            tmp_path / precision, "--variant", "testing", "--checkpoint", f"seeded:{seed}",
            "--precision", precision,
            *((*seen, *asked) if precision != "fp32" else ()),
        )  # fmt: skip
        check(bundle, [*DEVICES, *(["eager"] if precision == "fp32" else [])])


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_tiny_raises_no_alarm(precision: str, tmp_path: Path) -> None:
    bundle = exported(
        tmp_path / "tiny", "--variant", "tiny-patch16-224", "--checkpoint", "seeded:0",
        "--precision", precision, *(FEW if precision != "fp32" else ()),
    )  # fmt: skip
    check(bundle, DEVICES)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_trained_weights_raise_no_alarm(
    precision: str, shared_data: Path, export_once: Exporter
) -> None:
    check(export_once(*trained_on_cifar10(precision, shared_data)), DEVICES)
