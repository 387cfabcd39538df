"""A plan, opened: what its tensors and profiles are, and contexts to run it in."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vit_edge.backends.trt.library import Library
from vit_edge.backends.trt.messages import create, message_logger, quote, ran_out_of_memory
from vit_edge.backends.trt.options import Profile
from vit_edge.bundle.manifest import Manifest
from vit_edge.errors import BackendError, EngineError, ResourceError

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8", "INT8": "int8"}
# Of the inspector's words for what is in a tensor, such as "Row major linear FP16 format".
_PRECISIONS = {
    "fp32": "fp32", "float": "fp32", "fp16": "fp16", "half": "fp16", "bf16": "bf16",
    "bfloat16": "bf16", "int8": "int8", "fp8": "fp8", "int4": "int4", "fp4": "fp4",
    "int32": "int32", "int64": "int64", "bool": "bool",
}  # fmt: skip


class Engine:
    """A deserialized plan. Contexts of it may run at the same time, each in its own thread."""

    def __init__(
        self,
        library: Library,
        plan: bytes,
        where: Path,
        *,
        host_code: bool,
        dla_core: int | None = None,
    ) -> None:
        """Open a plan.

        Args:
            library: The TensorRT that built it. A GPU has been seen: without, this would crash.
            plan: Native code: only one that our own build recorded. Not read from a file here, so
                that it is the bytes that were hashed.
            where: Its file, for messages.
            host_code: Whether it may bring code for the CPU: a version-compatible one does.
            dla_core: That it runs on; the plan does not say.

        Raises:
            EngineError: TensorRT refuses it.
            ResourceError: The GPU's memory ran out.
        """
        trt = library.trt
        self.library = library
        self._plan = where
        self._logger = message_logger(trt)
        self._configs: list[Any] = []
        self._runtime: Any = create("runtime", self._logger, lambda: trt.Runtime(self._logger))
        if host_code:
            self._runtime.engine_host_code_allowed = True
        if dla_core is not None:
            self._runtime.DLA_core = dla_core
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._failure(f"{library.label} does not open it; build it again", EngineError)

    def check(self, manifest: Manifest) -> None:
        """Compare the plan's tensors with the bundle's.

        Raises:
            EngineError: It is a plan of another model.
        """
        trt, engine = self.library.trt, self._engine
        tensors = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            dtype = engine.get_tensor_dtype(name).name
            shape = tuple(engine.get_tensor_shape(name))[1:]
            tensors[name] = (is_input, _DTYPES.get(dtype, dtype), shape)
        expected = {
            tensor.name: (tensor.name == manifest.input.name, tensor.dtype, tuple(tensor.shape[1:]))
            for tensor in (manifest.input, *manifest.outputs)
        }
        if tensors != expected:
            raise EngineError(
                f"{self._plan}: its tensors are {tensors}, those of the bundle {expected}: "
                "build it again"
            )

    def profiles(self, input_name: str) -> list[Profile]:
        """The batch sizes that the plan was built for."""
        return [
            Profile(*(shape[0] for shape in self._engine.get_tensor_profile_shape(input_name, i)))
            for i in range(self._engine.num_optimization_profiles)
        ]

    def context(self, *, graphs: bool) -> Any:
        """A new context, whose scratch memory the caller gives it.

        Args:
            graphs: Have TensorRT-RTX record what it launches; it does so by itself.
        """
        trt = self.library.trt
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if graphs and hasattr(trt, "CudaGraphStrategy"):
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._configs.append(config)  # contexts do not keep theirs alive
            return create(
                "context", self._logger, lambda: self._engine.create_execution_context(config)
            )
        return create(
            "context", self._logger, lambda: self._engine.create_execution_context(strategy)
        )

    def granted(self, what: str, call: Callable[[], object]) -> None:
        """Make a call of TensorRT's that answers False, or raises, where it cannot be had.

        Args:
            what: Is asked for.
            call: The call.

        Raises:
            BackendError: It cannot be had; the message has TensorRT's words.
            ResourceError: Because memory ran out.
        """
        self._logger.errors = []  # of calls before this one
        try:
            answer = call()
        except (RuntimeError, TypeError, ValueError) as error:  # as pybind11 has them
            raise self._failure(f"{what} is refused: {error}", BackendError) from error
        if answer is False:
            raise self._failure(f"{what} is refused", BackendError)

    def layers(self) -> Any:
        """Return the engine inspector's entry for each layer, as JSON has it.

        Raises:
            BackendError: It tells nothing that can be read.
        """
        trt = self.library.trt
        text = self._engine.create_engine_inspector().get_engine_information(
            trt.LayerInformationFormat.JSON
        )
        try:
            return json.loads(text)
        except (TypeError, ValueError) as error:
            raise self._failure(f"the engine inspector's answer: {error}", BackendError) from None

    def close(self) -> None:
        """Give it back; every context of it must be gone."""
        self._engine = self._runtime = None

    def _failure(
        self, what: str, kind: type[BackendError] | type[EngineError]
    ) -> BackendError | EngineError | ResourceError:
        errors = self._logger.errors
        if ran_out_of_memory(errors):
            return ResourceError(f"{self._plan}: {what}: memory ran out:{quote(errors)}")
        return kind(f"{self._plan}: {what}:{quote(errors)}")


def precisions(layers: Any) -> dict[str, int]:
    """Count layers by the precision of what they write.

    Args:
        layers: The engine inspector's JSON: TensorRT 10 has "Format/Datatype" of each output, 11
            "DataType" and "Format" apart.
    """
    entries = layers.get("Layers", []) if isinstance(layers, dict) else []
    return dict(Counter(_precision(entry) for entry in entries))


def _precision(layer: Any) -> str:
    outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []
    for tensor in outputs:
        words = [
            str(value)
            for key, value in tensor.items()
            if "datatype" in key.lower() or "format" in key.lower()
        ]
        for word in re.findall(r"[a-z]+\d*", " ".join(sorted(words)).lower()):
            if word in _PRECISIONS:
                return _PRECISIONS[word]
    return "unknown"
