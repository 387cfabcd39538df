"""Faults that exports really have, planted into block 3 of a sound bundle's graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vit_edge.bundle import Bundle
from vit_edge.parity.localize.taps import edited

BLOCK = 3
HERE = f"blocks.{BLOCK}"

Change = Callable[[Any], None]  # of a GraphProto


def planted(bundle: Bundle, change: Change, folder: Path) -> Bundle:
    """A bundle with another graph, whose manifest is in order."""
    model = onnx.load(bundle.model_path)
    before = model.SerializeToString(deterministic=True)
    change(model.graph)
    assert model.SerializeToString(deterministic=True) != before, "nothing was planted"
    folder.mkdir()
    return edited(bundle, model.SerializeToString(), folder)


def with_other_normalisation(bundle: Bundle, folder: Path) -> Bundle:
    """ImageNet's mean and std where the model wants others."""
    other = dataclasses.replace(
        bundle.manifest.preprocessing, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    manifest = dataclasses.replace(bundle.manifest, preprocessing=other)
    folder.mkdir()
    model = bundle.model_path.read_bytes()
    return edited(dataclasses.replace(bundle, manifest=manifest), model, folder)


def swapped_channels(graph: Any) -> None:
    """BGR for RGB."""
    _change(graph, "embedding.patch.weight", lambda weight: weight[:, ::-1])


def positions_off_by_one(graph: Any) -> None:
    """Each token gets its neighbour's position."""
    _change(graph, "embedding.position", lambda positions: np.roll(positions, 1, axis=1))


def dropped_bias(graph: Any) -> None:
    """fc1 without its bias."""
    _change(graph, f"{HERE}.mlp.fc1.bias", np.zeros_like)


def dropped_qkv_bias(graph: Any) -> None:
    """qkv without its bias."""
    _change(graph, f"{HERE}.attention.qkv.bias", np.zeros_like)


def wrong_head_bias(graph: Any) -> None:
    """The head with ten times its bias: zeroed it would hardly be missed."""
    _change(graph, "readout.head.bias", lambda bias: 10 * bias)


def other_epsilon(graph: Any) -> None:
    """LayerNorms with 1e-5, PyTorch's default, for what the checkpoint says."""
    for node in graph.node:
        if node.op_type == "LayerNormalization":
            next(a for a in node.attribute if a.name == "epsilon").f = 1e-5


def transposed_heads(graph: Any) -> None:
    """Queries read as [head_dim, heads] where they are [heads, head_dim]."""

    def change(values: Any) -> Any:
        width = values.shape[-1] // 3
        queries, others = values[..., :width], values[..., width:]
        lead = queries.shape[:-1]
        turned = queries.reshape(*lead, 3, -1).swapaxes(-1, -2).reshape(*lead, width)
        return np.concatenate([turned, others], axis=-1)

    _change(graph, f"{HERE}.attention.qkv.weight", change)
    _change(graph, f"{HERE}.attention.qkv.bias", change)


def tanh_gelu(graph: Any) -> None:
    """The approximation in place of the error function."""
    node = _node(graph, f"{HERE}.mlp/Gelu")
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("approximate", "tanh"))


def zeroed_channel(graph: Any) -> None:
    """One output channel of fc1 has lost its weights: the one with the largest."""

    def change(weight: Any) -> Any:
        weight[:, np.abs(weight).sum(axis=0).argmax()] = 0
        return weight

    _change(graph, f"{HERE}.mlp.fc1.weight", change)


def overflow(graph: Any) -> None:
    """The squares of fc2's sums in float16, as a decomposed LayerNorm has them."""
    _behind(
        graph,
        f"{HERE}.mlp.fc2/Add",
        lambda found, out: [
            helper.make_node("Mul", [found, "planted/large"], ["planted/squares"]),
            helper.make_node("Cast", ["planted/squares"], ["planted/half"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["planted/half"], ["planted/float"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["planted/float", "planted/large"], [out]),
        ],
    )
    graph.initializer.append(numpy_helper.from_array(np.float32(1e6), "planted/large"))


def leak_between_rows(graph: Any) -> None:
    """A thousandth of the batch's mean in every image's tokens."""
    _behind(
        graph,
        f"{HERE}/Add_1",
        lambda found, out: [
            helper.make_node("ReduceMean", [found, "planted/axes"], ["planted/mean"], keepdims=1),
            helper.make_node("Mul", ["planted/mean", "planted/little"], ["planted/part"]),
            helper.make_node("Add", [found, "planted/part"], [out]),
        ],
    )
    graph.initializer.append(numpy_helper.from_array(np.array([0]), "planted/axes"))
    graph.initializer.append(numpy_helper.from_array(np.float32(1e-3), "planted/little"))


def frozen_batch(graph: Any) -> None:
    """Every image gets the first one's answer."""
    _behind(
        graph,
        "embedding/Add",
        lambda found, out: [
            helper.make_node("Gather", [found, "planted/first"], ["planted/one"], axis=0),
            helper.make_node("Sub", [found, found], ["planted/zeros"]),
            helper.make_node("Add", ["planted/zeros", "planted/one"], [out]),
        ],
    )
    graph.initializer.append(numpy_helper.from_array(np.array([0]), "planted/first"))


def _node(graph: Any, name: str) -> Any:
    return next(node for node in graph.node if node.name == name)


def _change(graph: Any, name: str, change: Callable[[Any], Any]) -> None:
    initializer = next(entry for entry in graph.initializer if entry.name == name)
    values = change(numpy_helper.to_array(initializer).copy())
    initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))


def _behind(graph: Any, name: str, nodes: Callable[[str, str], list[Any]]) -> None:
    """Put nodes between a node and whoever reads it; the result keeps the name."""
    node = _node(graph, name)
    output = node.output[0]
    node.output[0] = f"planted/{output}"
    place = list(graph.node).index(node)
    for offset, added in enumerate(nodes(node.output[0], output), start=1):
        graph.node.insert(place + offset, added)
