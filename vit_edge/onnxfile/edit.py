"""A model with more outputs, or with some of its tensors given instead of computed.

Both are for looking into a graph on a device without onnx: the wire format is copied field by
field, and nothing but what is named changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_edge.errors import ModelError
from vit_edge.onnxfile.protobuf import Field, Reader
from vit_edge.onnxfile.schema import SCHEMA
from vit_edge.onnxfile.writer import (
    FLOAT,
    INITIALIZER,
    NODE,
    OUTPUT,
    field,
    node,
    tensor,
    value,
    with_graph_fields,
)

_NODE_OUTPUT = 2  # of NodeProto


def tensor_names(model: Path) -> list[str]:
    """What the nodes of the graph compute, in their order; not inside subgraphs.

    Raises:
        ModelError: Damaged.
    """
    content = model.read_bytes()
    read = Reader(content, model, SCHEMA).message("Model", 0, len(content))
    return [name for each in read["graph"]["node"] for name in each["output"] if name]


def with_outputs(model: Path, outputs: Mapping[str, Sequence[str | int]]) -> bytes:
    """The model with more outputs: tensors of the graph, cast to float32.

    Args:
        model: The .onnx file.
        outputs: The tensor's name -> its dimensions; a name stands for any size. The output of
            `X` is called `tap/X`.

    Raises:
        ModelError: Damaged, or without such a tensor.
    """
    _check_known(model, outputs)
    nodes = [node("Cast", [name], tap_name(name), to=FLOAT) for name in outputs]
    values = [value(tap_name(name), shape) for name, shape in outputs.items()]
    added = [field(NODE, each) for each in nodes] + [field(OUTPUT, each) for each in values]
    return with_graph_fields(model, lambda reader, item: None, b"".join(added))


def with_values(model: Path, values: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The model with given values in place of tensors that it computes.

    Args:
        model: The .onnx file.
        values: The tensor's name -> float32 of its shape; cast to the type it had.

    Raises:
        ModelError: Damaged, or without such a tensor.
    """
    _check_known(model, values)
    nodes = {name: node("CastLike", [_given(name), _computed(name)], name) for name in values}
    added = [
        field(INITIALIZER, tensor(_given(name), np.asarray(array, np.float32)))
        for name, array in values.items()
    ]
    return with_graph_fields(
        model, lambda reader, item: _node_and_more(reader, item, nodes), b"".join(added)
    )


def tap_name(tensor: str) -> str:
    """What `with_outputs` calls the output of a tensor."""
    return f"tap/{tensor}"


def _given(tensor: str) -> str:
    return f"given/{tensor}"


def _computed(tensor: str) -> str:
    return f"computed/{tensor}"


def _check_known(model: Path, names: Mapping[str, object]) -> None:
    unknown = sorted(set(names) - set(tensor_names(model)))
    if unknown:
        raise ModelError(f"{model}: computes no {', '.join(unknown)}")


def _node_and_more(reader: Reader, item: Field, nodes: Mapping[str, bytes]) -> bytes | None:
    """A node that computes given tensors: these under other names, and `nodes` behind it."""
    if item.number != NODE:
        return None
    ours = [
        name for name in reader.message("Node", item.start, item.end)["output"] if name in nodes
    ]
    if not ours:
        return None
    fields = []
    for below in reader.fields(item.start, item.end):
        part = bytes(reader.data[below.at : below.end])
        if below.number == _NODE_OUTPUT:
            name = bytes(reader.data[below.start : below.end]).decode()
            part = field(_NODE_OUTPUT, _computed(name) if name in ours else name)
        fields.append(part)
    return field(NODE, b"".join(fields)) + b"".join(field(NODE, nodes[name]) for name in ours)
