"""timm checkpoints: equal to timm, and everything that is no plain ViT refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.foreign import (
    HEADLESS,
    SMALL,
    assert_same_weights,
    logits_of,
    timm_config,
    timm_tensors,
    weights_of,
    write_json,
    write_timm,
)
from tests.data.timm_cases import CASES, pixels, weights
from vit_edge.bundle.manifest import Preprocessing
from vit_edge.checkpoints import Checkpoint, Request, load_checkpoint
from vit_edge.checkpoints.fields import Fields
from vit_edge.checkpoints.timm_config import (
    activation_of,
    epsilon_of,
    has_final_norm,
    heads_of,
)
from vit_edge.errors import CheckpointError
from vit_edge.variants import variant

requires = ("torch", "safetensors")

REFERENCE_FILE = Path(__file__).parents[1] / "data" / "timm_reference.npz"
REFERENCE = np.load(REFERENCE_FILE)
HALF = (0.5, 0.5, 0.5)


def loaded_case(name: str, folder: Path) -> Checkpoint:
    """The checkpoint of a case of timm_cases, through a timm file and our loader."""
    case = CASES[name]
    tensors = {n: torch.from_numpy(array) for n, array in weights(case).items()}
    save_file(tensors, folder / "model.safetensors")
    height, width = case.image_hw
    config = timm_config(replace(SMALL, num_classes=case.classes), input_size=[3, height, width])
    config["architecture"] = case.architecture
    config["model_args"] = {
        "num_heads": case.heads, "img_size": [height, width], **dict(case.family)
    }  # fmt: skip
    config["global_pool"] = case.of_family("global_pool", "token")
    write_json(folder / "config.json", config)
    return load_checkpoint(f"timm:{folder}", Request(image_hw=case.resized_hw))


def relative_difference(name: str, checkpoint: Checkpoint, dtype: torch.dtype) -> float:
    """max |ours - timm's| / max |timm's|."""
    found = logits_of(checkpoint, torch.from_numpy(pixels(CASES[name])).to(dtype)).numpy()
    expected = REFERENCE[f"{name}/{found.dtype}"]
    difference = np.abs(found[:, : expected.shape[1]] - expected).max()
    return float(difference / REFERENCE[f"{name}/largest"])


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_timm(name: str, tmp_path: Path) -> None:
    checkpoint = loaded_case(name, tmp_path)
    assert relative_difference(name, checkpoint, torch.float32) <= 1e-5
    # Positions are resampled in float32 on both sides, and layer scale and averaged heads are
    # folded into float32 weights, which is where those cases differ.
    case = CASES[name]
    folded = case.distilled or case.of_family("init_values", None)
    bound = 1e-6 if case.resized_hw or folded else 1e-9
    assert relative_difference(name, checkpoint, torch.float64) <= bound


@pytest.mark.parametrize("method", ["bicubic", "zoom-bilinear"])
def test_resampling_by_another_method_than_timm_is_seen(method: Any, tmp_path: Path) -> None:
    """The comparison above must be able to fail."""
    checkpoint = loaded_case("resized-down", tmp_path)
    other = load_checkpoint(
        f"timm:{tmp_path}", Request(None, CASES["resized-down"].resized_hw, method)
    )
    assert relative_difference("resized-down", checkpoint, torch.float32) <= 1e-5
    assert relative_difference("resized-down", other, torch.float32) > 1e-3


def test_logits_equal_those_of_the_installed_timm() -> None:
    reference = pytest.importorskip(
        "tests.data.make_timm_reference", reason="timm is not installed", exc_type=ImportError
    )
    for name, case in CASES.items():
        found = reference.timm_logits(case, torch.float64).numpy()[:, :40]
        np.testing.assert_allclose(found, REFERENCE[f"{name}/float64"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "width", "heads"),  # of timm's own models
    [
        ("vit_xsmall_patch16_clip_224", 256, 4),
        ("vit_medium_patch32_clip_224", 512, 8),
        ("vit_betwixt_patch32_clip_224", 640, 10),
        ("vit_base_patch16_clip_quickgelu_224", 768, 12),
        ("vit_base_patch16_plus_clip_240", 896, 14),
        ("vit_large_patch14_clip_336", 1024, 16),
        ("vit_huge_patch14_clip_224", 1280, 16),
        ("vit_giant_patch14_clip_224", 1408, 16),
        ("vit_gigantic_patch14_clip_378", 1664, 16),
    ],
)
def test_the_heads_of_timms_clips_follow_from_their_width(
    name: str, width: int, heads: int
) -> None:
    assert heads_of(name, width) == heads
    try:
        import timm
    except ImportError:
        return
    with torch.device("meta"):
        assert timm.create_model(name).blocks[0].attn.num_heads == heads


@pytest.mark.parametrize(
    ("config", "norm_pre", "epsilon"),
    [
        ({"architecture": "vit_large_patch14_clip_quickgelu_336"}, True, 1e-5),
        ({"architecture": "vit_base_patch16_224"}, True, 1e-6),
        (
            {"architecture": "vit_base_patch16_clip_224", "model_args": {"norm_layer": None}},
            True,
            1e-6,
        ),
        ({}, True, 1e-5),
        ({}, False, 1e-6),
    ],
    ids=["a name", "another name", "another norm", "no name", "no name, no norm in front"],
)
def test_the_epsilon_follows_from_timms_name(
    config: dict[str, Any], norm_pre: bool, epsilon: float
) -> None:
    names = ["norm_pre.weight"] if norm_pre else ["norm.weight"]
    assert epsilon_of(Fields(config, ""), config.get("model_args", {}), names) == epsilon


def changed(folder: Path, tensors: dict[str, torch.Tensor | None]) -> Path:
    """A timm directory with tensors added, replaced or (None) removed."""
    path = write_timm(folder / "x", SMALL, weights_of(SMALL))
    state = load_file(path / "model.safetensors") | tensors
    save_file({n: t for n, t in state.items() if t is not None}, path / "model.safetensors")
    return path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("attn_pool.latent", "attention pooling"),
        ("blocks.0.mlp.w12.weight", "SwiGLU"),
        ("blocks.0.mlp.norm.weight", "LayerNorm inside attention or MLP"),
        ("blocks.0.attn.norm.weight", "LayerNorm inside attention or MLP"),
        ("blocks.0.attn.lambda_q1", "differential attention"),
        ("blocks.0.in_proj.weight", "parallel blocks"),
        ("blocks.0.attns.0.qkv.weight", "parallel blocks"),
        ("blocks.0.attn.relative_position_bias_table", "relative positions"),
        ("rope.periods", "rotary"),
        ("patch_embed.backbone.stem.conv.weight", "ResNet before the patches"),
    ],
)
def test_a_model_that_is_no_plain_vit_is_refused_by_its_feature(
    name: str, reason: str, tmp_path: Path
) -> None:
    path = changed(tmp_path, {name: torch.zeros(1)})
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(f"timm:{path}", Request())
    assert name in str(caught.value)


def test_a_gated_mlp_in_one_matrix_is_refused(tmp_path: Path) -> None:
    """GluMlp of the giants of DINOv2: called fc1 and fc2, as the plain MLP."""
    changes = {f"blocks.{n}.mlp.fc1.weight": torch.zeros(128, 32) for n in (0, 1)}
    with pytest.raises(CheckpointError, match="SwiGLU.*fc1.weight has twice the rows"):
        load_checkpoint(f"timm:{changed(tmp_path, dict(changes))}", Request())


def test_a_model_whose_tensors_do_not_tell_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="ResPostBlock"):
        loaded_with(tmp_path, timm_config(SMALL) | {"architecture": "vit_base_patch16_rpn_224"})


def test_a_class_token_that_is_read_and_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="prefix_tokens must lie between 1 and"):
        load_checkpoint(f"timm:{changed(tmp_path, {'cls_token': None})}", Request())


@pytest.mark.parametrize(
    "name", ["patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "pos_embed"]
)
def test_a_tensor_the_shape_is_read_from_must_be_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_checkpoint(f"timm:{changed(tmp_path, {name: None})}", Request())
    with pytest.raises(CheckpointError, match=f"{name} is of shape"):
        load_checkpoint(f"timm:{changed(tmp_path, {name: torch.zeros(3)})}", Request())


def test_pre_logits_are_understood(tmp_path: Path) -> None:
    a = replace(HEADLESS, num_classes=4, pre_logits_dim=20)
    path = write_timm(tmp_path / "x", a, weights_of(a))
    loaded = load_checkpoint(str(path), Request())
    assert loaded.architecture == a
    assert_same_weights(loaded, weights_of(a))


def test_a_headless_model_has_no_labels(tmp_path: Path) -> None:
    path = write_timm(tmp_path / "x", HEADLESS, weights_of(HEADLESS))
    loaded = load_checkpoint(str(path), Request())
    assert (loaded.architecture.num_classes, loaded.labels) == (0, ())


def loaded_with(folder: Path, config: dict[str, Any], image_hw: Any = None) -> Checkpoint:
    path = write_timm(folder / "x", SMALL, weights_of(SMALL))
    write_json(path / "config.json", config)
    return load_checkpoint(f"timm:{path}", Request(image_hw=image_hw))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Preprocessing("cover", (35, 35), (32, 32), "bicubic", HALF, HALF)),
        (
            {"crop_pct": 1.0, "interpolation": "bilinear", "mean": [0.1, 0.2, 0.3]},
            Preprocessing("cover", (32, 32), (32, 32), "bilinear", (0.1, 0.2, 0.3), HALF),
        ),
        (
            {"crop_mode": "squash"},
            Preprocessing("squash", (35, 35), (32, 32), "bicubic", HALF, HALF),
        ),
    ],
    ids=str,
)
def test_pretrained_cfg_becomes_preprocessing(
    changes: dict[str, Any], expected: Preprocessing, tmp_path: Path
) -> None:
    assert loaded_with(tmp_path, timm_config(SMALL, **changes)).preprocessing == expected


def test_another_size_keeps_crop_pct(tmp_path: Path) -> None:
    found = loaded_with(tmp_path, timm_config(SMALL), image_hw=(64, 40)).preprocessing
    assert (found.resize_hw, found.crop_hw) == ((71, 44), (64, 40))


def test_the_first_config_format_of_timm_is_read(tmp_path: Path) -> None:
    flat = timm_config(SMALL)["pretrained_cfg"] | {"architecture": "vit_tiny_patch16_224"}
    with pytest.raises(CheckpointError, match="number of heads"):
        loaded_with(tmp_path, flat)
    found = loaded_with(tmp_path, flat | {"model_args": {"num_heads": 2}})
    assert found.preprocessing.resize_hw == (35, 35)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (timm_config(SMALL, crop_mode="border"), "crop_mode: 'border' is not supported"),
        (timm_config(SMALL, interpolation="random"), "interpolation: 'random'"),
        (timm_config(SMALL, crop_pct=0), "crop_pct: 0"),
        (timm_config(SMALL, mean=None), "pretrained_cfg.mean: missing"),
        (timm_config(SMALL) | {"model_args": {"num_heads": 2, "img_size": "a"}}, "img_size: 'a'"),
        (
            timm_config(SMALL) | {"model_args": {"num_heads": 2, "img_size": [32]}},
            r"img_size: \[32",
        ),
        (timm_config(SMALL, input_size=[32, 32]), r"input_size: \[32, 32\] is not"),
        (timm_config(SMALL, label_names=["a"]), "label_names: 1 labels, but the head has 5"),
        (timm_config(SMALL) | {"global_pool": "avgmax"}, "global_pool: 'avgmax' is not supported"),
        *(
            (timm_config(SMALL) | {"model_args": {"num_heads": 2, **argument}}, message)
            for argument, message in (
                ({"pre_norm": True}, "pre_norm: True, but norm_pre.weight is missing"),
                ({"class_token": False}, "class_token: False, but cls_token is there"),
                ({"reg_tokens": 4}, "reg_tokens: 4, but reg_token is missing"),
                ({"qk_norm": True}, "qk_norm: True, but"),
                ({"init_values": 1e-5}, "init_values: 1e-05, but"),
                ({"fc_norm": True}, "fc_norm: True, but"),
            )
        ),
        (timm_config(SMALL) | {"model_args": {"num_heads": 2, "warp": 1}}, "model_args.warp: unk"),
        (timm_config(SMALL) | {"model_args": {"num_heads": "2"}}, "num_heads: '2'"),
        (timm_config(SMALL) | {"model_args": {"num_heads": 3}}, "width 32 is not divisible by 3"),
        (timm_config(SMALL, label_names=list("abcde"), label_descriptions=["a"]), "label_descrip"),
        (timm_config(SMALL) | {"model_args": {"num_heads": 10**9}}, "heads: 1000000000 is too lar"),
        (timm_config(SMALL, input_size=[3, 10**9, 8]) | {"model_args": {"num_heads": 2}}, "image"),
        (timm_config(SMALL) | {"model_args": [1]}, "model_args: expected an object"),
        (timm_config(SMALL) | {"pretrained_cfg": 3}, "pretrained_cfg: expected an object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_config_that_cannot_be_followed_names_the_field(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        loaded_with(tmp_path, config)


def test_the_head_decides_how_many_classes_there_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A fine-tuned model keeps the num_classes of the weights that it started from."""
    names = [f"n{i}" for i in range(1000)]
    inherited = timm_config(SMALL, num_classes=1000, label_names=names)
    loaded = loaded_with(tmp_path, inherited)
    assert (loaded.architecture.num_classes, loaded.labels[0]) == (5, "class_0")
    assert "has the 1000 labels of other weights; the head has 5" in caplog.text
    own = inherited | {"label_names": list("abcde")}
    assert loaded_with(tmp_path, own).labels == tuple("abcde")
    stale = timm_config(SMALL) | {"num_classes": 1000}  # model.head replaced by hand
    assert loaded_with(tmp_path, stale).architecture.num_classes == 5
    assert "num_classes is 1000, but the head has 5, which count" in caplog.text


@pytest.mark.parametrize("img_size", [32, [32, 32]])
@pytest.mark.parametrize("input_size", [[3, 64, 64], [3, 32, 64], None])
def test_the_size_that_the_model_was_made_with_decides(
    img_size: Any, input_size: Any, tmp_path: Path
) -> None:
    config = timm_config(SMALL, input_size=input_size)
    config["model_args"]["img_size"] = img_size
    loaded = loaded_with(tmp_path, config)
    assert loaded.architecture == SMALL
    assert (loaded.preprocessing.resize_hw, loaded.preprocessing.crop_hw) == ((35, 35), (32, 32))


def test_a_model_of_any_size_asks_which_is_meant(tmp_path: Path) -> None:
    """timm resamples its positions for every image: for input_size, not for img_size."""
    config = timm_config(SMALL, input_size=[3, 64, 64])
    config["model_args"]["dynamic_img_size"] = True
    with pytest.raises(CheckpointError, match="decide with --image-size 64x64 or 32x32"):
        loaded_with(tmp_path, config)
    assert loaded_with(tmp_path, config, image_hw=(64, 64)).architecture.image_hw == (64, 64)
    assert loaded_with(tmp_path, config, image_hw=(32, 32)).architecture == SMALL


@pytest.mark.parametrize("holder", ["top", "pretrained_cfg", "flat"])
@pytest.mark.parametrize("field", ["label_names", "labels"])
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (list("abcde"), "abcde"),
        ({str(i): label for i, label in enumerate("abcde")}, "abcde"),
        ({label: i for i, label in enumerate("abcde")}, "abcde"),
        ({"4": "e", "1": "b", "0": "a", "3": "d", "2": "c"}, "abcde"),
        ([0, 1, 2, 3, 4], "01234"),
        ({"0": "a", "3": "d"}, ["a", "class_1", "class_2", "d", "class_4"]),
        ([f"LABEL_{i}" for i in range(5)], [f"class_{i}" for i in range(5)]),
        ({str(i): f"LABEL_{i}" for i in range(5)}, [f"class_{i}" for i in range(5)]),
        ([], [f"class_{i}" for i in range(5)]),
    ],
)
def test_labels_are_read_in_every_shape_that_timm_writes(
    names: Any, expected: Any, field: str, holder: str, tmp_path: Path
) -> None:
    config = timm_config(SMALL)
    if holder == "flat":
        config = config.pop("pretrained_cfg") | config
    (config["pretrained_cfg"] if holder == "pretrained_cfg" else config)[field] = names
    assert loaded_with(tmp_path, config).labels == tuple(expected)


@pytest.mark.parametrize(
    "names", [3, "abcde", [["a"]], {"7": "a"}, list("abcd"), {str(i): "a" for i in range(7)}]
)
def test_labels_of_another_shape_are_refused(names: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="label_names"):
        loaded_with(tmp_path, timm_config(SMALL) | {"label_names": names})


def test_heads_come_from_the_architecture_at_any_depth(tmp_path: Path) -> None:
    a = replace(variant("tiny-patch16-224").architecture, depth=1, image_hw=(32, 32), num_classes=2)
    path = write_timm(tmp_path / "x", a, weights_of(a))
    config = timm_config(a) | {"architecture": "vit_tiny_patch16_224.augreg_in21k"}
    write_json(path / "config.json", config | {"model_args": {"depth": 1, "img_size": 32}})
    assert load_checkpoint(str(path), Request()).architecture == a


NAMES = json.loads((REFERENCE_FILE.parent / "timm_names.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES["architectures"])
def test_a_name_of_timms_says_what_no_tensor_shows(name: str) -> None:
    """Held against timm's own models; scripts/timm_coverage.py does so anew."""
    width, heads, *rest = NAMES["architectures"][name]
    fields = Fields({"architecture": name}, "config.json")
    clip = "_clip_" in name
    found = [
        epsilon_of(fields, {}, ["norm_pre.weight"] * clip),
        activation_of(fields, {}),
        has_final_norm(fields, {}),
    ]
    assert found == rest
    if name != "test_vit3":  # attention pooling
        assert heads_of(name, width) == heads


def test_model_args_decide_over_the_name() -> None:
    fields = Fields({"architecture": "vit_base_patch16_clip_quickgelu_224"}, "config.json")
    assert activation_of(fields, {"act_layer": "gelu"}) == "gelu"
    assert activation_of(fields, {"act_layer": None}) == "gelu"
    assert activation_of(fields, {"act_layer": "gelu_tanh"}) == "gelu_tanh"
    assert epsilon_of(fields, {"norm_layer": "layernorm"}, ["norm_pre.weight"]) == 1e-6
    assert has_final_norm(fields, {"final_norm": False}) is False


def test_weights_without_a_config_that_have_a_norm_in_front_are_clips(tmp_path: Path) -> None:
    row = variant("testing")
    a = replace(row.architecture, norm_pre=True, layer_norm_eps=1e-5)
    state = timm_tensors(weights_of(a))
    renamed = {n.replace("embedding.norm", "norm_pre"): t for n, t in state.items()}
    save_file(renamed, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="norm_pre"):
        load_checkpoint(f"timm:{tmp_path / 'x.safetensors'}", Request(row))
    (tmp_path / "config.json").write_text(
        json.dumps(timm_config(a) | {"architecture": "vit_base_patch16_clip_224"})
    )
    assert load_checkpoint(f"timm:{tmp_path / 'x.safetensors'}", Request()).architecture == a


def test_a_last_norm_that_is_lost_is_missing(tmp_path: Path) -> None:
    """Only a model of timm's that has none by its name is taken without one."""
    path = changed(tmp_path, {"norm.weight": None, "norm.bias": None})
    with pytest.raises(CheckpointError, match=r"missing \(2\):\n    norm.bias"):
        load_checkpoint(f"timm:{path}", Request())
    for name in ("vit_intern300m_patch14_448", "vit_base_patch16_radio_v3"):
        write_json(path / "config.json", timm_config(SMALL) | {"architecture": name})
        assert not load_checkpoint(f"timm:{path}", Request()).architecture.final_norm


def wrapped_by_transformers(folder: Path, **changes: Any) -> Path:
    """What TimmWrapperForImageClassification.save_pretrained writes."""
    path = write_timm(folder / "x", SMALL, weights_of(SMALL))
    state = load_file(path / "model.safetensors")
    save_file({f"timm_model.{n}": t for n, t in state.items()}, path / "model.safetensors")
    config = timm_config(SMALL) | {
        "architectures": ["TimmWrapperForImageClassification"],
        "do_pooling": True,
        "initializer_range": 0.02,
        "label_names": ["ant", "bee", "cat", "dog", "elk"],
        "model_type": "timm_wrapper",
        "problem_type": "single_label_classification",
        "transformers_version": "5.23.0",
    }
    del config["global_pool"], config["pretrained_cfg"]["num_classes"]
    write_json(path / "config.json", config | changes)
    return path


@pytest.mark.parametrize("prefix", ["", "hf:", "timm:"])
@pytest.mark.parametrize("file", ["", "/model.safetensors"])
def test_a_model_of_timms_that_transformers_trained_is_read(
    prefix: str, file: str, tmp_path: Path
) -> None:
    path = wrapped_by_transformers(tmp_path)
    loaded = load_checkpoint(f"{prefix}{path}{file}", Request())
    assert_same_weights(loaded, weights_of(SMALL))
    assert loaded.labels == ("ant", "bee", "cat", "dog", "elk")
    assert loaded.preprocessing == Preprocessing("cover", (35, 35), (32, 32), "bicubic", HALF, HALF)


def test_labels_that_transformers_invents_are_none(tmp_path: Path) -> None:
    path = wrapped_by_transformers(tmp_path, label_names=[f"LABEL_{i}" for i in range(5)])
    assert load_checkpoint(str(path), Request()).labels == tuple(f"class_{i}" for i in range(5))


def test_a_plain_timm_folder_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    path = write_timm(tmp_path / "x", SMALL, weights_of(SMALL))
    assert_same_weights(load_checkpoint(f"hf:{path}", Request()), weights_of(SMALL))


def test_labels_are_described_where_timm_describes_them(tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(5)]
    described = {"n3": "tulip"}
    config = timm_config(SMALL, label_names=names, label_descriptions=described)
    assert loaded_with(tmp_path, config).labels == ("n0", "n1", "n2", "tulip", "n4")


def test_a_thousand_unnamed_classes_are_those_of_imagenet(tmp_path: Path) -> None:
    a = replace(SMALL, num_classes=1000)
    loaded = load_checkpoint(str(write_timm(tmp_path / "x", a, weights_of(a))), Request())
    assert (len(loaded.labels), loaded.labels[281]) == (1000, "tabby, tabby cat")


def test_without_a_config_the_preprocessing_is_never_guessed(tmp_path: Path) -> None:
    row = variant("testing")
    path = write_timm(tmp_path / "x", row.architecture, weights_of(row.architecture))
    (path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="--variant"):
        load_checkpoint(str(path), Request())
    assert load_checkpoint(str(path), Request(row)).preprocessing == row.preprocessing


def test_heads_come_from_the_table_where_only_one_row_fits(tmp_path: Path) -> None:
    a = variant("vit-cifar10").architecture
    path = write_timm(tmp_path / "x", a, weights_of(a))
    config = timm_config(a)
    del config["model_args"]
    write_json(path / "config.json", config)
    assert load_checkpoint(str(path), Request()).architecture == a


def test_a_block_number_without_end_is_refused_at_once(tmp_path: Path) -> None:
    path = changed(tmp_path, {"blocks.999999999.norm1.weight": torch.zeros(32)})
    with pytest.raises(CheckpointError, match="depth: 1000000000 is too large; at most 1000"):
        load_checkpoint(f"timm:{path}", Request())
