"""The blocks of docs/checkpoints.md, on a small CLIP instead of the one that they name."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import pytest
import transformers

from tests.checkpoints.foreign import write_json
from tests.checkpoints.test_hf_clip import PROCESSOR, TEXT, VISION
from tests.stories.test_readme import run
from tests.support.documents import blocks
from vit_edge import Bundle

requires = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "transformers")

NAMED = "openai/clip-vit-base-patch32"


def small_clip(folder: Path) -> None:
    """A CLIPModel, its processor, and a tokenizer that knows single letters."""
    letters = [*string.ascii_lowercase, ".", "-"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77
    )
    tokenizer.save_pretrained(folder)
    text = TEXT | {"vocab_size": len(tokens), "max_position_embeddings": 77}
    text |= {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1}
    config = transformers.CLIPConfig(vision_config=VISION, text_config=text, projection_dim=24)
    transformers.CLIPModel(config).save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", PROCESSOR)


@pytest.mark.slow
def test_the_zero_shot_blocks_make_a_bundle(repository: Path, tmp_path: Path) -> None:
    text = (repository / "docs" / "checkpoints.md").read_text()
    (tmp_path / "vit_edge").symlink_to(repository / "vit_edge")
    (tmp_path / "export").symlink_to(repository / "export")
    small_clip(tmp_path / "small")
    (python,), (bash,) = blocks(text, "python"), blocks(text, "bash")
    assert NAMED in python
    assert NAMED in bash
    run(["python", "-c", python.replace(NAMED, "small")], tmp_path)
    rows = np.load(tmp_path / "texts.npy")
    assert rows.shape == (3, 24)
    assert len({tuple(row) for row in rows}) == 3  # the tokenizer tells the labels apart
    run(["bash", "-euo", "pipefail", "-c", bash.replace(NAMED, "small")], tmp_path)
    bundle = Bundle.read(tmp_path / "bundles" / "clip")
    assert bundle.labels == ("cat", "dog", "bicycle")
    scale = json.loads((bundle.path / "manifest.json").read_text())["architecture"]["logit_scale"]
    assert scale == pytest.approx(np.exp(2.6592), rel=1e-6)
