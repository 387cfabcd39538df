"""Tracing once a shape: torch.export takes longer than all else that a small export does.

Two models of one architecture have the same graph with other initializers, whose names are those of
their parameters. So the second gets the first one's graph and its own weights. Where torch.onnx has
dropped a bias of zeros, or made one of two, only a model of the same weights gets that graph.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.bundles import locked

if TYPE_CHECKING:
    import onnx_ir
    from torch import Tensor

    from vit_edge.models.vit import ViT

_SOURCE = "vit_edge.export.source"
_traced: dict[str, onnx_ir.Model] = {}
_UNLIKE: set[str] = set()  # architectures whose graph depends on their weights
SHARED: Path | None = None  # the folder of all workers
LARGEST = 20_000_000  # bytes


class Shared(NamedTuple):
    """Where workers keep the graph of an architecture; nowhere in a run of one process."""

    path: Path | None

    def read(self) -> onnx_ir.Model | None:
        """What another worker traced."""
        import onnx_ir

        return onnx_ir.load(self.path) if self.path and self.path.exists() else None

    def write(self, model: onnx_ir.Model) -> None:
        """Keep it for the others, unless writing takes longer than tracing."""
        import onnx_ir

        size = sum(value.const_value.nbytes for value in model.graph.initializers.values())  # type: ignore[union-attr]
        if self.path and not self.path.exists() and size < LARGEST:
            onnx_ir.save(model, self.path.with_suffix(".partial"))
            self.path.with_suffix(".partial").rename(self.path)


@contextlib.contextmanager
def of_all_workers(architecture: str) -> Iterator[Shared]:
    """Its graph, which one worker at a time reads or makes."""
    if SHARED is None:
        yield Shared(None)
        return
    path = SHARED / f"{hashlib.sha256(architecture.encode()).hexdigest()[:16]}.onnx"
    with locked(path.with_suffix(".lock")):
        yield Shared(path)


def digest(weights: Mapping[str, Tensor]) -> str:
    """What tells weights apart."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def trace_once(vit: ViT, outputs: Sequence[str], **form: Any) -> onnx_ir.Model:
    """Do as `vit_edge.export.trace.model_from_vit`, tracing an architecture once a run."""
    from onnx_ir import tensor_adapters

    from vit_edge.export.trace import ExportableViT, model_from_vit

    weights = ExportableViT(vit, outputs, form["attention"]).state_dict()
    key = architecture = repr((vit.architecture, tuple(outputs), sorted(form.items())))
    if architecture in _UNLIKE:
        key += digest(weights)
    if key not in _traced:
        with of_all_workers(architecture) as shared:
            traced = shared.read() or model_from_vit(vit, outputs, **form)
            if weights.keys() <= set(traced.graph.initializers):
                shared.write(traced)
            elif architecture not in _UNLIKE:
                _UNLIKE.add(architecture)
                key += digest(weights)
        _traced[key] = traced
    model = _traced[key].clone()
    for kept, weighted in ((_traced[key], {}), (model, weights)):
        for name in weights.keys() & set(kept.graph.initializers):
            tensor = weighted.get(name)
            value = kept.graph.initializers[name]
            value.const_value = None if tensor is None else tensor_adapters.TorchTensor(tensor)
    return model


def patch_tracing(traced_anew: bool) -> None:
    """Have exports of this process trace once a shape; nothing is imported for it.

    Args:
        traced_anew: The next test is about tracing itself.
    """
    source = sys.modules.get(_SOURCE)
    if source is not None:
        from vit_edge.export.trace import model_from_vit

        source.model_from_vit = model_from_vit if traced_anew else trace_once  # type: ignore[attr-defined]
