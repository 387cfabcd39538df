"""transformers: its model in PyTorch, and its image-classification pipeline on image files."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hf_model
import process
from process import Opened, Setup

# What vit_edge.bench decodes end to end, by default.
PHOTOS = Path(__file__).resolve().parents[2] / "vit_edge" / "data" / "photos"


def open_model(folder: Path, threads: int) -> Opened:
    """ViTForImageClassification, eager, float32."""
    import torch

    torch.set_num_threads(threads)
    model = hf_model.load(folder)

    def prepare(pixels: Any) -> process.Run:
        given = torch.from_numpy(pixels)

        def run() -> Any:
            with torch.inference_mode():
                return model(given)

        return run

    return Opened(_facts(), prepare, lambda answer: answer.numpy())


def open_pipeline(folder: Path, threads: int) -> Opened:
    """The pipeline: image files to ranked labels; resize and normalization are its own.

    process.measured prepares what it times first: that is the package's photographs, which take
    turns as ours do. To compare its answers it gets Pillow images made of the pixels, which are of
    the model's size: nothing is lost on the way.
    """
    import numpy as np
    import torch
    from PIL import Image
    from transformers import AutoConfig, ViTForImageClassification, ViTImageProcessorPil, pipeline

    torch.set_num_threads(threads)
    path = hf_model.checkpoint(folder)
    classes = AutoConfig.from_pretrained(path).num_labels
    classify: Any = pipeline(
        "image-classification",
        model=ViTForImageClassification.from_pretrained(path),
        image_processor=ViTImageProcessorPil.from_pretrained(path),
    )

    prepared = itertools.count()

    def prepare(pixels: Any) -> process.Run:
        if next(prepared) == 0:
            turn = photographs(len(pixels))
            return lambda: classify(next(turn), batch_size=len(pixels))
        images = [
            Image.fromarray(image)
            for image in np.rint((pixels.transpose(0, 2, 3, 1) * 0.5 + 0.5) * 255).astype(np.uint8)
        ]
        return lambda: classify(
            images, batch_size=len(images), top_k=classes, function_to_apply="none"
        )

    def logits(answer: Any) -> Any:
        found = np.zeros((len(answer), classes), np.float32)
        for row, ranked in enumerate(answer):
            for entry in ranked:
                found[row, int(entry["label"].removeprefix("class "))] = entry["score"]
        return found

    return Opened(_facts(), prepare, logits)


def photographs(batch: int) -> Iterator[list[str]]:
    """One query after the other, without end: the next photographs in turn, encoded."""
    files = sorted(str(path) for path in PHOTOS.glob("*.jpg"))
    return itertools.cycle(
        [files[(at + offset) % len(files)] for offset in range(batch)] for at in range(len(files))
    )


def _facts() -> dict[str, str]:
    import torch
    import transformers

    return {"runtime": f"torch {torch.__version__}, transformers {transformers.__version__}"}


def make(folder: Path) -> None:
    hf_model.checkpoint(folder)


def setups() -> dict[str, Setup]:
    packages = ("torch", "transformers")
    return {
        "eager-fp32": Setup(packages, open_model, make),
        "pipeline": Setup(packages, open_pipeline, make),
    }


if __name__ == "__main__":
    sys.exit(process.main(setups()))
