"""open_clip's files: equal to open_clip, and every other tower refused by name."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.checkpoints.foreign import (
    SMALL,
    assert_same_weights,
    timm_config,
    timm_tensors,
    weights_of,
    write_hf,
    write_json,
    write_timm,
)
from tests.data.make_timm_transform import synthetic_image
from tests.data.open_clip_cases import (
    CASES,
    SIZE_PX,
    SOURCES_HW,
    TRANSFORMS,
    Case,
    pixels,
    texts,
    weights,
)
from vit_edge.checkpoints import Checkpoint, Request, load_checkpoint
from vit_edge.errors import CheckpointError
from vit_edge.images.preprocess import preprocess
from vit_edge.models.vit import Outputs, vit_from_weights

requires = ("torch", "safetensors")

REFERENCE = np.load(Path(__file__).parents[1] / "data" / "open_clip_reference.npz")
PLAIN = CASES["plain"]
SAFE, PICKLED = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"


def state(case: Case) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(a)) for name, a in weights(case).items()}


def config_of(case: Case, images: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"model_cfg": case.config, "preprocess_cfg": images or {}}


def written(folder: Path, case: Case = PLAIN, **images: Any) -> Path:
    """A folder as open_clip's save_for_hf writes it."""
    folder.mkdir(exist_ok=True, parents=True)
    save_file(state(case), folder / SAFE)
    write_json(folder / "open_clip_config.json", config_of(case, images))
    return folder


def ours(checkpoint: Checkpoint, case: Case, dtype: torch.dtype) -> Outputs:
    vit = vit_from_weights(checkpoint.architecture, dict(checkpoint.weights)).to(dtype)
    found: Outputs = vit(torch.from_numpy(pixels(case)).to(dtype))
    return found


def relative(found: torch.Tensor | None, expected: np.ndarray[Any, Any]) -> float:
    assert found is not None
    assert found.shape == expected.shape
    return float(np.abs(found.numpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_features_equal_those_of_open_clip(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    size = None if case.resized_px is None else (case.resized_px, case.resized_px)
    images = {"resize_mode": "squash"} if name == "non-square" else {}
    path = written(tmp_path / "x", case, **images)
    checkpoint = load_checkpoint(f"open_clip:{path}", Request(image_hw=size))
    single = ours(checkpoint, case, torch.float32).features
    assert relative(single, REFERENCE[f"{name}/float32"]) <= 1e-5
    # layer scale is folded into float32 weights, positions are resampled in float32
    bound = 1e-6 if name in ("layer-scale", "resized") else 1e-9
    double = ours(checkpoint, case, torch.float64).features
    assert relative(double, REFERENCE[f"{name}/float64"]) <= bound


def test_what_one_word_of_the_config_changes_is_seen(tmp_path: Path) -> None:
    """The comparison above must be able to fail."""
    for name, words in {
        "quick-gelu": {"model": {}},
        "an-epsilon": {"vision": {}},
        "two-heads-wide": {"vision": {"mlp_ratio": 2.5}},
        "averaged": {"vision": {}},
    }.items():
        path = written(tmp_path / name, CASES[name])
        write_json(path / "open_clip_config.json", config_of(Case(**words)))
        checkpoint = load_checkpoint(f"open_clip:{path}", Request())
        found = ours(checkpoint, CASES[name], torch.float32).features
        assert relative(found, REFERENCE[f"{name}/float32"]) > 1e-5


@pytest.mark.parametrize("name", ["plain", "text-of-its-own"])
def test_zero_shot_logits_equal_those_of_open_clip(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / "texts.npy", texts())
    (tmp_path / "labels.txt").write_text("".join(f"kind {i}\n" for i in range(len(texts()))))
    request = Request(labels=tmp_path / "labels.txt", text_embeddings=tmp_path / "texts.npy")
    checkpoint = load_checkpoint(str(written(tmp_path / "x", CASES[name])), request)
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-9)):
        found = ours(checkpoint, CASES[name], dtype).logits
        kind = str(dtype).removeprefix("torch.")
        assert relative(found, REFERENCE[f"{name}/logits/{kind}"]) <= bound


@pytest.mark.parametrize("name", TRANSFORMS)
def test_images_become_the_pixels_of_open_clip(name: str, tmp_path: Path) -> None:
    case = Case({"image_size": SIZE_PX})
    path = written(tmp_path / "x", case, **TRANSFORMS[name])
    preprocessing = load_checkpoint(str(path), Request()).preprocessing
    digest = hashlib.sha256()
    for height, width in SOURCES_HW:
        picture = Image.fromarray(synthetic_image(height, width))
        digest.update(preprocess(picture, preprocessing).tobytes())
    assert digest.hexdigest() == str(REFERENCE[f"transform/{name}"])


def test_answers_equal_those_of_the_installed_open_clip() -> None:
    reference = pytest.importorskip(
        "tests.data.make_open_clip_reference", reason="no open_clip here", exc_type=ImportError
    )
    for name, case in CASES.items():
        found = reference.answers(case, torch.float64)[0].numpy()
        np.testing.assert_allclose(found, REFERENCE[f"{name}/float64"], rtol=0, atol=1e-6)


def assert_plain(source: str, **request: Any) -> None:
    checkpoint = load_checkpoint(source, Request(**request))
    found = ours(checkpoint, PLAIN, torch.float64).features
    assert relative(found, REFERENCE["plain/float64"]) <= 1e-9


def test_every_way_to_keep_the_weights_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "x")
    assert_plain(str(path))
    assert_plain(str(path / SAFE))
    (path / SAFE).unlink()
    tensors = state(PLAIN)
    torch.save(tensors, path / PICKLED)
    assert_plain(f"open_clip:{path}")
    # a checkpoint of its own training, in DistributedDataParallel
    epoch = {"epoch": 3, "name": "x", "state_dict": {f"module.{n}": t for n, t in tensors.items()}}
    torch.save(epoch, path / "epoch_3.pt")
    assert_plain(str(path / "epoch_3.pt"))
    # a module of the user's around it
    torch.save({f"model.{n}": t for n, t in tensors.items()}, path / "mine.pth")
    assert_plain(str(path / "mine.pth"))
    # model.visual.state_dict()
    tower = {n.removeprefix("visual."): t for n, t in tensors.items() if n.startswith("visual.")}
    torch.save(tower, path / "tower.pth")
    assert_plain(str(path / "tower.pth"))


def test_openais_state_dict_with_its_three_numbers_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "x", CASES["quick-gelu"])
    numbers = {"input_resolution": 32, "context_length": 8, "vocab_size": 50}
    tensors = {name: tensor.half() for name, tensor in state(PLAIN).items()}
    save_file(tensors | {n: torch.tensor(v) for n, v in numbers.items()}, path / SAFE)
    checkpoint = load_checkpoint(str(path), Request())
    kept = checkpoint.weights["embedding.patch.weight"]
    assert torch.equal(kept, tensors["visual.conv1.weight"].float())


def test_the_trunk_of_timms_tower_is_read_by_its_key(tmp_path: Path) -> None:
    """The way that a refusal of such a tower names."""
    tensors = timm_tensors(weights_of(SMALL))
    stored = {f"visual.trunk.{name}": tensor for name, tensor in tensors.items()}
    stored |= {"visual.head.proj.weight": torch.zeros(24, 32), "logit_scale": torch.tensor(4.6)}
    file = tmp_path / "open_clip_model.safetensors"
    save_file(stored, file)
    write_json(tmp_path / "config.json", timm_config(SMALL))
    checkpoint = load_checkpoint(f"timm:{file}", Request(key="visual.trunk"))
    assert_same_weights(checkpoint, weights_of(SMALL))


def test_other_peoples_files_beside_it_are_theirs(tmp_path: Path) -> None:
    """A repository of timm's holds the same tower twice, and so do many of transformers'."""
    timm = written(write_timm(tmp_path / "timm", SMALL, weights_of(SMALL)))
    assert load_checkpoint(str(timm), Request()).record.source.startswith("timm:")
    assert_plain(f"open_clip:{timm}")
    hf = written(write_hf(tmp_path / "hf", SMALL, weights_of(SMALL)))
    assert load_checkpoint(str(hf), Request()).architecture.num_classes == SMALL.num_classes
    assert_plain(f"open_clip:{hf}")


def test_the_text_half_is_left_out_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        load_checkpoint(str(written(tmp_path / "x")), Request())
    said = [record.message for record in caplog.records if "text half" in record.message]
    assert len(said) == 1
    assert "ln_final, positional_embedding, text_projection, token_embedding" in said[0]


OTHER_TOWERS: dict[str, tuple[dict[str, Any], str]] = {
    "timm": ({"timm_model_name": "vit_base_patch16_siglip_224"}, "timm_model_name: 'vit_base"),
    "ResNet": ({"layers": [3, 4, 6, 3]}, "layers: a ResNet"),
    "CoCa": ({"attentional_pool": True}, r"attentional_pool: True: attention pooling \(CoCa\)"),
    "parallel": ({"attentional_pool": "parallel"}, "attentional_pool: 'parallel'"),
    "no pooling": ({"pool_type": "none"}, "pool_type: 'none'"),
    "tanh": ({"act_kwargs": {"approximate": "tanh"}}, "act_kwargs: .*another activation"),
    "qk norm": ({"qk_norm": True}, "qk_norm: True: normalised queries"),
    "cosines": ({"scaled_cosine_attn": True}, "attention by cosines"),
    "head scales": ({"scale_heads": True}, "a factor for each head"),
    "inner norm": ({"scale_attn_inner": True}, "a norm inside attention"),
    "attention norm": ({"scale_attn": True}, "a norm behind attention"),
    "MLP norm": ({"scale_fc": True}, "a norm inside the MLP"),
    "news": ({"rotary": True}, "rotary: unknown"),
}


@pytest.mark.parametrize("kind", OTHER_TOWERS)
def test_another_tower_is_refused_by_name_with_a_way_on(kind: str, tmp_path: Path) -> None:
    vision, words = OTHER_TOWERS[kind]
    path = written(tmp_path / "x")
    write_json(path / "open_clip_config.json", config_of(Case(vision)))
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(str(path), Request())
    assert "torch.onnx.export" in str(caught.value)
    assert "--onnx" in str(caught.value)


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "empty": ({}, "model_cfg.vision_cfg: missing"),
    "no object": ({"model_cfg": []}, "model_cfg: expected an object, got list"),
    "no vision": ({"model_cfg": {"embed_dim": 8}}, "model_cfg.vision_cfg: missing"),
    "no width behind": (
        {"model_cfg": {"vision_cfg": PLAIN.config["vision_cfg"]}},
        "embed_dim: missing",
    ),
    "heads": (config_of(Case({"head_width": 5})), "head_width: 5 does not divide width 32"),
    "ratio": (config_of(Case({"mlp_ratio": 0})), "mlp_ratio: 0.0 makes an MLP of 0"),
    "size": (config_of(Case({"image_size": "32"})), "image_size: '32' is neither"),
    "patch": (config_of(Case({"patch_size": 0})), "patch_size: 0 is no positive"),
    "norm": (config_of(Case({"norm_kwargs": {"bias": False}})), "norm_kwargs: .*only eps"),
    "longest": (config_of(PLAIN, {"resize_mode": "longest"}), "resize_mode: 'longest'"),
    "lanczos": (config_of(PLAIN, {"interpolation": "lanczos"}), "interpolation: 'lanczos'"),
    "colour": (config_of(PLAIN, {"mean": [0.5, 0.5]}), "mean: .*three numbers"),
    "no spread": (config_of(PLAIN, {"std": 0}), "std: .*must be positive"),
    "edge": (config_of(Case({"image_size": [24, 40]})), "'shortest' is not supported for images"),
}


@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_a_config_that_says_something_impossible_is_refused(kind: str, tmp_path: Path) -> None:
    config, words = BAD_CONFIGS[kind]
    path = written(tmp_path / "x")
    write_json(path / "open_clip_config.json", config)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(str(path), Request())


def test_weights_without_a_config_say_what_to_write(tmp_path: Path) -> None:
    path = written(tmp_path / "x")
    (path / "open_clip_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"open_clip_config\.json: missing.*get_model_config"):
        load_checkpoint(str(path / SAFE), Request())


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"visual.proj": None}, r"missing \(1\):\n.*visual\.proj \[32, 24\]"),
        ({"visual.ln_pre.bias": None}, r"missing \(1\):\n.*visual\.ln_pre\.bias"),
        ({"visual.proj": torch.zeros(32, 25)}, "another shape"),
        ({"visual.attn_pool.query": torch.zeros(1)}, r"not understood \(1\).*\n.*attn_pool"),
        ({"strange": torch.zeros(1)}, r"not understood \(1\)"),
        ({"visual.ln_post.bias": torch.full((32,), torch.nan)}, "NaN"),
    ],
    ids=["no projection", "no norm", "another width", "a pooler", "a stranger", "NaN"],
)
def test_tensors_that_do_not_fit_are_named(
    tensors: dict[str, torch.Tensor | None], words: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "x")
    changed = state(PLAIN) | tensors
    save_file({n: t for n, t in changed.items() if t is not None}, path / SAFE)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(str(path), Request())


def test_a_sigmoids_bias_has_features_and_no_zero_shot_head(tmp_path: Path) -> None:
    path = written(tmp_path / "x")
    save_file(state(PLAIN) | {"logit_bias": torch.tensor(-10.0)}, path / SAFE)
    assert_plain(str(path))
    np.save(tmp_path / "texts.npy", texts())
    (tmp_path / "labels.txt").write_text("kind\n" * len(texts()))
    with pytest.raises(CheckpointError, match=r"logit_bias.*SigLIP"):
        assert_plain(
            str(path), labels=tmp_path / "labels.txt", text_embeddings=tmp_path / "texts.npy"
        )


def test_an_archive_of_openai_is_refused_with_the_file_to_take(tmp_path: Path) -> None:
    file = tmp_path / "ViT-B-32.pt"
    with warnings.catch_warnings():  # torch.jit is deprecated
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(file))
    for source in (str(file), f"open_clip:{file}", f"timm:{file}", f"hf:{file}"):
        if source.startswith("hf:"):
            write_json(tmp_path / "config.json", {"model_type": "clip", "vision_config": {}})
        with pytest.raises(CheckpointError, match=r"TorchScript.*hf:openai/clip-vit-base-patch32"):
            load_checkpoint(source, Request())
