"""Values outside the range of half precision: the largest |x| of every tensor on real images."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir

from vit_edge.errors import ModelError
from vit_edge.graphs.names import Names
from vit_edge.graphs.workspace import Workspace
from vit_edge.quantize import Progress, Quantized, Task
from vit_edge.quantize.calibration import Calibration
from vit_edge.quantize.formats.half import FLOAT16, Half, convert, prepare
from vit_edge.quantize.linears import constant, is_initializer
from vit_edge.quantize.parts import USUAL_PARTS, half_nodes, is_float32
from vit_edge.quantize.search.simulate import sentence, simulate

# How many times the largest |x| seen must fit: of vit-cifar10-outliers' 160 tensors one goes 3.2
# times as far on 1,000 other images.
MARGIN = 4.0
BATCH = 8  # all activations of a run may be alive at once
SHOWN = 8  # rows of the table beside those that stay float32
_SCORES = 3  # the output of Attention that holds q k^T (opset 23, qk_matmul_output_mode 0)


@dataclass(frozen=True)
class Reach:
    """The largest values of a graph's tensors, and what they mean."""

    largest: Mapping[str, float]  # value -> the largest |x| seen
    sums: Mapping[str, float]  # MatMul or Gemm -> the largest sum of |a||b|, see `scan`
    limit: float  # beyond which nothing may be half
    kept: tuple[str, ...]  # nodes that must stay float32 for it

    def as_dict(self) -> dict[str, object]:
        """For the manifest."""
        return {
            "limit": self.limit,
            "kept_float32": list(self.kept),
            "largest": {name: float(f"{x:.4g}") for name, x in self.largest.items()},
            "sums": {name: float(f"{x:.4g}") for name, x in self.sums.items()},
        }

    def table(self) -> tuple[tuple[str, ...], ...]:
        """List what stays float32, and the largest of the rest."""
        sums = ((f"sums of {node}", x) for node, x in self.sums.items())
        rows = sorted([*self.largest.items(), *sums], key=lambda row: -row[1])
        over = sum(x > self.limit for _, x in rows)
        heading = ("tensor", "largest |x|", "of the limit", "computed in")
        return (heading, *(
            (name, f"{x:.4g}", f"{x / self.limit:.1%}", "float32" if x > self.limit else "half")
            for name, x in rows[: over + SHOWN]
        ))  # fmt: skip


def scan(
    model: onnx_ir.Model,
    workspace: Workspace,
    calibration: Calibration,
    half: Half,
    parts: Collection[str],
    keep_float32: Collection[str],
    margin: float,
    progress: Progress,
) -> Reach:
    """Run the float32 graph on calibration images and find what must not become half.

    Beside the tensors it looks at the sums of |a||b| in every matrix product, which no partial sum
    exceeds in whatever order: a kernel may accumulate in float16 too.

    Args:
        model: Prepared by `half.prepare` and settled in the workspace; left as it is.
        workspace: Where to run it.
        calibration: The images.
        half: The type.
        parts: What would become half; see `parts`.
        keep_float32: What would not.
        margin: How many times the largest |x| must fit, because other images go further.
        progress: Shown while they run.

    Raises:
        ModelError: An activation is NaN or infinite in float32 already.
    """
    nodes = half_nodes(model, parts, keep_float32)
    probed = _Probed(model, [node for node in model.graph if node in nodes])
    largest: dict[str, float] = {}
    seen = 0
    with progress("overflow scan", len(calibration)) as bar:
        batches = calibration.batches(BATCH)
        for extremes in workspace.observe(probed.model, probed.observed, batches):
            for name, x in extremes.items():
                largest[name] = max(largest.get(name, 0.0), float(x))
                if not np.isfinite(x):
                    raise ModelError(f"{probed.values.get(name, name)} is NaN or infinite")
            bar.update(min(BATCH, len(calibration) - seen))
            seen += BATCH
    values = {value: largest[probe] for probe, value in probed.values.items()}
    sums = {node: largest[probe] for probe, node in probed.sums.items()}
    limit = half.largest / margin
    over = {name for name, x in {**values, **sums}.items() if x > limit}
    kept = _kept(model, parts, keep_float32, over)
    return Reach(values, sums, limit, kept)


def halve_around(
    quantized: Quantized, model: onnx_ir.Model, workspace: Workspace, task: Task, remark: str = ""
) -> Quantized:
    """Let what a quantizer left in float32 compute in float16, except where that overflows.

    Args:
        quantized: Float32 around Q/DQ, whose scales float16 holds; its model is changed in place.
        model: The float32 graph with the same names, settled in the workspace.
        workspace: Where to run it.
        task: With calibration images.
        remark: What else to say of the simulation.
    """
    prepare(model)
    reach = scan(model, workspace, task.images, FLOAT16, USUAL_PARTS, (), MARGIN, task.progress)
    convert(quantized.model, FLOAT16, USUAL_PARTS, reach.kept)
    return Quantized(
        quantized.model,
        {**quantized.record, "overflow_scan": reach.as_dict()},
        quantized.table,
        simulate(quantized.model, FLOAT16),
        sentence(FLOAT16) + remark,
    )


def _kept(
    model: onnx_ir.Model, parts: Collection[str], keep_float32: Collection[str], over: set[str]
) -> tuple[str, ...]:
    """Every node that makes or reads something too large, until none that is left does."""
    kept: list[str] = []
    while True:
        nodes = half_nodes(model, parts, [*keep_float32, *kept])
        more = [
            str(node.name)
            for node in model.graph
            if node in nodes and over & {str(node.name), *_touched(node)}
        ]
        if not more:
            return tuple(kept)
        kept += more


def _touched(node: onnx_ir.Node) -> Iterator[str]:
    for value in (*node.inputs, *node.outputs):
        if value is not None and is_float32(value) and not is_initializer(value):
            yield str(value.name)
    if node.op_type == "Attention":
        yield _scores(node)


def _scores(node: onnx_ir.Node) -> str:
    return f"{node.name}/scores"


class _Probed:
    """A copy of a graph with the largest |x| of its tensors as outputs."""

    def __init__(self, model: onnx_ir.Model, nodes: list[onnx_ir.Node]) -> None:
        self.model = model.clone()
        self._names = Names.of(self.model)
        self.observed: list[onnx_ir.Value] = []
        self.values: dict[str, str] = {}  # probe -> name of the value
        self._seen: set[str] = set()
        self.sums: dict[str, str] = {}  # probe -> name of the node
        copies = {node.name: node for node in self.model.graph}
        for original in nodes:
            node = copies[original.name]
            if node.op_type == "Attention":
                node = self._with_scores(node)
            for value in (*node.inputs, *node.outputs):
                if value is not None and is_float32(value) and not is_initializer(value):
                    self._probe(value)
            if node.op_type in ("MatMul", "Gemm"):
                self._probe_sums(node)

    def _probe(self, value: onnx_ir.Value) -> None:
        name = str(value.name)
        if name not in self._seen:
            self._seen.add(name)
            self.values[self._largest(self._add("Abs", [value]))] = name

    def _probe_sums(self, node: onnx_ir.Node) -> None:
        magnitudes = [self._add("Abs", [value]) for value in node.inputs if value is not None]
        total = self._add(node.op_type, magnitudes, list(node.attributes.values()))
        self.sums[self._largest(total)] = str(node.name)

    def _with_scores(self, node: onnx_ir.Node) -> onnx_ir.Node:
        """Attention with its scores as an output; they come before the softmax's own scaling."""
        node.resize_outputs(_SCORES + 1)
        scores = node.outputs[_SCORES]
        for value in node.outputs[1:_SCORES]:
            value.name = ""
        scores.name, scores.type = _scores(node), onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        return node

    def _largest(self, value: onnx_ir.Value) -> str:
        keepdims = onnx_ir.AttrInt64("keepdims", 0)
        largest = self._add("ReduceMax", [value], [keepdims])
        largest.shape = onnx_ir.Shape([])
        largest.type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        self.observed.append(largest)
        return str(largest.name)

    def _add(
        self, op_type: str, inputs: list[onnx_ir.Value], attributes: Collection[onnx_ir.Attr] = ()
    ) -> onnx_ir.Value:
        node = onnx_ir.Node("", op_type, inputs, list(attributes))
        self.model.graph.append(node)
        node.name = self._names.fresh(f"probe/{op_type}")
        node.outputs[0].name = self._names.fresh(f"{node.name}:0")
        return node.outputs[0]


def underflow(model: onnx_ir.Model, half: Half, nodes: Collection[onnx_ir.Node]) -> dict[str, int]:
    """Count the weights of float32 nodes-to-be-half that are rounded away, or to few bits.

    Args:
        model: float32.
        half: The type.
        nodes: That become half.

    Returns:
        Counts of all their weights, of those that become 0, and of those that become subnormal.
    """
    counts = {"weights": 0, "become_zero": 0, "become_subnormal": 0}
    smallest = half.smallest_normal
    for value in model.graph.initializers.values():
        if is_float32(value) and any(use.node in nodes for use in value.uses()):
            size = np.abs(constant(value))
            zero = np.abs(size.astype(half.dtype.numpy()).astype(np.float32)) == 0
            counts["weights"] += size.size
            counts["become_zero"] += int((zero & (size > 0)).sum())
            counts["become_subnormal"] += int((~zero & (size < smallest)).sum())
    return counts
