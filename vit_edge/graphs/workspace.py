"""Running variants of a graph: float weights in one mapped file, small ONNX files beside it."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from numpy.typing import NDArray

from vit_edge.errors import ModelError
from vit_edge.graphs.mapped import load_mapped
from vit_edge.graphs.write import write_model
from vit_edge.machine import cpus
from vit_edge.machine.paths import path_for

OBSERVED_BYTES = 96 * 2**20  # of activations held at once; the batch follows from it
LARGEST_BATCH = 32
PIXEL_BYTES = 5 * 2**20  # of a batch that is only answered: 8 images of 224 x 224


class Workspace:
    """A folder in which a model and its variants share one file of weights."""

    def __init__(self, folder: Path) -> None:
        """Make a folder below this one; whoever made that removes it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._numbers = itertools.count()

    def settle(self, model: onnx_ir.Model) -> onnx_ir.Model:
        """Write the model's weights to disk and give the same model with them mapped.

        What was changed in memory so far takes none afterwards, and variants of the result are
        files of a few kilobytes plus their own tensors.

        Args:
            model: Gives up its weights, so that they are not held or mapped twice.
        """
        folder = self._folder / f"weights-{next(self._numbers)}"
        folder.mkdir()
        write_model(model, folder, single_file_limit=0)
        for value in model.graph.initializers.values():
            value.const_value = None
        return load_mapped(folder / "model.onnx")

    def session(
        self,
        model: onnx_ir.Model,
        observed: Sequence[onnx_ir.Value] = (),
        entries: Mapping[str, str] | None = None,
    ) -> onnxruntime.InferenceSession:
        """Open a variant of a settled model in ONNX Runtime's CPU provider.

        Args:
            model: Left as it is.
            observed: float32 values that become outputs beside the model's own.
            entries: Session configuration, as onnxruntime_session_options_config_keys.h has it.

        Raises:
            ModelError: ONNX Runtime refuses the graph.
        """
        path = self._write(model, observed)
        location = path_for("onnxruntime", path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cpus.default_threads()
        options.log_severity_level = 3
        for key, value in (entries or {}).items():
            options.add_session_config_entry(key, value)
        try:
            return onnxruntime.InferenceSession(location, options, ["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions have no common base but this
            raise ModelError(f"onnxruntime refuses a variant of the graph: {error}") from error
        finally:
            path.unlink()

    def _write(self, model: onnx_ir.Model, observed: Sequence[onnx_ir.Value]) -> Path:
        proto: onnx.ModelProto = onnx_ir.to_proto(model)
        own = {output.name for output in proto.graph.output}
        for value in observed:
            if value.name not in own:
                proto.graph.output.add(
                    name=value.name
                ).type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        path = self._home(model) / f"variant-{next(self._numbers)}.onnx"
        path.write_bytes(proto.SerializeToString())
        return path

    def _home(self, model: onnx_ir.Model) -> Path:
        """Return the folder of a settled model's external tensors."""
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, onnx_ir.ExternalTensor):
                return Path(value.const_value.base_dir)
        return self._folder

    def observe(
        self,
        model: onnx_ir.Model,
        observed: Sequence[onnx_ir.Value],
        batches: Iterable[NDArray[np.float32]],
    ) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Run the batches and give name -> float32[N, ...] of the observed values, one by one."""
        names = [str(value.name) for value in observed]
        return self.values(model, _fed(model, batches), names, observed=observed)

    def answers(
        self,
        model: onnx_ir.Model,
        batches: Iterable[NDArray[np.float32]],
        output: str,
        entries: Mapping[str, str] | None = None,
    ) -> Iterator[NDArray[np.float32]]:
        """Run the batches and give float32[N, ...] of one of the model's own outputs."""
        for values in self.values(model, _fed(model, batches), [output], entries):
            yield values[output]

    def values(
        self,
        model: onnx_ir.Model,
        feeds: Iterable[Mapping[str, NDArray[np.float32]]],
        outputs: Sequence[str],
        entries: Mapping[str, str] | None = None,
        observed: Sequence[onnx_ir.Value] = (),
    ) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Run a model of one input or several, and give some of its outputs by name."""
        session = self.session(model, observed, entries)
        for feed in feeds:
            yield dict(zip(outputs, session.run(outputs, dict(feed)), strict=True))


def _fed(
    model: onnx_ir.Model, batches: Iterable[NDArray[np.float32]]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    name = str(model.graph.inputs[0].name)
    return ({name: pixels} for pixels in batches)


def batch_size(observed: Sequence[onnx_ir.Value]) -> int:
    """Return how many images keep the observed values below OBSERVED_BYTES.

    1 if that is unknown, or where the images do not come first: torch.nn.MultiheadAttention
    works on [tokens, N, D], and multiplies [tokens * N, D].
    """
    total = 0
    for value in observed:
        first, *sizes = list(value.shape or [None])
        if isinstance(first, int) or len(sizes) < 2 or not all(isinstance(s, int) for s in sizes):
            return 1
        total += 4 * math.prod(size for size in sizes if isinstance(size, int))
    return max(1, min(LARGEST_BATCH, OBSERVED_BYTES // max(total, 1)))
