"""DINO and DINOv2 as facebookresearch saves them: equal to their own code, at any size."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.checkpoints.foreign import assert_close, timm_config, write_json
from vit_edge.checkpoints import Checkpoint, Request, load_checkpoint
from vit_edge.errors import CheckpointError
from vit_edge.models.vit import vit_from_weights
from vit_edge.variants import VARIANTS

requires = ("torch", "safetensors")

WIDTH, DEPTH, HEADS, PATCH_PX = 64, 2, 2, 16  # those of the variant testing, for the heads


class Theirs(nn.Module):
    """DinoVisionTransformer of dinov2/models/vision_transformer.py, or DINO's without scales."""

    def __init__(self, side: int, registers: int = 0, scales: bool = True) -> None:
        super().__init__()
        tokens = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + side**2, WIDTH)}
        if scales:
            tokens |= {"mask_token": (1, WIDTH)}
        if registers:
            tokens |= {"register_tokens": (1, registers, WIDTH)}
        for name, shape in tokens.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.registers, self.side, self.scales = registers, side, scales
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH_PX, PATCH_PX)})
        self.blocks = nn.ModuleList(self.block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            offset = 0.5 if parameter.ndim == 1 else 0.0
            values = torch.randn(parameter.shape, generator=generator) * 0.2 + offset
            parameter.data.copy_(values)

    def block(self) -> nn.ModuleDict:
        layers: dict[str, nn.Module] = {f"norm{n}": nn.LayerNorm(WIDTH, eps=1e-6) for n in (1, 2)}
        layers["attn"] = nn.ModuleDict(
            {"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)}
        )
        layers["mlp"] = nn.ModuleDict(
            {"fc1": nn.Linear(WIDTH, 2 * WIDTH), "fc2": nn.Linear(2 * WIDTH, WIDTH)}
        )
        if self.scales:
            for name in ("ls1", "ls2"):
                layers[name] = nn.ParameterDict({"gamma": nn.Parameter(torch.empty(WIDTH))})
        return nn.ModuleDict(layers)

    def positions(self, height_px: int, width_px: int) -> Tensor:
        """Follow interpolate_pos_encoding, with DINOv2's offset of 0.1, or antialiased without."""
        rows, columns = height_px // PATCH_PX, width_px // PATCH_PX
        if (rows, columns) == (self.side, self.side):
            return self.pos_embed
        count = self.pos_embed.shape[1] - 1
        square = int(math.sqrt(count))
        grid = self.pos_embed[:, 1:].reshape(1, square, square, WIDTH).permute(0, 3, 1, 2)
        if self.registers:
            how: dict[str, Any] = {"size": (rows, columns), "antialias": True}
        else:
            scale = ((rows + 0.1) / math.sqrt(count), (columns + 0.1) / math.sqrt(count))
            how = {"scale_factor": scale}
        grid = functional.interpolate(grid, mode="bicubic", **how)
        assert grid.shape[2:] == (rows, columns)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.positions(*pixels.shape[2:]).to(x.dtype)
        if self.registers:
            registers = self.register_tokens.expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
        for block in self.blocks:
            x = x + self.scaled(block, "ls1", self.attention(block["attn"], block["norm1"](x)))
            hidden = functional.gelu(block["mlp"]["fc1"](block["norm2"](x)))
            x = x + self.scaled(block, "ls2", block["mlp"]["fc2"](hidden))
        return self.norm(x)

    def scaled(self, block: nn.ModuleDict, name: str, x: Tensor) -> Tensor:
        return x * block[name]["gamma"] if self.scales else x

    def attention(self, layers: nn.ModuleDict, x: Tensor) -> Tensor:
        heads = layers["qkv"](x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(*heads)
        return layers["proj"](y.transpose(1, 2).flatten(2))


def saved(model: nn.Module, path: Path, prefix: str = "") -> Path:
    torch.save({prefix + name: tensor for name, tensor in model.state_dict().items()}, path)
    return path


def assert_same_features(checkpoint: Checkpoint, model: Theirs) -> None:
    """1e-6, as positions and folded scales are float32."""
    pixels = torch.randn(2, 3, *checkpoint.architecture.image_hw, dtype=torch.float64)
    vit = vit_from_weights(checkpoint.architecture, dict(checkpoint.weights)).double()
    positions = model.positions(*pixels.shape[2:])  # in float32, as theirs
    model.positions = lambda *_: positions  # type: ignore[method-assign]
    with torch.no_grad():
        expected = model.double()(pixels)
        assert_close(vit(pixels).tokens, expected, 1e-6)
        assert_close(vit(pixels).features, expected[:, 0], 1e-6)


@pytest.mark.parametrize("side", [14, 20], ids=["at its size", "resized"])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_is_evaluated_at_224_px_as_in_its_own_code(
    registers: int, side: int, tmp_path: Path
) -> None:
    model = Theirs(side, registers)
    path = saved(model, tmp_path / "dinov2_vits14_pretrain.pth")
    loaded = load_checkpoint(str(path), Request())
    assert loaded.architecture.image_hw == (224, 224)
    assert loaded.architecture.layer_norm_eps == 1e-6
    method = "bicubic-antialias" if registers else "bicubic-offset"
    moved = loaded.record.position_interpolation
    assert (moved and moved.method) == (None if side == 14 else method)
    assert loaded.preprocessing == VARIANTS["dino-small-patch16-224"].preprocessing
    assert_same_features(loaded, model)


@pytest.mark.parametrize("image_hw", [(320, 320), (96, 160), (512, 64)], ids=str)
def test_dinov2_at_another_size(image_hw: tuple[int, int], tmp_path: Path) -> None:
    model = Theirs(20)
    path = saved(model, tmp_path / "x.pth")
    loaded = load_checkpoint(f"timm:{path}", Request(image_hw=image_hw))
    assert loaded.preprocessing.crop_hw == loaded.architecture.image_hw == image_hw
    assert_same_features(loaded, model)


def test_another_method_than_theirs_is_seen(tmp_path: Path) -> None:
    """The comparison above must be able to fail."""
    for registers, other in ((0, "bicubic"), (4, "bicubic-offset")):
        model = Theirs(20, registers)
        path = saved(model, tmp_path / "x.pth")
        loaded = load_checkpoint(str(path), Request(position_method=other))  # type: ignore[arg-type]
        with pytest.raises(AssertionError, match="difference"):
            assert_same_features(loaded, model)


def test_beside_timms_config_it_is_timms(tmp_path: Path) -> None:
    """timm's own files of DINOv2 have the layer scale, too; its config decides."""
    model = Theirs(20)
    saved(model, tmp_path / "pytorch_model.bin")
    architecture = replace(VARIANTS["testing"].architecture, image_hw=(320, 320), num_classes=0)
    write_json(tmp_path / "config.json", timm_config(architecture))
    loaded = load_checkpoint(str(tmp_path), Request())
    assert loaded.architecture.image_hw == (320, 320)
    resized = load_checkpoint(str(tmp_path), Request(image_hw=(224, 224)))
    assert resized.record.position_interpolation is not None
    assert resized.record.position_interpolation.method == "bicubic-antialias"


def dino_small(path: Path) -> Path:
    """The names and shapes of dino_deitsmall16_pretrain.pth, all zeros but a few."""
    a = VARIANTS["dino-small-patch16-224"].architecture
    d, h = a.width, a.mlp_dim
    shapes = {"cls_token": (1, 1, d), "pos_embed": (1, 197, d), "patch_embed.proj.bias": (d,)}
    shapes |= {"patch_embed.proj.weight": (d, 3, 16, 16), "norm.weight": (d,), "norm.bias": (d,)}
    layers = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (h, d), "mlp.fc2": (d, h)}
    for block in range(a.depth):
        for name, shape in layers.items():
            shapes |= {f"blocks.{block}.{name}.weight": shape}
            shapes |= {f"blocks.{block}.{name}.bias": shape[:1]}
        for leaf in ("weight", "bias"):
            shapes |= {f"blocks.{block}.norm{n}.{leaf}": (d,) for n in (1, 2)}
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    state["pos_embed"] = torch.randn(1, 197, d)
    torch.save(state, path)
    return path


def test_dino_is_preprocessed_and_resized_as_in_its_own_code(tmp_path: Path) -> None:
    path, row = dino_small(tmp_path / "x.pth"), VARIANTS["dino-small-patch16-224"]
    loaded = load_checkpoint(str(path), Request(variant=row))
    assert loaded.preprocessing == row.preprocessing
    assert loaded.record.position_interpolation is None
    resized = load_checkpoint(str(path), Request(variant=row, image_hw=(288, 288)))
    position = torch.load(path, weights_only=True)["pos_embed"]
    grid = position[:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    scale = (18 + 0.1) / 14
    grid = functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    expected = torch.cat([position[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    assert torch.equal(resized.weights["embedding.position"], expected)
    assert resized.preprocessing.resize_hw == (329, 329)


def test_without_a_variant_the_preprocessing_of_dino_is_not_guessed(tmp_path: Path) -> None:
    model = Theirs(14, scales=False)
    with pytest.raises(CheckpointError, match="mean, std and crop of the images are unknown"):
        load_checkpoint(str(saved(model, tmp_path / "x.pth")), Request())


def test_chunks_of_fsdp_are_taken_out_of_the_names(tmp_path: Path) -> None:
    """A training checkpoint of DINOv2: two chunks of a block each, heads and losses beside."""
    model = Theirs(14)
    teacher = {
        "backbone." + re.sub(r"^blocks.(\d).", r"blocks.\1.\1.", name): tensor
        for name, tensor in model.state_dict().items()
    }
    teacher |= {f"{kind}_head.mlp.0.weight": torch.zeros(3) for kind in ("dino", "ibot")}
    teacher["ibot_head.last_layer.weight_v"] = torch.zeros(3)
    torch.save({"teacher": teacher}, tmp_path / "teacher_checkpoint.pth")
    loaded = load_checkpoint(str(tmp_path / "teacher_checkpoint.pth"), Request())
    assert loaded.architecture.depth == 2
    assert_same_features(loaded, model)


def head_of(inputs: int) -> dict[str, Tensor]:
    return {"weight": torch.randn(1000, inputs), "bias": torch.randn(1000)}


def assert_joined(checkpoint: Checkpoint, model: Theirs, head: dict[str, Tensor]) -> None:
    """What _LinearClassifierWrapper of dinov2/hub/classifiers.py computes with one layer."""
    assert checkpoint.architecture.pooling == "class+mean"
    assert checkpoint.labels[0].startswith("tench")
    pixels = torch.randn(2, 3, 224, 224)
    vit = vit_from_weights(checkpoint.architecture, dict(checkpoint.weights))
    first = 1 + model.registers
    with torch.no_grad():
        tokens = model(pixels)
        read = torch.cat([tokens[:, 0], tokens[:, first:].mean(dim=1)], dim=1)
        assert_close(vit(pixels).logits, read @ head["weight"].T + head["bias"], 1e-5)


@pytest.mark.parametrize("registers", [0, 4])
def test_a_linear_head_is_joined_to_the_backbone_beside_it(registers: int, tmp_path: Path) -> None:
    model, head = Theirs(14, registers), head_of(2 * WIDTH)
    backbone = saved(model, tmp_path / "dinov2_vits14_pretrain.pth")
    named = tmp_path / "dinov2_vits14_linear_head.pth"
    torch.save(head, named)
    for source in (str(named), f"timm:{named}"):
        loaded = load_checkpoint(source, Request())
        assert set(loaded.record.sha256) == {named.name, backbone.name}
        assert_joined(loaded, model, head)
    assert load_checkpoint(str(backbone), Request()).architecture.num_classes == 0
    backbone.unlink()
    with pytest.raises(CheckpointError, match="put dinov2_vits14_pretrain.pth beside it"):
        load_checkpoint(str(named), Request())


def test_the_classifier_of_torch_hub_is_read_whole(tmp_path: Path) -> None:
    model, head = Theirs(14), head_of(2 * WIDTH)
    whole = {f"backbone.{name}": t for name, t in model.state_dict().items()}
    whole |= {f"linear_head.{name}": t for name, t in head.items()}
    torch.save(whole, tmp_path / "x.pth")
    assert_joined(load_checkpoint(str(tmp_path / "x.pth"), Request()), model, head)
    alone = load_checkpoint(str(tmp_path / "x.pth"), Request(key="backbone"))
    assert alone.architecture.num_classes == 0


@pytest.mark.parametrize("inputs", [5 * WIDTH, WIDTH])
def test_a_head_over_something_else_is_refused(inputs: int, tmp_path: Path) -> None:
    saved(Theirs(14), tmp_path / "m_pretrain.pth")
    torch.save(head_of(inputs), tmp_path / "m_linear4_head.pth")
    with pytest.raises(CheckpointError, match=rf"\[1000, {inputs}\].* over the last block alone"):
        load_checkpoint(str(tmp_path / "m_linear4_head.pth"), Request())


def test_a_linear_head_on_another_model_than_dinov2_is_refused(tmp_path: Path) -> None:
    whole = {f"backbone.{name}": t for name, t in Theirs(14, scales=False).state_dict().items()}
    whole |= {f"linear_head.{name}": t for name, t in head_of(2 * WIDTH).items()}
    torch.save(whole, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="--key backbone"):
        load_checkpoint(str(tmp_path / "x.pth"), Request())


@pytest.mark.parametrize(
    ("name", "reason"),
    [("blocks.0.mlp.w12.weight", "SwiGLU"), ("rope_embed.periods", "rotary positions")],
)
def test_giants_and_dinov3_are_refused_by_name(name: str, reason: str, tmp_path: Path) -> None:
    torch.save(Theirs(14).state_dict() | {name: torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=reason):
        load_checkpoint(str(tmp_path / "x.pth"), Request())
