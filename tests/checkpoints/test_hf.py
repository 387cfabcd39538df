"""Hugging Face checkpoints: equal to transformers, strict about everything else."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification, ViTModel
from transformers.utils import logging as transformers_logging

from tests.checkpoints.foreign import (
    HEADLESS,
    SMALL,
    assert_close,
    assert_same_weights,
    hf_config,
    hf_processor,
    hf_tensors,
    logits_of,
    weights_of,
    write_hf,
    write_json,
)
from vit_edge.bundle.manifest import Preprocessing
from vit_edge.checkpoints import Checkpoint, Request, load_checkpoint
from vit_edge.checkpoints.files import hashes_of
from vit_edge.errors import CheckpointError
from vit_edge.models.vit import vit_from_weights
from vit_edge.variants import variant

requires = ("torch", "safetensors", "transformers")

FP32, FP64 = 1e-5, 1e-9  # of the largest logit; the bounds
HALF = (0.5, 0.5, 0.5)

transformers_logging.disable_progress_bar()


def config(**changes: Any) -> ViTConfig:
    """A small ViT of transformers."""
    small = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 96,
        "image_size": 64,
        "patch_size": 16,
        "num_labels": 7,
    }
    return ViTConfig(**{**small, **changes})


def spread(model: Any) -> Any:
    """Weights far from transformers' initial ones, where biases are zero and norms one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.5 * noise / max(parameter.shape[-1], 1) ** 0.5
    return model.eval()


def pixels_for(a: Any, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, *a.image_hw, generator=generator, dtype=dtype)


def saved_and_loaded(model: Any, folder: Path, **saving: Any) -> Checkpoint:
    model.save_pretrained(folder, **saving)
    return load_checkpoint(f"hf:{folder}", Request())


def assert_equal_logits(settings: ViTConfig, folder: Path, float64: bool = True) -> None:
    """Save with transformers, load with us, compare the logits."""
    model = spread(ViTForImageClassification(settings))
    loaded = saved_and_loaded(model, folder)
    for dtype, bound in ((torch.float32, FP32), (torch.float64, FP64))[: 1 + float64]:
        pixels = pixels_for(loaded.architecture, dtype)
        with torch.no_grad():
            expected = model.to(dtype)(pixels).logits
        assert_close(logits_of(loaded, pixels), expected, bound)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qkv_bias": False},
        {"layer_norm_eps": 1e-12},
        {"layer_norm_eps": 1e-3},
        {"image_size": (32, 80), "patch_size": 8},
        {"num_labels": 21843},
        {"patch_size": 32},
        {"num_attention_heads": 1},
        {"image_size": 70},  # no whole number of patches: the last pixels are not seen
        {"image_size": (79, 97)},
    ],
    ids=str,
)
def test_logits_equal_those_of_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    assert_equal_logits(config(**changes), tmp_path)


@settings(max_examples=15)
@given(
    heads=st.integers(1, 4),
    head_dim=st.sampled_from([1, 8, 12]),
    depth=st.integers(1, 3),
    mlp_dim=st.integers(1, 70),
    patch=st.sampled_from([1, 3, 8]),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    bias=st.booleans(),
)
def test_logits_equal_those_of_transformers_for_any_shape(
    tmp_path_factory: pytest.TempPathFactory,
    heads: int,
    head_dim: int,
    depth: int,
    mlp_dim: int,
    patch: int,
    grid: tuple[int, int],
    bias: bool,
) -> None:
    shape = config(
        hidden_size=heads * head_dim,
        num_attention_heads=heads,
        num_hidden_layers=depth,
        intermediate_size=mlp_dim,
        patch_size=patch,
        image_size=(grid[0] * patch, grid[1] * patch),
        qkv_bias=bias,
    )
    model = spread(ViTForImageClassification(shape)).double()
    loaded = saved_and_loaded(model.float(), tmp_path_factory.mktemp("hf"))
    pixels = pixels_for(loaded.architecture, torch.float64)
    with torch.no_grad():
        expected = model.double()(pixels).logits
    assert_close(logits_of(loaded, pixels), expected, FP64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "depth", "heads", "patch", "image"),
    [
        (192, 12, 3, 16, 224),
        (384, 12, 6, 16, 384),
        (768, 12, 12, 16, 224),
        (768, 12, 12, 32, 384),
        (1024, 24, 16, 16, 224),
    ],
    ids=["tiny", "small-384", "base", "base-patch32-384", "large"],
)
def test_logits_equal_those_of_transformers_at_full_size(
    width: int, depth: int, heads: int, patch: int, image: int, tmp_path: Path
) -> None:
    shape = config(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=patch,
        image_size=image,
        num_labels=1000,
    )
    assert_equal_logits(shape, tmp_path, float64=width < 1024)


@pytest.mark.parametrize("size_hw", [(96, 96), (32, 112)])
def test_interpolated_positions_equal_those_of_transformers(
    size_hw: tuple[int, int], tmp_path: Path
) -> None:
    model = spread(ViTForImageClassification(config()))
    model.save_pretrained(tmp_path)
    loaded = load_checkpoint(f"hf:{tmp_path}", Request(image_hw=size_hw))
    pixels = pixels_for(loaded.architecture, torch.float32)
    with torch.no_grad():
        expected = model(pixels, interpolate_pos_encoding=True).logits
    assert_close(logits_of(loaded, pixels), expected, FP32)


@pytest.mark.parametrize("pooler", [True, False])
def test_vit_model_gives_its_features_and_pooler(pooler: bool, tmp_path: Path) -> None:
    model = spread(ViTModel(config(), add_pooling_layer=pooler))
    loaded = saved_and_loaded(model, tmp_path)
    assert loaded.architecture.num_classes == 0
    assert loaded.architecture.pre_logits_dim == (48 if pooler else None)
    pixels = pixels_for(loaded.architecture, torch.float32)
    with torch.no_grad():
        expected = model(pixels)
    found = vit_from_weights(loaded.architecture, dict(loaded.weights))(pixels)
    assert_close(found.tokens, expected.last_hidden_state, FP32)
    assert_close(found.features, expected.last_hidden_state[:, 0], FP32)
    if pooler:
        assert_close(found.pre_logits, expected.pooler_output, FP32)


def test_a_pooler_of_another_width_is_understood(tmp_path: Path) -> None:
    model = spread(ViTModel(config(pooler_output_size=20)))
    assert saved_and_loaded(model, tmp_path).architecture.pre_logits_dim == 20


def test_names_of_a_state_dict_in_memory_are_understood(tmp_path: Path) -> None:
    model = spread(ViTForImageClassification(config()))
    on_disk = saved_and_loaded(model, tmp_path)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    in_memory = load_checkpoint(f"hf:{tmp_path}", Request())
    assert_same_weights(in_memory, dict(on_disk.weights))


def test_shards_of_transformers_give_the_same_weights(tmp_path: Path) -> None:
    model = spread(ViTForImageClassification(config()))
    whole = saved_and_loaded(model, tmp_path / "whole")
    sharded = saved_and_loaded(model, tmp_path / "sharded", max_shard_size="100KB")
    shards = [name for name in sharded.record.sha256 if name.startswith("model-0")]
    assert len(shards) > 1
    assert_same_weights(sharded, dict(whole.weights))


def test_every_read_file_is_hashed(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "x", SMALL, weights_of(SMALL))
    loaded = load_checkpoint(str(path), Request())
    assert loaded.record.sha256 == hashes_of(path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_converted_and_said(
    dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in weights_of(SMALL).items()}
    path = write_hf(tmp_path / "x", SMALL, weights)
    with caplog.at_level(logging.INFO):
        loaded = load_checkpoint(str(path), Request())
    assert_same_weights(loaded, {name: tensor.float() for name, tensor in weights.items()})
    assert f"{str(dtype).removeprefix('torch.')} weights are converted" in caplog.text


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "x", SMALL, weights_of(SMALL))
    tensors = load_file(path / "model.safetensors")
    tensors["classifier.bias"] = tensors["classifier.bias"].to(torch.int64)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match="dtype I64"):
        load_checkpoint(str(path), Request())


def test_the_mask_token_of_pretraining_is_left_out(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "x", HEADLESS, weights_of(HEADLESS))
    tensors = load_file(path / "model.safetensors")
    tensors["embeddings.mask_token"] = torch.zeros(1, 1, 32)
    save_file(tensors, path / "model.safetensors")
    assert_same_weights(load_checkpoint(str(path), Request()), weights_of(HEADLESS))


def test_a_classifier_without_its_head_is_refused(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "x", SMALL, weights_of(SMALL))
    tensors = load_file(path / "model.safetensors")
    del tensors["classifier.weight"], tensors["classifier.bias"]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match="classifier.weight"):
        load_checkpoint(str(path), Request())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_reference_of_half_weights_is_exact_arithmetic_on_them(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    """transformers in bfloat16 rounds after every step; the reference does not."""
    model = spread(ViTForImageClassification(config())).to(dtype)
    loaded = saved_and_loaded(model, tmp_path)
    head = model.classifier.weight.t().float()
    assert torch.equal(loaded.weights["readout.head.weight"], head)
    pixels = pixels_for(loaded.architecture, torch.float64).to(dtype).double()
    with torch.no_grad():
        rounded = model(pixels.to(dtype)).logits.double()
        exact = model.double()(pixels).logits
    assert_close(logits_of(loaded, pixels), exact, FP64)
    step = torch.finfo(dtype).eps
    difference = ((rounded - exact).abs().max() / exact.abs().max()).item()
    assert step / 20 < difference < 8 * step


def test_pixels_that_fill_no_patch_are_said_and_not_seen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = spread(ViTForImageClassification(config(image_size=70)))
    loaded = saved_and_loaded(model, tmp_path)
    assert (loaded.architecture.image_hw, loaded.architecture.grid_hw) == ((70, 70), (4, 4))
    assert loaded.preprocessing.crop_hw == (70, 70)
    assert "does not see the last 6 rows and 6 columns" in caplog.text
    pixels = pixels_for(loaded.architecture, torch.float64)
    cut = pixels.clone()
    cut[..., 64:, :] = cut[..., 64:] = 9
    assert torch.equal(logits_of(loaded, pixels), logits_of(loaded, cut))
    asked = load_checkpoint(f"hf:{tmp_path}", Request(image_hw=(70, 70)))  # its own size
    assert asked.record.position_interpolation is None
    moved = load_checkpoint(f"hf:{tmp_path}", Request(image_hw=(96, 96))).architecture
    assert moved.grid_hw == (6, 6)


@pytest.mark.parametrize("save", [torch.save, save_file], ids=["torch", "safetensors"])
def test_a_state_dict_alone_takes_the_variant_for_an_answer(save: Any, tmp_path: Path) -> None:
    row = variant("testing")
    weights = weights_of(replace(row.architecture, num_classes=3))
    save(hf_tensors(weights), tmp_path / "x.safetensors")
    path = str(tmp_path / "x.safetensors") if save is save_file else str(tmp_path / "x.bin")
    (tmp_path / "x.safetensors").rename(path)
    for source in (path, f"hf:{path}"):
        with pytest.raises(CheckpointError, match=r"config.json: missing.*\n?.*--variant NAME"):
            load_checkpoint(source, Request())
        loaded = load_checkpoint(source, Request(row))
        assert_same_weights(loaded, weights)
        assert loaded.architecture == replace(
            row.architecture, num_classes=3, layer_norm_eps=ViTConfig().layer_norm_eps
        )
        assert loaded.preprocessing == row.preprocessing
        assert loaded.labels == ("class_0", "class_1", "class_2")
    with pytest.raises(CheckpointError, match="do not fit the model"):
        load_checkpoint(path, Request(variant("tiny-patch16-224")))


def test_a_processor_beside_a_lone_state_dict_is_followed(tmp_path: Path) -> None:
    row = variant("testing")
    save_file(hf_tensors(weights_of(row.architecture)), tmp_path / "x.safetensors")
    processor = hf_processor(row.architecture, image_mean=[0.1, 0.2, 0.3])
    write_json(tmp_path / "preprocessor_config.json", processor)
    loaded = load_checkpoint(str(tmp_path / "x.safetensors"), Request(row))
    assert loaded.preprocessing.mean == (0.1, 0.2, 0.3)
    assert set(loaded.record.sha256) == {"x.safetensors", "preprocessor_config.json"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "swin"}, "model_type: 'swin' is another model"),
        ({"model_type": None}, "model_type: missing"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000 is too large; at most 1000"),
        ({"num_hidden_layers": 10**4000}, "num_hidden_layers: a number of .* is too large"),
        ({"hidden_size": 2**18}, "hidden_size: 262144 is too large"),
        ({"intermediate_size": 10**12}, "intermediate_size: 1000000000000 is too large"),
        ({"image_size": [32, 2**15]}, "image_size: .* is too large; at most 16384 px"),
        ({"id2label": None, "num_labels": 10**9}, "num_labels: 4 classes|num_labels: .* classes"),
        ({"hidden_size": None}, "hidden_size: missing"),
        ({"hidden_size": 32.0}, "hidden_size: 32.0 is no positive integer"),
        ({"num_attention_heads": 5}, "num_attention_heads: 5 does not divide hidden_size 32"),
        ({"image_size": 7}, "image_size: 7 is less than patch_size 8"),
        ({"image_size": [32]}, "image_size: .* is neither a size nor"),
        ({"hidden_act": "gelu_new"}, "hidden_act: 'gelu_new' is not supported; expected gelu"),
        ({"hidden_act": "quick_gelu"}, "hidden_act: 'quick_gelu'"),
        ({"num_channels": 1}, "num_channels: 1; only 3"),
        ({"qkv_bias": "yes"}, "qkv_bias: 'yes' is neither true nor false"),
        ({"layer_norm_eps": "tiny"}, "layer_norm_eps: 'tiny' is no number"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label: 2 labels, but none for class 1; found 2"),
        ({"id2label": {"0": "a", "1": "b"}}, "id2label: 2 classes, but the head has 5"),
        ({"id2label": ["a"] * 5}, "id2label: expected an object"),
        ({"id2label": None, "num_labels": 4}, "num_labels: 4 classes, but the head has 5"),
    ],
    ids=str,
)
def test_a_bad_config_names_the_field(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_hf(tmp_path / "x", SMALL, weights_of(SMALL))
    write_json(path / "config.json", hf_config(SMALL, **changes))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(f"hf:{path}", Request())


def test_an_unknown_pooler_activation_is_refused(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "x", HEADLESS, weights_of(HEADLESS))
    write_json(path / "config.json", hf_config(HEADLESS, pooler_act="relu"))
    with pytest.raises(CheckpointError, match="pooler_act: 'relu' is not supported; expected tanh"):
        load_checkpoint(f"hf:{path}", Request())


def test_all_problems_of_a_config_are_listed(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "x", SMALL, weights_of(SMALL))
    bad = hf_config(SMALL, hidden_act="relu", patch_size=0, id2label={"1": "a"})
    write_json(path / "config.json", bad)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(f"hf:{path}", Request())
    assert all(name in str(caught.value) for name in ("hidden_act", "patch_size", "id2label"))


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    path = write_hf(tmp_path / "x", SMALL, weights_of(SMALL))
    (path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(f"hf:{path}", Request())


@given(
    st.dictionaries(
        st.sampled_from(sorted(hf_config(SMALL))),
        st.from_type(type(None))
        | st.integers()
        | st.floats()
        | st.text()
        | st.lists(st.integers())
        | st.dictionaries(st.text(), st.text()),
        max_size=3,
    )
)
def test_any_value_in_a_config_is_understood_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    path = write_hf(tmp_path_factory.mktemp("hf"), SMALL, weights_of(SMALL))
    (path / "config.json").write_text(json.dumps({**hf_config(SMALL), **changes}))
    try:
        loaded = load_checkpoint(f"hf:{path}", Request())
    except CheckpointError:
        return
    assert loaded.architecture.problems() == []


def test_a_missing_config_is_said(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "x", SMALL, weights_of(SMALL))
    (path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        load_checkpoint(str(path), Request())


def test_labels_that_are_only_numbers_are_not_taken_for_names(tmp_path: Path) -> None:
    loaded = saved_and_loaded(ViTForImageClassification(config(num_labels=3)), tmp_path)
    assert loaded.labels == ("class_0", "class_1", "class_2")


def processed(folder: Path, **changes: Any) -> Preprocessing:
    """Load a checkpoint whose preprocessor_config.json has these changes."""
    path = write_hf(folder / "x", SMALL, weights_of(SMALL))
    write_json(path / "preprocessor_config.json", hf_processor(SMALL, **changes))
    return load_checkpoint(str(path), Request()).preprocessing


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Preprocessing("squash", (32, 32), (32, 32), "bilinear", HALF, HALF)),
        ({"size": 32}, Preprocessing("squash", (32, 32), (32, 32), "bilinear", HALF, HALF)),
        (
            {"image_processor_type": "DeiTImageProcessor", "size": 40, "resample": 3}
            | {"do_center_crop": True, "crop_size": 32},
            Preprocessing(
                "squash", (40, 40), (32, 32), "bicubic", HALF, HALF, crop_rounding="down"
            ),
        ),
        (
            {"size": {"shortest_edge": 36}, "do_center_crop": True}
            | {"crop_size": {"height": 32, "width": 32}},
            Preprocessing(
                "cover", (36, 36), (32, 32), "bilinear", HALF, HALF, crop_rounding="down"
            ),
        ),
        (
            {"do_normalize": False, "do_rescale": False},
            Preprocessing(
                "squash", (32, 32), (32, 32), "bilinear", (0, 0, 0), (1, 1, 1), rescale_factor=1
            ),
        ),
    ],
    ids=["plain", "integer-size", "deit", "shortest-edge", "no-normalise"],
)
def test_the_processor_becomes_preprocessing(
    changes: dict[str, Any], expected: Preprocessing, tmp_path: Path
) -> None:
    assert processed(tmp_path, **changes) == expected


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"do_pad": True}, "do_pad"),
        ({"size": {"longest_edge": 32}}, "size"),
        ({"size": {"shortest_edge": 32}}, "size: shortest_edge without do_center_crop"),
        ({"size": 48}, "size: images end at \\[48, 48\\] px, but image_size"),
        ({"do_center_crop": True}, "crop_size"),
        ({"resample": 9}, "resample: 9 is unknown"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_std": [0.5, 0, 0.5]}, "std must be positive"),
        ({"rescale_factor": 0}, "rescale_factor"),
    ],
    ids=str,
)
def test_a_processor_that_cannot_be_followed_is_refused_by_name(
    changes: dict[str, Any], field: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=field):
        processed(tmp_path, **changes)


def test_without_a_processor_the_defaults_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_hf(tmp_path / "x", SMALL, weights_of(SMALL))
    (path / "preprocessor_config.json").unlink()
    with caplog.at_level(logging.INFO):
        loaded = load_checkpoint(str(path), Request())
    assert loaded.preprocessing == Preprocessing(
        "squash", (32, 32), (32, 32), "bilinear", HALF, HALF
    )
    assert "preprocessor_config.json: missing" in caplog.text


def test_another_size_keeps_the_ratio_of_crop_to_resize(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "x", SMALL, weights_of(SMALL))
    cropped = hf_processor(
        SMALL,
        size={"shortest_edge": 40},
        do_center_crop=True,
        crop_size={"height": 32, "width": 32},
    )
    write_json(path / "preprocessor_config.json", cropped)
    loaded = load_checkpoint(str(path), Request(image_hw=(64, 48)))
    assert loaded.preprocessing.resize_hw == (80, 60)
    assert loaded.preprocessing.crop_hw == (64, 48)


def contradicting(folder: Path, size: Any) -> Path:
    """A model of 32 px whose preprocessor_config.json says another size."""
    path = write_hf(folder / "x", SMALL, weights_of(SMALL))
    write_json(path / "preprocessor_config.json", hf_processor(SMALL, size=size))
    return path


@pytest.mark.parametrize("size", [None, {"height": 224, "width": 224}], ids=["missing", "224"])
def test_an_asked_size_decides_between_contradicting_files(
    size: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = contradicting(tmp_path, size)
    with pytest.raises(CheckpointError, match="or decide with --image-size, such as .* 32x32"):
        load_checkpoint(str(path), Request())
    loaded = load_checkpoint(str(path), Request(image_hw=(32, 32)))
    assert loaded.preprocessing == Preprocessing(
        "squash", (32, 32), (32, 32), "bilinear", HALF, HALF
    )
    assert "--image-size decides: [32, 32] px" in caplog.text


def test_hf_tensors_and_transformers_agree_on_the_names() -> None:
    """The writer that the other tests use must not drift from transformers."""
    model = ViTForImageClassification(config())
    ours = set(hf_tensors(weights_of(SMALL)))
    assert {name for name in ours if ".layer." not in name} == {
        name for name in model.state_dict() if ".layers." not in name
    }
