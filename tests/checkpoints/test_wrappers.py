"""Names of wrappers around and inside a model's: taken off, said, and refused where in doubt."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.checkpoints.foreign import (
    SMALL,
    assert_same_weights,
    hf_tensors,
    timm_tensors,
    weights_of,
    write_hf,
    write_timm,
)
from vit_edge.checkpoints import Request, load_checkpoint
from vit_edge.checkpoints.sources import timm
from vit_edge.errors import CheckpointError, UsageError

requires = ("torch", "safetensors")

WEIGHTS = weights_of(SMALL)
PREFIXES = [
    "module.",  # DistributedDataParallel
    "_orig_mod.",  # torch.compile
    "module._orig_mod.",
    "_orig_mod.module.",
    "_orig_mod.module._orig_mod.",
    "model.",
    "net.",
    "model.module.",
    "module.model.",
    "model._orig_mod.",
    "_orig_mod.model.net.",
    "_forward_module.model.",  # Lightning's DeepSpeed
    "_fsdp_wrapped_module.",
    "timm_model.",
    "backbone.",
    "base_model.model.",
    "state_dict.",
    "my_net_2.0.",  # nn.Sequential in a module
]


def folder_with(where: Path, tensors: dict[str, Tensor], source: str = "hf") -> Path:
    """A directory of a source whose weights have these names."""
    write = {"hf": write_hf, "timm": write_timm}[source]
    path = write(where / "x", SMALL, WEIGHTS)
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, path / "model.safetensors")
    return path


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("source", ["hf", "timm"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_all_names_is_left_out_and_said(
    prefix: str, source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = {"hf": hf_tensors, "timm": timm_tensors}[source]
    path = folder_with(tmp_path, prefixed(prefix, names(WEIGHTS)), source)
    with caplog.at_level(logging.INFO):
        assert_same_weights(load_checkpoint(str(path), Request()), WEIGHTS)
    said = "left out" in caplog.text
    assert said


def test_plain_names_are_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        load_checkpoint(str(folder_with(tmp_path, hf_tensors(WEIGHTS))), Request())
    assert "left out" not in caplog.text


@pytest.mark.parametrize(
    ("plain", "wrapped"),
    [
        ("vit.", "vit._orig_mod."),  # torch.compile(model.vit)
        ("vit.", "vit.module."),  # DistributedDataParallel(model.vit)
        ("encoder.layer.1.", "encoder.layer.1._orig_mod."),  # compiled block by block
        ("encoder.layer.0.", "encoder.layer.0._checkpoint_wrapped_module."),
        ("classifier.", "classifier._orig_mod."),
    ],
)
def test_a_wrapped_part_of_a_model_is_read(plain: str, wrapped: str, tmp_path: Path) -> None:
    names = {n.replace(plain, wrapped, 1): t for n, t in hf_tensors(WEIGHTS).items()}
    assert any(wrapped in name for name in names)
    path = folder_with(tmp_path, names)
    assert_same_weights(load_checkpoint(str(path), Request()), WEIGHTS)


def test_the_averages_of_torch_are_read_and_their_counter_left_out(tmp_path: Path) -> None:
    """The marks are those of the installed torch."""
    model = nn.Sequential(nn.Linear(2, 2))
    averaged = torch.optim.swa_utils.AveragedModel(model).state_dict()
    assert set(averaged) == {"n_averaged", "module.0.weight", "module.0.bias"}
    counted = prefixed("module.", timm_tensors(WEIGHTS)) | {"n_averaged": torch.tensor([3.0])}
    path = folder_with(tmp_path, counted, "timm")
    assert_same_weights(load_checkpoint(str(path), Request()), WEIGHTS)


@pytest.mark.parametrize("name", ["criterion.weight", "loss_fn.weight", "train_acc.correct"])
def test_a_loss_or_metric_beside_the_model_is_left_out_and_said(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = prefixed("model.", timm_tensors(WEIGHTS)) | {name: torch.ones(5)}
    loaded = load_checkpoint(str(folder_with(tmp_path, tensors, "timm")), Request())
    assert_same_weights(loaded, WEIGHTS)
    assert f"not part of the model, left out: {name}" in caplog.text


@pytest.mark.parametrize("name", ["head.weight", "normalize.mean", "classifier.1.weight", "fc"])
def test_what_may_be_part_of_the_answer_is_refused_by_name(name: str, tmp_path: Path) -> None:
    tensors = prefixed("backbone.", timm_tensors(WEIGHTS)) | {name: torch.ones(5)}
    path = folder_with(tmp_path, tensors, "timm")
    with pytest.raises(CheckpointError, match=f"these do not: {name}") as caught:
        load_checkpoint(str(path), Request())
    assert "--key backbone" in str(caught.value)
    assert_same_weights(load_checkpoint(str(path), Request(key="backbone")), WEIGHTS)


def test_half_of_the_names_with_a_prefix_is_no_prefix(tmp_path: Path) -> None:
    names = timm_tensors(WEIGHTS)
    half = {("net." + n if "blocks" not in n else n): t for n, t in names.items()}
    with pytest.raises(CheckpointError, match=r"these do not: blocks\.0"):
        load_checkpoint(str(folder_with(tmp_path, half, "timm")), Request())


def test_names_that_differ_in_a_mark_alone_are_refused(tmp_path: Path) -> None:
    names = hf_tensors(WEIGHTS)
    doubled = names | {"classifier._orig_mod.bias": names["classifier.bias"]}
    with pytest.raises(CheckpointError, match=r"occur twice.*: classifier\.bias"):
        load_checkpoint(str(folder_with(tmp_path, doubled)), Request())


def two_models(first: str, second: str) -> dict[str, Tensor]:
    other = timm_tensors(weights_of(SMALL, seed=1))
    return prefixed(first, timm_tensors(WEIGHTS)) | prefixed(second, other)


def test_two_models_are_refused_and_each_can_be_chosen(tmp_path: Path) -> None:
    path = folder_with(tmp_path, two_models("first.", "pair.second."), "timm")
    with pytest.raises(CheckpointError, match="--key first or --key pair.second"):
        load_checkpoint(str(path), Request())
    assert_same_weights(load_checkpoint(str(path), Request(key="first")), WEIGHTS)
    for key in ("pair.second", "second", "pair"):
        loaded = load_checkpoint(str(path), Request(key=key))
        assert_same_weights(loaded, weights_of(SMALL, seed=1))


@pytest.mark.parametrize(
    ("model", "averaged"),
    [
        ("model.", "ema."),
        ("model.", "ema_model.module."),
        ("model.", "model_ema."),
        ("model.", "swa_model."),
        ("model.", "model.ema."),
        ("", "ema."),
    ],
)
def test_averaged_weights_beside_the_model_are_not_taken_for_it(
    model: str, averaged: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = two_models(model, averaged) | {f"{averaged}decay": torch.ones(1)}
    path = folder_with(tmp_path, tensors, "timm")
    with caplog.at_level(logging.INFO):
        assert_same_weights(load_checkpoint(str(path), Request()), WEIGHTS)
    assert f"reading {model!r}, not " in caplog.text
    key = averaged.removeprefix("model.").split(".")[0]
    loaded = load_checkpoint(str(path), Request(key=key))
    assert_same_weights(loaded, weights_of(SMALL, seed=1))


@pytest.mark.parametrize("key", ["nothing", "first.second", "mod"])
def test_a_key_of_nothing_names_what_there_is(key: str, tmp_path: Path) -> None:
    path = folder_with(tmp_path, two_models("first.", "second."), "timm")
    with pytest.raises(CheckpointError, match=r"(no model below|nothing).*'first\.'"):
        load_checkpoint(f"timm:{path}", Request(key=key))


def test_a_key_does_not_hide_a_head_below_it(tmp_path: Path) -> None:
    tensors = prefixed("student.net.", timm_tensors(WEIGHTS)) | {
        "student.head.weight": torch.ones(5),
        "other.head.weight": torch.ones(5),
    }
    path = folder_with(tmp_path, tensors, "timm")
    with pytest.raises(CheckpointError, match=r"these do not: student\.head\.weight\. They"):
        load_checkpoint(str(path), Request(key="student"))


@pytest.mark.parametrize("source", ["seeded:0", "embedded", "jax:x.npz"])
def test_a_key_of_what_has_one_model_is_a_usage_error(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vit_edge.variants import variant

    monkeypatch.chdir(tmp_path)
    Path("x.npz").touch()
    row = variant("testing") if source == "seeded:0" else None
    with pytest.raises(UsageError, match="--key chooses among the models"):
        load_checkpoint(source, Request(row, key="teacher"))


def test_a_foreign_model_of_transformers_is_named_before_its_prefix(tmp_path: Path) -> None:
    from tests.checkpoints.foreign import hf_config, write_json

    names = {n.replace("vit.", "beit."): t for n, t in hf_tensors(WEIGHTS).items()}
    path = folder_with(tmp_path, names)
    write_json(path / "config.json", hf_config(SMALL, model_type="beit"))
    with pytest.raises(CheckpointError, match="'beit' is another model"):
        load_checkpoint(str(path), Request())


def test_a_lone_file_is_recognised_in_any_wrapper(tmp_path: Path) -> None:
    path = write_timm(tmp_path / "x", SMALL, WEIGHTS)
    (path / "model.safetensors").unlink()
    torch.save(prefixed("net._orig_mod.", timm_tensors(WEIGHTS)), path / "last.ckpt")
    assert timm.recognises(path / "last.ckpt")
    assert_same_weights(load_checkpoint(str(path / "last.ckpt"), Request()), WEIGHTS)


def test_names_of_transformers_in_memory_are_read_in_wrappers(tmp_path: Path) -> None:
    """torch.save(model.state_dict()) with transformers 5 has other names than its files."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8, num_labels=5,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    path = write_hf(tmp_path / "x", SMALL, WEIGHTS)
    config.save_pretrained(path)
    model.save_pretrained(path)
    expected = load_checkpoint(str(path), Request()).weights
    (path / "model.safetensors").unlink()
    for prefix in ("", "_orig_mod.", "module._orig_mod.", "net."):
        state = prefixed(prefix, model.state_dict())
        torch.save({"model_state_dict": state}, path / "pytorch_model.bin")
        assert_same_weights(load_checkpoint(str(path), Request()), dict(expected))
