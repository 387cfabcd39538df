"""The reference ViT by itself; tests/checkpoints compares it with transformers and timm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.checkpoints.foreign import SMALL, assert_close, weights_of
from vit_edge.bundle.architecture import Architecture
from vit_edge.models import vit
from vit_edge.models.vit import Outputs, parameter_shapes, vit_from_weights

requires = ("torch", "safetensors")

POOLED = replace(SMALL, pre_logits_dim=12)


def pixels(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()


def outputs(architecture: Architecture = SMALL, count: int = 3) -> Outputs:
    found: Outputs = vit_from_weights(architecture, weights_of(architecture)).double()(
        pixels(count)
    )
    return found


def plain(weights: dict[str, Tensor], a: Architecture) -> Tensor:
    """Appendix A of the paper again, one head at a time, without any module of ours."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + a.layer_norm_eps).sqrt()
        return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    kernel = w["embedding.patch.weight"].flatten(1).t()
    patches = functional.unfold(pixels(), a.patch_px, stride=a.patch_px).transpose(1, 2)
    x = patches @ kernel + w["embedding.patch.bias"]
    x = torch.cat([w["embedding.cls_token"].expand(len(x), -1, -1), x], 1) + w["embedding.position"]
    for index in range(a.depth):
        block = f"blocks.{index}"
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attention.qkv")
        q, k, v = qkv.split(a.width, dim=-1)
        heads = []
        for head in range(a.heads):
            part = slice(head * a.head_dim, (head + 1) * a.head_dim)
            scores = q[..., part] @ k[..., part].mT / a.head_dim**0.5
            heads.append(scores.softmax(-1) @ v[..., part])
        x = x + linear(torch.cat(heads, -1), f"{block}.attention.out")
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        x = x + linear(hidden * (1 + torch.erf(hidden / 2**0.5)) / 2, f"{block}.mlp.fc2")
    features = norm(x, "readout.norm")[:, 0]
    if a.pre_logits_dim:
        features = linear(features, "readout.pre_logits").tanh()
    return linear(features, "readout.head")


@pytest.mark.parametrize("architecture", [SMALL, POOLED], ids=["plain", "pre-logits"])
def test_the_model_computes_the_equations_of_the_paper(architecture: Architecture) -> None:
    found = outputs(architecture).logits
    assert found is not None
    assert_close(found, plain(weights_of(architecture), architecture), 1e-12)


def tanh_gelu(
    x: Tensor, approximate: str = "none", gelu: Callable[..., Tensor] = functional.gelu
) -> Tensor:
    return gelu(x, approximate="tanh")


def interleaved(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (-1, heads)).movedim(-1, 1)


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [(functional, "gelu", tanh_gelu), (vit, "split_heads", interleaved)],
    ids=["tanh-gelu", "interleaved-heads"],
)
def test_a_planted_bug_is_seen(
    module: ModuleType,
    name: str,
    broken: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = plain(weights_of(SMALL), SMALL)
    monkeypatch.setattr(module, name, broken)
    found = outputs().logits
    assert found is not None
    with pytest.raises(AssertionError):
        assert_close(found, expected, 1e-6)


def test_rows_of_a_batch_do_not_mix() -> None:
    many, one = outputs(count=3).tokens, outputs(count=1).tokens
    assert_close(many[:1], one, 1e-12)


def test_features_are_the_class_token_and_pre_logits_the_features_without_a_tanh_layer() -> None:
    found = outputs()
    assert torch.equal(found.features, found.tokens[:, 0])
    assert torch.equal(found.pre_logits, found.features)


def test_a_model_without_a_head_has_no_logits() -> None:
    assert outputs(replace(SMALL, num_classes=0)).logits is None


def test_building_a_model_copies_no_weight() -> None:
    weights = weights_of(SMALL)
    model = vit_from_weights(SMALL, weights)
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == weights[name].data_ptr(), name


@pytest.mark.parametrize("change", ["missing", "extra", "misshaped"])
def test_weights_that_do_not_fit_are_refused(change: str) -> None:
    weights = weights_of(SMALL)
    if change == "missing":
        del weights["readout.norm.bias"]
    elif change == "extra":
        weights["more"] = torch.zeros(1)
    else:
        weights["readout.norm.bias"] = torch.zeros(3)
    with pytest.raises(RuntimeError):
        vit_from_weights(SMALL, weights)


def test_shapes_are_known_without_allocating() -> None:
    huge = replace(SMALL, width=1 << 20, mlp_dim=1 << 22)
    assert parameter_shapes(huge)["blocks.0.mlp.fc1.weight"] == (1 << 20, 1 << 22)
