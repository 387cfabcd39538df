"""What an ONNX file says of itself, found without onnx and without reading the weights."""

from __future__ import annotations

import math
import mmap
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vit_edge.errors import LFS_MAGIC, LFS_POINTER, ModelError
from vit_edge.onnxfile.protobuf import Message, Reader, Span
from vit_edge.onnxfile.schema import BITS, ELEMENT_TYPES, EXTERNAL, SCHEMA, TYPED_FIELDS


class ExternalRef(NamedTuple):
    """A tensor's data in another file: the entries as written, unchecked, duplicates and all."""

    entries: tuple[tuple[str, str], ...]

    @property
    def location(self) -> str:
        """The path, relative to the model's folder; empty if there is none."""
        return next((value for key, value in self.entries if key == "location"), "")


class TypedData(NamedTuple):
    """A tensor's elements in a field of their own type, such as float_data."""

    field: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class TensorFacts:
    """One tensor: what it is and where its bytes are; exactly one of the last three is set."""

    name: str
    where: str  # such as: graph, initializer 'head.weight'
    dtype: str  # NumPy's or ml_dtypes' name; "type 27" where it is not known
    dims: tuple[int, ...]
    external: ExternalRef | None = None
    raw: Span | None = None  # of raw_data in the model file
    typed: TypedData | None = None

    @property
    def nbytes(self) -> int | None:
        """The bytes of its elements, as raw or external data; None for text and unknown types."""
        bits = BITS.get(self.dtype)
        return None if bits is None else (math.prod(self.dims) * bits + 7) // 8


class ValueFacts(NamedTuple):
    """An input or output. A dimension is a number, a name, or None if it says nothing."""

    name: str
    dtype: str  # empty for what is no tensor
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class ModelFacts:
    """An ONNX model without its weights."""

    path: Path
    ir_version: int
    opsets: Mapping[str, int]  # by domain; the standard one, also called ai.onnx, is ""
    operators: Mapping[str, Counter[str]]  # domain -> op_type -> nodes, subgraphs included
    functions: frozenset[tuple[str, str]]  # (domain, name) of those the model itself defines
    inputs: tuple[ValueFacts, ...]
    outputs: tuple[ValueFacts, ...]
    metadata: Mapping[str, str]
    initializers: tuple[TensorFacts, ...]  # of all graphs
    tensors: tuple[TensorFacts, ...]  # these and every other: attributes, sparse, functions
    graph_depth: int  # 1 without subgraphs


def read_model(path: str | os.PathLike[str]) -> ModelFacts:
    """Read what an ONNX file is made of; the weights are skipped, not read.

    Args:
        path: The .onnx file.

    Raises:
        ModelError: Not a regular file, not ONNX, damaged, or beyond the limits on nesting, number
            of fields and text (vit_edge.onnxfile.protobuf) that keep hostile files cheap.
    """
    try:
        # Not blocking, so that a FIFO is refused below and not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be opened: {error}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path}: is no regular file; an ONNX model was expected")
        if not status.st_size:
            raise ModelError(f"{path}: is empty; an ONNX model was expected")
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
            if data[: len(LFS_MAGIC)] == LFS_MAGIC:
                raise ModelError(f"{path}: is {LFS_POINTER}; an ONNX model was expected")
            reader = Reader(data, path, SCHEMA)
            return _model_facts(Path(path), reader.message("Model", 0, len(data)))
    finally:
        os.close(descriptor)


def _model_facts(path: Path, model: Message) -> ModelFacts:
    if "graph" not in model:
        raise ModelError(f"{path}: not an ONNX model: it has no graph")
    walk = _Walk(path)
    walk.graph(model["graph"], "graph", 1)
    for index, training in enumerate(model["training_info"]):
        for name in ("initialization", "algorithm"):
            if name in training:
                walk.graph(training[name], f"training_info {index}, {name}", 1)
    for function in model["functions"]:
        where = f"function {function.get('name', '')!r}"
        walk.nodes(function["node"], where, 1)
        walk.attributes(function["attribute"], where, 1)
    return ModelFacts(
        path=path,
        ir_version=model.get("ir_version", 0),
        opsets=_opsets(path, model),
        operators=walk.operators,
        functions=frozenset((_domain(item), item.get("name", "")) for item in model["functions"]),
        inputs=tuple(_value(item) for item in model["graph"]["input"]),
        outputs=tuple(_value(item) for item in model["graph"]["output"]),
        metadata={p.get("key", ""): p.get("value", "") for p in model["metadata_props"]},
        initializers=tuple(walk.initializers),
        tensors=tuple(walk.tensors),
        graph_depth=walk.depth,
    )


def _opsets(path: Path, model: Message) -> dict[str, int]:
    """Every domain's version; functions may ask for a newer one than the model does."""
    opsets: dict[str, int] = {}
    for owner in (model, *model["functions"]):
        for item in owner["opset_import"]:
            domain, version = _domain(item), item.get("version", 0)
            if version < 1:
                raise ModelError(f"{path}: opset version {version} of domain {domain!r}")
            opsets[domain] = max(version, opsets.get(domain, 0))
    return opsets


class _Walk:
    """Collects tensors and operators from graphs inside nodes inside graphs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.operators: dict[str, Counter[str]] = {}
        self.initializers: list[TensorFacts] = []
        self.tensors: list[TensorFacts] = []
        self.depth = 0

    def graph(self, graph: Message, where: str, depth: int) -> None:
        self.depth = max(self.depth, depth)
        tensors = [self.tensor(tensor, f"{where}, initializer") for tensor in graph["initializer"]]
        for index, sparse in enumerate(graph["sparse_initializer"]):
            tensors += self.sparse(sparse, f"{where}, sparse initializer {index}")
        self.initializers += tensors
        self.tensors += tensors
        self.nodes(graph["node"], where, depth)

    def nodes(self, nodes: list[Message], where: str, depth: int) -> None:
        for index, node in enumerate(nodes):
            kind = node.get("op_type", "")
            self.operators.setdefault(_domain(node), Counter())[kind] += 1
            name = node.get("name") or f"number {index}"
            self.attributes(node["attribute"], f"{where}, {kind} node {name!r}", depth)

    def attributes(self, attributes: list[Message], where: str, depth: int) -> None:
        for item in attributes:
            here = f"{where}, attribute {item.get('name', '')!r}"
            for tensor in _one_and_many(item, "tensor"):
                self.tensors.append(self.tensor(tensor, here))
            for sparse in _one_and_many(item, "sparse_tensor"):
                self.tensors += self.sparse(sparse, here)
            for graph in _one_and_many(item, "graph"):
                self.graph(graph, here, depth + 1)

    def sparse(self, sparse: Message, where: str) -> list[TensorFacts]:
        return [
            self.tensor(sparse[part], f"{where}, {part}")
            for part in ("values", "indices")
            if part in sparse
        ]

    def tensor(self, tensor: Message, where: str) -> TensorFacts:
        name = tensor.get("name", "")
        where = f"{where} {name!r}"
        typed = [TypedData(key, tuple(tensor[key])) for key in TYPED_FIELDS if tensor[key]]
        external = tensor.get("data_location", 0) == EXTERNAL or tensor["external_data"]
        raw = tensor.get("raw_data")
        facts = TensorFacts(
            name=name,
            where=where,
            dtype=_dtype(tensor.get("data_type", 0)),
            dims=tuple(tensor["dims"]),
            external=ExternalRef(
                tuple((p.get("key", ""), p.get("value", "")) for p in tensor["external_data"])
            )
            if external
            else None,
            raw=raw,
            typed=typed[0] if typed else None,
        )
        problem = None
        if min(facts.dims, default=0) < 0:
            problem = f"has a negative dimension: {list(facts.dims)}"
        elif "segment" in tensor:
            problem = "is stored in segments, which no runtime reads"
        elif len(typed) + bool(external) + (raw is not None) > 1:
            problem = "has its data in more than one place"
        elif raw is not None and facts.nbytes not in (None, raw.length):
            problem = (
                f"has {raw.length} bytes of data; {facts.dtype}{list(facts.dims)} "
                f"needs {facts.nbytes}"
            )
        if problem:
            raise ModelError(f"{self.path}: {where} {problem}")
        return facts


def _one_and_many(attribute: Message, name: str) -> Iterator[Message]:
    if name in attribute:
        yield attribute[name]
    yield from attribute[f"{name}s"]


def _domain(item: Message) -> str:
    domain: str = item.get("domain", "")
    return "" if domain == "ai.onnx" else domain


def _dtype(number: int) -> str:
    return ELEMENT_TYPES[number][0] if number in ELEMENT_TYPES else f"type {number}"


def _value(value: Message) -> ValueFacts:
    tensor = value.get("type", {}).get("tensor_type")
    if tensor is None:
        return ValueFacts(value.get("name", ""), "", None)
    shape = None
    if "shape" in tensor:
        shape = tuple(
            dim.get("dim_value", dim.get("dim_param") or None) for dim in tensor["shape"]["dim"]
        )
    return ValueFacts(value.get("name", ""), _dtype(tensor.get("elem_type", 0)), shape)
