"""Adapters of PEFT: named as what they are, with the line that merges them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints.foreign import (
    SMALL,
    assert_same_weights,
    hf_tensors,
    weights_of,
    write_hf,
    write_json,
)
from vit_edge.checkpoints import Request, load_checkpoint
from vit_edge.errors import CheckpointError

requires = ("torch", "safetensors")

LORA = {
    f"base_model.model.vit.encoder.layer.0.attention.attention.query.lora_{side}.weight": tensor
    for side, tensor in (("A", torch.ones(4, 32)), ("B", torch.ones(32, 4)))
}


def adapter(where: Path, suffix: str = "safetensors", **config: Any) -> Path:
    """What PeftModel.save_pretrained writes."""
    where.mkdir()
    tensors = LORA | {"base_model.model.classifier.weight": torch.ones(5, 32)}
    save: Any = save_file if suffix == "safetensors" else torch.save
    save(tensors, where / f"adapter_model.{suffix}")
    base = {"base_model_name_or_path": "google/vit-base-patch16-224-in21k", "peft_type": "LORA"}
    write_json(where / "adapter_config.json", base | config)
    return where


@pytest.mark.parametrize("prefix", ["", "hf:"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("file", [True, False])
def test_an_adapter_alone_is_named_with_the_line_that_merges_it(
    prefix: str, suffix: str, file: bool, tmp_path: Path
) -> None:
    path = adapter(tmp_path / "lora", suffix)
    named = path / f"adapter_model.{suffix}" if file else path
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(f"{prefix}{named}", Request())
    message = str(caught.value)
    assert "an adapter of PEFT alone, not a model: it changes google/vit-base-patch16" in message
    program, flag, code = shlex.split(message.splitlines()[-1])
    assert (program, flag) == ("python", "-c")
    compile(code, "line", "exec")
    assert f"PeftModel.from_pretrained(model, {str(path)!r}).merge_and_unload()" in code


@pytest.mark.parametrize("base", [None, 3, "\x1b[31mred\nnext"])
def test_a_strange_base_still_gives_a_line(base: Any, tmp_path: Path) -> None:
    path = adapter(tmp_path / "lora", base_model_name_or_path=base)
    with pytest.raises(CheckpointError, match=r"it changes (BASE_MODEL|red next)\. Merge"):
        load_checkpoint(str(path), Request())


@pytest.mark.parametrize("name", ["query.lora_A.default.weight", "query.lora_B.default.weight"])
def test_a_model_with_an_adapter_in_it_is_refused_until_it_is_merged(
    name: str, tmp_path: Path
) -> None:
    path = write_hf(tmp_path / "x", SMALL, weights_of(SMALL))
    tensors = {
        re.sub(r"query\.", "query.base_layer.", n): t
        for n, t in hf_tensors(weights_of(SMALL)).items()
    }
    tensors[f"vit.encoder.layer.0.attention.attention.{name}"] = torch.ones(4, 4)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"not merged .*{name}.*merge_and_unload"):
        load_checkpoint(str(path), Request())


def test_a_merged_model_beside_its_adapter_is_read(tmp_path: Path) -> None:
    path = adapter(tmp_path / "lora")
    write_hf(path, SMALL, weights_of(SMALL))
    assert_same_weights(load_checkpoint(str(path), Request()), weights_of(SMALL))
