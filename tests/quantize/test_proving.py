"""Groups are found in any exporter's graph, and none is believed before it was tried."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from tests.support import foreign_graphs as graphs
from tests.support.foreign import FOREIGN
from tests.support.foreign_graphs import Shape
from vit_edge.bundle import Bundle
from vit_edge.graphs.exactness import relative_difference
from vit_edge.graphs.normalise import normalise
from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize.linears import Linear, block_linears, constant
from vit_edge.quantize.rescale import proving
from vit_edge.quantize.rescale.folding import Factor, Group, columns, groups, rows
from vit_edge.quantize.rescale.proving import prove_groups

requires = ("torch", "onnx", "onnx_ir", "onnxruntime", "transformers")

NOISE = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)


@dataclasses.dataclass(frozen=True)
class Bench:
    """A settled model, and what is needed to run it."""

    workspace: Workspace
    model: onnx_ir.Model
    linears: list[Linear]
    pixels: NDArray[np.float32]

    def groups(self) -> list[Group]:
        return prove_groups(self.workspace, self.model, self.linears, self.pixels)

    def answers(self) -> NDArray[np.float32]:
        outputs = self.model.graph.outputs
        (found,) = self.workspace.observe(self.model, outputs, [self.pixels])
        return found[str(outputs[0].name)]

    def named(self, ending: str) -> Linear:
        return next(linear for linear in self.linears if linear.name.endswith(ending))


def bench(path: Path, folder: Path, pixels: NDArray[np.float32] = NOISE) -> Bench:
    model = onnx_ir.load(path)
    normalise(model)
    workspace = Workspace(folder)
    model = workspace.settle(model)
    return Bench(workspace, model, block_linears(model), pixels)


def fold_at_random(found: list[Group], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for group in found:
        channels = len(group.linears[0].matrix())
        shift = rng.standard_normal(channels) if group.can_shift else np.zeros(channels)
        group.fold(np.exp(rng.uniform(-2, 2, channels)), shift)


def values(found: list[Group]) -> list[str]:
    return [group.name for group in found if group.name.endswith(".value")]


@pytest.mark.parametrize("kind", FOREIGN)
def test_every_block_of_a_foreign_graph_has_its_three_groups(
    kind: str, foreign_file: Callable[[str], Path], tmp_path: Path
) -> None:
    tried = bench(foreign_file(kind), tmp_path)
    found = tried.groups()
    readers = 3 if kind.startswith("hf") else 1
    assert [len(group.linears) for group in found] == [readers, 1] * 2 + [1] * 2
    assert len(values(found)) == 2
    assert all(group.can_shift for group in found)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.builds(
        Shape,
        heads=st.integers(1, 3),
        head_dim=st.sampled_from([4, 6, 16]),
        depth=st.integers(1, 2),
        mlp_dim=st.sampled_from([8, 20]),
        patch_px=st.sampled_from([8, 16]),
        image_px=st.just(32),
        qkv_bias=st.booleans(),
    ),
    form=st.sampled_from(["hf-sdpa", "hf-eager", "fused", "plain", "avg", "layer-scale"]),
    merged=st.booleans(),
    seed=st.integers(0, 99),
)
def test_folding_what_was_proven_leaves_the_answers_of_any_graph(
    tmp_path_factory: pytest.TempPathFactory, shape: Shape, form: str, merged: bool, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    model = of_form(form, shape)
    graphs.with_random_weights(model, seed, spare_biases=merged)
    path = graphs.export(model, folder / "vit.onnx", "torchscript", 17)
    tried = bench(path, folder / "work")
    before = tried.answers()
    weights = {linear.name: linear.matrix().copy() for linear in tried.linears}
    found = tried.groups()
    assert all(np.array_equal(linear.matrix(), weights[linear.name]) for linear in tried.linears)
    assert len(found) == 3 * shape.depth
    fold_at_random(found, seed)
    assert relative_difference(tried.answers(), before) < 1e-5
    unchanged = [
        linear for linear in tried.linears if np.array_equal(linear.matrix(), weights[linear.name])
    ]
    assert len(unchanged) == shape.depth  # fc2 alone, behind a GELU


def of_form(form: str, shape: Shape) -> nn.Module:
    if form.startswith("hf-"):
        return graphs.hf_vit(shape, form.removeprefix("hf-"))
    return graphs.TimmViT(
        shape,
        fused=form != "plain",
        pool="avg" if form == "avg" else "token",
        layer_scale=form == "layer-scale",
    )


@pytest.mark.parametrize("fixture", ["testing_bundle", "decomposed_bundle", "tokens_bundle"])
def test_our_own_graphs_keep_the_groups_that_their_names_show(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle: Bundle = request.getfixturevalue(fixture)
    workspace = Workspace(tmp_path)
    model = workspace.settle(onnx_ir.load(bundle.model_path))
    linears = block_linears(model)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32)
    expected = [group.name for group in groups(model, linears)]
    assert [g.name for g in prove_groups(workspace, model, linears, pixels)] == expected


def test_values_that_are_not_laid_out_one_after_another_are_left_alone(tmp_path: Path) -> None:
    """[heads, 3, head_dim] instead of timm's [3, heads, head_dim]."""
    model = graphs.with_random_weights(graphs.TimmViT(Shape(), order="h3d"))
    path = graphs.export(model, tmp_path / "vit.onnx", "torchscript", 17)
    found = bench(path, tmp_path / "work").groups()
    assert len(found) == 4
    assert values(found) == []


def test_one_head_is_laid_out_alike_in_both_orders(tmp_path: Path) -> None:
    model = graphs.with_random_weights(graphs.TimmViT(Shape(heads=1), order="h3d"))
    path = graphs.export(model, tmp_path / "vit.onnx", "torchscript", 17)
    assert len(values(bench(path, tmp_path / "work").groups())) == 2


def of_queries(tried: Bench) -> Group:
    """Takes the queries for the values."""
    qkv, out = tried.named("qkv"), tried.named("proj")
    return Group("queries", (out,), (*columns(qkv, 0, len(out.matrix())), rows(out)), True)


def across_gelu(tried: Bench) -> Group:
    """Believes that fc1 -> GELU -> fc2 could be rescaled."""
    fc1, fc2 = tried.named("mlp/mlp.0"), tried.named("mlp/mlp.2")
    return Group("gelu", (fc2,), (*columns(fc1, 0, len(fc2.matrix())), rows(fc2)), False)


def forgetful(tried: Bench) -> Group:
    """Rescales a LayerNormalization, but not its bias."""
    good = groups(tried.model, tried.linears)[0]
    return dataclasses.replace(
        good, name="forgetful", factors=tuple(f for f in good.factors if not f.shifted)
    )


def barely(tried: Bench) -> Group:
    """Is wrong in a single weight."""
    good = groups(tried.model, tried.linears)[0]
    (factor, *_) = good.factors
    one = Factor(factor.value, (slice(0, 1),), (-1,), inverse=False)
    lame = dataclasses.replace(good, name="barely")

    class OneOff(Group):
        def fold(self, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
            lame.fold(scale, shift)
            array = constant(one.value).copy()
            array[0] *= 1.1
            one.value.const_value = onnx_ir.tensor(array, name=one.value.name)

    return OneOff("barely", good.linears, good.factors, good.can_shift)


@pytest.mark.parametrize("planted", [of_queries, across_gelu, forgetful, barely])
def test_a_wrong_group_is_dropped_and_the_right_ones_stay(
    planted: Callable[[Bench], Group],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # with layer scales of 1e-5 the logits alone would hardly show it
    model = graphs.TimmViT(Shape(), layer_scale=True)
    graphs.with_random_weights(model)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            parameter.data.fill_(1e-5)
    path = graphs.export(model, tmp_path / "vit.onnx", "torchscript", 17)
    tried = bench(path, tmp_path / "work")
    wrong = planted(tried)
    right = groups(tried.model, tried.linears)[1:]
    monkeypatch.setattr(proving, "groups", lambda model, linears: [*right, wrong])
    found = tried.groups()
    assert [group.name for group in found][: len(right)] == [group.name for group in right]
    assert wrong not in found
    assert f"{wrong.name}: rescaling its channels changes the answers" in caplog.text
