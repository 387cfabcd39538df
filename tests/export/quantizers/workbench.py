"""What the tests of quantizers share: a float graph, natural images, and running what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from PIL import Image

from vit_edge.bundle import Bundle
from vit_edge.export import quantizers
from vit_edge.export.calibration import Calibration, CalibrationRequest
from vit_edge.export.quantizers import Quantized, Task
from vit_edge.export.quantizers._workspace import Workspace
from vit_edge.manifest import Preprocessing
from vit_edge.parity.logits import LogitComparison
from vit_edge.parity.targets import parse_target

PHOTOS = sorted((Path(__file__).parents[3] / "vit_edge" / "data" / "photos").glob("*.jpg"))


class _Silent:
    def update(self, n: int) -> None:
        pass


@contextmanager
def no_progress(what: str, total: int, unit: str = "image") -> Iterator[_Silent]:
    yield _Silent()


def crops(count: int, seed: int, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Random crops of the package's photos: uint8[count, H, W, 3]; no two seeds share one."""
    rng = np.random.default_rng(seed)
    photos = [Image.open(path).convert("RGB") for path in PHOTOS]
    made = np.empty((count, *size_hw, 3), np.uint8)
    for index in range(count):
        photo = photos[rng.integers(len(photos))]
        side = int(rng.uniform(0.15, 0.9) * min(photo.size))
        left = int(rng.integers(photo.width - side + 1))
        top = int(rng.integers(photo.height - side + 1))
        box = (left, top, left + side, top + side)
        made[index] = np.asarray(photo.resize(size_hw[::-1], Image.Resampling.BILINEAR, box))
    return made


def calibration(count: int, seed: int, spec: Preprocessing) -> Calibration:
    """Crops as calibration images."""
    images = crops(count, seed, spec.crop_hw)
    names = tuple(f"crop-{index}" for index in range(count))
    return Calibration(CalibrationRequest("crops", count, seed), names, names, images, spec)


def task(
    model: onnx_ir.Model,
    images: Calibration | None,
    scratch: Path,
    *,
    target: str = "cpu",
    goal: str = "",
    journal: Path | None = None,
) -> Task:
    """A task with everything that a test does not care about filled in."""
    return Task(
        model=model,
        target=target,  # type: ignore[arg-type]
        calibration=images,
        parity_target=parse_target(goal) if goal else None,
        scratch=scratch,
        journal=journal,
        progress=no_progress,
    )


def quantized(
    precision: str,
    bundle: Bundle,
    scratch: Path,
    settings: Mapping[str, Any],
    images: int = 32,
    **options: Any,
) -> Quantized:
    """Quantize a bundle's graph on crops."""
    module = quantizers.module(precision)
    seen = calibration(images, 0, bundle.manifest.preprocessing)
    model = onnx_ir.load(bundle.model_path)
    chosen = quantizers.settings_from_table(precision, settings, "test")
    return module.quantize(task(model, seen, scratch, **options), chosen)


def answers(
    model: onnx_ir.Model,
    images: Calibration,
    scratch: Path,
    entries: Mapping[str, str] | None = None,
    output: str = "logits",
) -> NDArray[np.float32]:
    """float32[N, ...] of a model on ONNX Runtime."""
    workspace = Workspace(scratch / "answers")
    batches = images.batches(16)
    settled = workspace.settled(model.clone())  # a settled model gives up its weights
    return np.concatenate(list(workspace.answers(settled, batches, output, entries)))


def compared(found: NDArray[np.float32], expected: NDArray[np.float32]) -> dict[str, Any]:
    """The statistics of two sets of logits."""
    comparison = LogitComparison()
    comparison.add(np.arange(len(found)), found, expected)
    return comparison.summary()
