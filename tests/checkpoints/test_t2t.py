"""T2T-ViT's own files: equal to its code, at any size; what is another model is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.checkpoints.foreign import assert_close, logits_of
from tests.support.t2t import DIM, WIDTH, Kind, Theirs, saved
from vit_edge import plugins
from vit_edge.checkpoints import SOURCES, Request, load_checkpoint
from vit_edge.checkpoints.assemble import heads_from_table
from vit_edge.errors import CheckpointError, UsageError
from vit_edge.variants import variant

requires = ("torch", "safetensors")

KINDS = get_args(Kind)


def random_pixels(*hw: int) -> Tensor:
    return torch.randn(2, 3, *hw, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_its_own_code(
    kind: Kind, dtype: torch.dtype, relative: float, tmp_path: Path
) -> None:
    model = Theirs(kind).to(dtype)
    loaded = load_checkpoint(str(saved(Theirs(kind), tmp_path / "x.pth.tar")), Request())
    pixels = random_pixels(64, 64).to(dtype)
    assert_close(logits_of(loaded, pixels), model(pixels), relative)
    assert loaded.architecture.layer_norm_eps == 1e-5


def test_the_quotients_epsilon_counts_where_keys_are_long(tmp_path: Path) -> None:
    """Keys of length 8: the features are some e^-30, and 1e-8 beside them is all."""
    model = Theirs("performer")
    for layer in (model.tokens_to_token.attention1, model.tokens_to_token.attention2):
        layer.kqv.weight.data[: 2 * DIM] *= 8
    loaded = load_checkpoint(str(saved(model, tmp_path / "x.pth")), Request())
    pixels = random_pixels(64, 64).double()
    expected = model.double()(pixels)
    assert_close(logits_of(loaded, pixels), expected, 1e-9)
    for layer in (model.tokens_to_token.attention1, model.tokens_to_token.attention2):
        layer.w.data.zero_()
    with pytest.raises(AssertionError):
        assert_close(logits_of(loaded, pixels), model(pixels), 1e-9)


@pytest.mark.parametrize("hw", [(96, 96), (48, 80)], ids=["square", "oblong"])
@pytest.mark.parametrize("kind", KINDS)
def test_another_size_has_the_positions_of_its_resize_pos_embed(
    kind: Kind, hw: tuple[int, int], tmp_path: Path
) -> None:
    """Its code takes squares alone; the other sizes are the same with two sides."""
    model = Theirs(kind)
    loaded = load_checkpoint(str(saved(model, tmp_path / "x.pth")), Request(image_hw=hw))
    grid = model.pos_embed.data[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    grid = functional.interpolate(grid, size=(hw[0] // 16, hw[1] // 16), mode="bicubic")
    model.pos_embed.data = torch.cat(
        [model.pos_embed.data[:, :1], grid.flatten(2).transpose(1, 2)], dim=1
    )
    pixels = random_pixels(*hw).double()
    assert_close(logits_of(loaded, pixels), model.double()(pixels), 1e-9)
    moved = loaded.record.position_interpolation
    assert moved is not None
    assert moved.method == "bicubic"


def test_a_published_shape_is_its_variant(tmp_path: Path) -> None:
    model = Theirs("performer", 224, 256, 7, 4, 512, 64, 1000)
    loaded = load_checkpoint(
        str(saved(model, tmp_path / "71.7_T2T_ViT_7.pth.tar", None)), Request()
    )
    row = variant("t2t-vit-7")
    assert loaded.variant == row.name
    assert loaded.architecture == row.architecture
    assert loaded.preprocessing == row.preprocessing
    assert (row.preprocessing.resize_hw, row.preprocessing.interpolation) == ((248, 248), "bicubic")
    assert loaded.labels[0] == "tench, Tinca tinca"


def test_the_heads_of_a_shape_are_those_of_its_own_kind() -> None:
    """14 blocks of 384 channels are no plain ViT's, and 12 no T2T-ViT's."""
    assert heads_from_table(384, 14, None, "x", "t2t") == 6
    assert heads_from_table(384, 12, None, "x") == 6
    for depth, tokenizer in ((14, "patches"), (12, "t2t")):
        with pytest.raises(CheckpointError, match=f"width 384 and depth {depth}"):
            heads_from_table(384, depth, None, "x", tokenizer)  # type: ignore[arg-type]


def nested(**entries: Any) -> Callable[[Theirs, Path], None]:
    return lambda model, path: torch.save(
        {**{name: entry(model.state_dict()) for name, entry in entries.items()}, "epoch": 3}, path
    )


def as_is(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "head.weight": state["head.weight"] / 2}


def parallel(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("save", "key"),
    [
        (nested(state_dict=halved, state_dict_ema=as_is), None),
        (nested(state_dict=as_is, state_dict_ema=halved), "state_dict"),
        (nested(state_dict_ema=parallel), None),
        (nested(net=parallel), None),  # of transfer_learning.py
    ],
)
def test_a_training_has_its_averaged_weights_read_as_its_own_evaluation_does(
    save: Callable[[Theirs, Path], None], key: str | None, tmp_path: Path
) -> None:
    model = Theirs("transformer")
    path = saved(model, tmp_path / "last.pth.tar")
    save(model, path)
    loaded = load_checkpoint(str(path), Request(key=key))
    assert torch.equal(loaded.weights["readout.head.weight"], model.head.weight.t())


def test_the_heads_of_a_training_are_those_of_its_architecture(tmp_path: Path) -> None:
    """t2t_vit_14_resnext has the tensors of t2t_vit_14, and 32 heads; a config.json decides."""
    model, path = Theirs("performer"), tmp_path / "last.pth.tar"
    torch.save({"state_dict": model.state_dict(), "arch": "t2t_vit_14_resnext"}, path)
    assert load_checkpoint(f"t2t:{path}", Request()).architecture.heads == 32
    path.with_name("config.json").write_text('{"model_args": {"num_heads": 2}}')
    assert load_checkpoint(f"t2t:{path}", Request()).architecture.heads == 2


def altered(path: Path, change: Callable[[dict[str, Tensor]], object]) -> str:
    state = Theirs("performer").state_dict()
    change(state)
    torch.save(state, path)
    path.with_name("config.json").write_text('{"model_args": {"num_heads": 2}}')
    return str(path)


FIRST = "tokens_to_token.attention1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(f"{FIRST}.w"), rf"missing \(1\):\n    {FIRST}.w \[8, 16\]"),
        (lambda s: s.pop("cls_token"), r"missing \(1\):\n    cls_token \[1, 1, 64\]"),
        (lambda s: s.pop("pos_embed"), "pos_embed is missing: these are not T2T-ViT's"),
        (lambda s: s.pop(f"{FIRST}.norm1.weight"), "norm1.weight is missing: these are not T2T"),
        (
            lambda s: [s.pop(name) for name in list(s) if "attention2" in name],
            r"missing \(13\):\n    tokens_to_token.attention2.kqv.bias \[48\]",
        ),
        (
            lambda s: s.update({f"{FIRST}.proj.weight": torch.zeros(16, 8)}),
            rf"of another shape \(1\):\n    {FIRST}.proj.weight: found \[16, 8\], expected \[16",
        ),
        (
            lambda s: s.update({f"{FIRST}.norm1.weight": torch.zeros(100)}),
            rf"{FIRST}.norm1.weight: found \[100\], expected \[98\]",
        ),
        (
            lambda s: s.update(pos_embed=torch.zeros(1, 13, WIDTH)),
            "pos_embed has 13 rows, expected a square grid and the class token",
        ),
        (lambda s: s.update({f"{FIRST}.w": torch.full((8, 16), torch.nan)}), "w holds NaN"),
        (lambda s: s.update(aux_head=torch.zeros(3)), r"not understood \(1\):\n    aux_head \[3\]"),
        (
            lambda s: s.update({"tokens_to_token.project.weight": torch.zeros(64, 16, 3, 3)}),
            "project.weight is of shape .*, expected 2 axes",
        ),
        (
            lambda s: s.update({"tokens_to_token.soft_split0.weight": torch.zeros(16, 3, 7, 7)}),
            "It has convolutions for tokens.*soft_split0.weight.*--onnx",
        ),
        (
            lambda s: s.update({"blocks.0.attn.se_layer.fc.0.weight": torch.zeros(1)}),
            "squeeze-and-excitation.*--onnx",
        ),
        (
            lambda s: s.update({"blocks.0.mlp.cheap_operation2.weight": torch.zeros(1)}),
            "ghost layers.*--onnx",
        ),
        (
            lambda s: s.update({"blocks.0.dense_linear.weight": torch.zeros(1)}),
            "dense connections.*--onnx",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(altered(tmp_path / "x.pth", change), Request())


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = saved(Theirs("transformer"), tmp_path / "x.pth.tar")
    path.write_bytes(path.read_bytes()[:20_000])
    for source in (str(path), f"t2t:{path}"):
        with pytest.raises(CheckpointError, match=r"x\.pth\.tar: refused: .*damaged"):
            load_checkpoint(source, Request())


def test_heads_that_nothing_tells_are_asked_for(tmp_path: Path) -> None:
    path = saved(Theirs("transformer"), tmp_path / "x.pth", None)
    with pytest.raises(CheckpointError, match='the number of heads .*"num_heads": N'):
        load_checkpoint(str(path), Request())
    path.with_name("config.json").write_text('{"model_args": {"num_heads": "two"}}')
    with pytest.raises(CheckpointError, match="num_heads: 'two' is no positive integer"):
        load_checkpoint(str(path), Request())
    saved(Theirs("transformer"), path, 3)
    with pytest.raises(CheckpointError, match="width 64 is not divisible by 3 heads"):
        load_checkpoint(str(path), Request())


def test_another_variant_than_the_asked_is_told_by_its_tokenizer(tmp_path: Path) -> None:
    path = str(saved(Theirs("transformer"), tmp_path / "x.pth"))
    with pytest.raises(CheckpointError, match="tokenizer: the checkpoint has t2t, testing has pat"):
        load_checkpoint(path, Request(variant("testing")))
    with pytest.raises(CheckpointError, match="tokenizer: .* t2t, t2t-vit-7 has t2t-performer"):
        load_checkpoint(path, Request(variant("t2t-vit-7")))


def test_no_other_source_takes_it(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    saved(Theirs("performer"), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(
        json.dumps({"architecture": "t2t_vit_7", "model_args": {"num_heads": 2}})
    )
    for path in (folder, folder / "pytorch_model.bin"):
        recognised = [
            name for name in plugins.names(SOURCES) if plugins.load(SOURCES, name).recognises(path)
        ]
        assert recognised == ["t2t"], path
    with pytest.raises(CheckpointError, match=r"overlapping windows \(T2T-ViT, which t2t:PATH"):
        load_checkpoint(f"timm:{folder / 'pytorch_model.bin'}", Request(variant("testing")))


def test_a_size_of_no_whole_patches_is_a_usage_error(tmp_path: Path) -> None:
    path = str(saved(Theirs("transformer"), tmp_path / "x.pth"))
    with pytest.raises(UsageError, match="no multiple of the patch size 16 px"):
        load_checkpoint(path, Request(image_hw=(100, 96)))
    for source, message in (("t2t:", "needs a model id"), ("t2t:x.pth", "no such file")):
        with pytest.raises((UsageError, CheckpointError), match=message):
            load_checkpoint(source, Request())


def test_a_published_variant_says_where_its_weights_are() -> None:
    with pytest.raises(UsageError, match=r"take 81\.5_T2T_ViT_14\.pth\.tar of .* t2t:FILE"):
        load_checkpoint(None, Request(variant("t2t-vit-14")))
