"""A TensorRT in Python, made of the listing of a real version's interface.

A class or member that the listing lacks is absent here, whatever is written below; what is called
in the wrong order is answered as the real one does, with None, -1 or False and a word to the
logger; and what is run is the ONNX file, by onnxruntime. Environment: FAKE_TENSORRT (10 or 11:
whose listing), FAKE_TENSORRT_BUILD ("oom:N": memory runs out with a workspace over N bytes,
"kill:N": the system kills it then; "crash"; "none": refuses; "odd inspector"; "slow").
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
import signal
import time
import weakref
from pathlib import Path
from typing import Any

import fake_cuda
import numpy as np
from fake_cuda import STATE

_WHICH = os.environ["FAKE_TENSORRT"]
_FILE = Path(__file__).parents[2] / "data" / "tensorrt-api" / f"tensorrt_{_WHICH}.json"
_LISTING = json.loads(_FILE.read_text())
__version__ = _LISTING["version"]
_MAGIC = b"FAKEPLAN"


def __getattr__(name: str) -> Any:
    if name in _LISTING["module"]:
        raise NotImplementedError(f"the fake TensorRT lacks {name}, which the real one has")
    raise AttributeError(f"module 'tensorrt' has no attribute {name!r}")


def _listed(real: type) -> type:
    """Take from a class what the listing of its name lacks."""
    members = set(_LISTING["classes"][real.__name__])
    for name in list(vars(real)):
        if not name.startswith("_") and name not in members:
            delattr(real, name)

    def assign(self: Any, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in members and type(self) is real:
            raise AttributeError(f"{real.__name__!r} object has no attribute {name!r}")
        object.__setattr__(self, name, value)

    real.__setattr__ = assign  # type: ignore[assignment, method-assign]
    return real


for _name, _members in _LISTING["enums"].items():
    if "." not in _name:
        globals()[_name] = enum.IntEnum(_name, {m: i for i, m in enumerate(_members)})


class _Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


@_listed
class ILogger:
    Severity = _Severity
    INTERNAL_ERROR, ERROR, WARNING = _Severity.INTERNAL_ERROR, _Severity.ERROR, _Severity.WARNING
    INFO, VERBOSE = _Severity.INFO, _Severity.VERBOSE


class _Base:
    """Keeps the logger, as everything of TensorRT's does."""

    _logger: Any = None

    def _refuse(self, message: str, answer: Any) -> Any:
        self._logger.log(_Severity.ERROR, message)
        return answer


@_listed
class IProgressMonitor:
    pass


class _Thing:
    """A value with attributes."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


class _Word:
    def __init__(self, name: str) -> None:
        self.name = name


@_listed
class IHostMemory(bytes):  # type: ignore[misc]
    @property
    def nbytes(self) -> int:
        return len(self)


@_listed
class INetworkDefinition(_Base):
    def __init__(self, logger: Any, flags: int) -> None:
        self._logger, self._flags = logger, flags
        self._model: bytes = b""
        self._layers: list[Any] = []
        self._inputs: list[Any] = []

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_layer(self, index: int) -> Any:
        return self._layers[index]


@_listed
class ParserError:
    def __init__(self, node: Any, what: str) -> None:
        self._node, self._what = node, what

    def node(self) -> int:
        return 0

    def node_name(self) -> str:
        return str(self._node.name) if self._node else ""

    def node_operator(self) -> str:
        return str(self._node.op_type) if self._node else ""

    def desc(self) -> str:
        return self._what


@_listed
class OnnxParser(_Base):
    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._logger = network, logger
        self._errors: list[Any] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def parse_from_file(self, path: str) -> bool:
        import onnx

        try:
            model = onnx.load(path)
        except Exception as error:
            self._errors = [ParserError(None, f"Failed to parse the ONNX model: {error}")]
            return False
        self._errors = [
            ParserError(node, "Plugin not found")
            for node in model.graph.node
            if node.domain not in ("", "ai.onnx")
        ]
        self._network._model = model.SerializeToString()
        self._network._layers = [
            _Thing(
                name=node.name,
                type=_Word(node.op_type.upper()),
                num_outputs=1,
                get_output=lambda index: _Thing(dtype=_Word("FLOAT")),
            )
            for node in model.graph.node
        ]
        weights = {entry.name for entry in model.graph.initializer}
        self._network._inputs = [i.name for i in model.graph.input if i.name not in weights]
        return not self._errors


@_listed
class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, Any] = {}

    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        self._shapes[name] = [tuple(least), tuple(best), tuple(most)]


@_listed
class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> Any:
        return IHostMemory(self._content)


@_listed
class IBuilderConfig(_Base):
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._profiles: list[Any] = []
        self._flags = {BuilderFlag.TF32}  # type: ignore[name-defined]  # noqa: F821
        self._pools: dict[Any, int] = {}
        self._cache: Any = None
        self.progress_monitor: Any = None
        self._features: set[Any] = set()
        self.DLA_core = -1
        self.profiling_verbosity = None
        self.builder_optimization_level = 3

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag)

    def set_preview_feature(self, feature: Any, on: bool) -> None:
        (self._features.add if on else self._features.discard)(feature)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self._pools[pool] = size

    def add_optimization_profile(self, profile: Any) -> int:
        for least, best, most in profile._shapes.values():
            if not all(a <= b <= c for a, b, c in zip(least, best, most, strict=True)):
                return int(self._refuse("profile: min <= opt <= max does not hold", -1))
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, content: bytes) -> Any:
        return ITimingCache(bytes(content))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        mine = f"timed by {__version__}".encode()
        if cache._content not in (b"", mine):
            return bool(self._refuse("the timing cache is of another version", False))
        self._cache = ITimingCache(mine)
        return True

    def get_timing_cache(self) -> Any:
        return self._cache

    def can_run_on_DLA(self, layer: Any) -> bool:
        return str(layer.type.name) in ("MATMUL", "ADD")


@_listed
class Builder(_Base):
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    @property
    def num_DLA_cores(self) -> int:
        return int(os.environ.get("FAKE_DLA_CORES", "0"))

    def create_network(self, flags: int = 0) -> Any:
        strongly = 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # type: ignore[name-defined]  # noqa: F821
        assert flags == strongly, "a network must be strongly typed"
        return INetworkDefinition(self._logger, flags)

    def create_builder_config(self) -> Any:
        return IBuilderConfig(self._logger)

    def create_optimization_profile(self) -> Any:
        return IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        for name in network._inputs:
            if not config._profiles or any(name not in p._shapes for p in config._profiles):
                return self._refuse(f"{name}: dynamic input without a profile", None)
        mode, _, number = os.environ.get("FAKE_TENSORRT_BUILD", "").partition(":")
        workspace = config._pools.get(MemoryPoolType.WORKSPACE, 10**12)  # type: ignore[name-defined]  # noqa: F821
        over = workspace > int(number or 0)
        if mode == "oom" and over:
            return self._refuse("Error Code 1: Cuda Runtime (out of memory)", None)
        if mode == "kill" and over:
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if mode == "none":
            return self._refuse("Error Code 10: Could not find any implementation for node x", None)
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building Engine", None, 2)
            for step in range(2):
                time.sleep(0.15 if mode == "slow" else 0)
                if not monitor.step_complete("Building Engine", step):
                    return self._refuse("cancelled", None)
            monitor.phase_finish("Building Engine")
        head = {
            "version": __version__,
            "profiles": [p._shapes for p in config._profiles],
            "flags": sorted(flag.name for flag in config._flags),
            "level": config.builder_optimization_level,
            "dla": config.DLA_core,
            "resizes": any("ACTIVATION_RESIZE" in feature.name for feature in config._features),
            "workspace": workspace,
        }
        text = json.dumps(head).encode()
        return IHostMemory(_MAGIC + len(text).to_bytes(8, "little") + text + network._model)


@_listed
class Runtime(_Base):
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self.engine_host_code_allowed = False
        self.DLA_core = -1

    def deserialize_cuda_engine(self, plan: Any) -> Any:
        if not STATE.initialised:  # the real one does not raise either
            os.kill(os.getpid(), signal.SIGSEGV)
        data = bytes(plan)
        if not data.startswith(_MAGIC):
            return self._refuse("Error Code 1: Serialization (magic tag does not match)", None)
        end = 16 + int.from_bytes(data[8:16], "little")
        head = json.loads(data[16:end])
        compatible = "VERSION_COMPATIBLE" in head["flags"]
        if compatible and not self.engine_host_code_allowed:
            return self._refuse("engine_host_code_allowed is False", None)
        if head["dla"] != self.DLA_core:
            return self._refuse(f"the plan is for DLA core {head['dla']}", None)
        if head["version"] != __version__ and not compatible:
            return self._refuse(f"the plan is of version {head['version']}", None)
        return ICudaEngine(self._logger, head, data[end:])


@_listed
class EngineInspector:
    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def get_engine_information(self, form: Any) -> str:
        assert form == LayerInformationFormat.JSON  # type: ignore[name-defined]  # noqa: F821
        if os.environ.get("FAKE_TENSORRT_BUILD") == "odd inspector":
            return "no JSON"
        key = "Format/Datatype" if _WHICH == "10" else "DataType"
        words = {
            "10": ("Row major linear FP16 format", "Row major linear FP32"),
            "11": ("Half",) * 2,
        }
        layers = [
            {"Name": str(n), "Outputs": [{"Name": "x", key: w}]}
            for n, w in enumerate(words[_WHICH])
        ]
        return json.dumps({"Layers": layers})


@_listed
class IRuntimeConfig:
    def __init__(self) -> None:
        self._strategy = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy


@_listed
class ICudaEngine(_Base):
    def __init__(self, logger: Any, head: Any, model: bytes) -> None:
        import onnxruntime

        self._logger, self._head = logger, head
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {i.name: i for i in self._session.get_inputs()}
        self._outputs = {o.name: o for o in self._session.get_outputs()}
        self._all = self._inputs | self._outputs

    @property
    def num_io_tensors(self) -> int:
        return len(self._all)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._head["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return list(self._all)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT  # type: ignore[name-defined]  # noqa: F821

    def get_tensor_dtype(self, name: str) -> Any:
        known = {"tensor(float)": "FLOAT", "tensor(uint8)": "UINT8"}
        return DataType[known[self._all[name].type]]  # type: ignore[name-defined]  # noqa: F821

    def get_tensor_shape(self, name: str) -> Any:
        return tuple(-1 if not isinstance(n, int) else n for n in self._all[name].shape)

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        return self._head["profiles"][index][name]

    def create_engine_inspector(self) -> Any:
        return EngineInspector(self)

    def create_runtime_config(self) -> Any:
        return IRuntimeConfig()

    def create_execution_context(self, strategy: Any = None) -> Any:
        return IExecutionContext(self, strategy)


@_listed
class IExecutionContext(_Base):
    def __init__(self, engine: Any, strategy: Any) -> None:
        self._logger, self._engine = engine._logger, engine
        self._managed = strategy == ExecutionContextAllocationStrategy.USER_MANAGED  # type: ignore[name-defined]  # noqa: F821
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)
        self._enqueued = False  # since the shapes were set
        self._sized = False  # likewise
        STATE.contexts += 1

    def __del__(self) -> None:
        STATE.contexts -= 1

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if not 0 <= index < self._engine.num_optimization_profiles or stream not in STATE.streams:
            raise RuntimeError(f"Error in set optimization profile async: no profile {index}")
        self._profile, self._shapes, self._enqueued = index, {}, False
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        if not all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True)):
            return bool(self._refuse(f"{name}: {shape} is outside the profile", False))
        self._shapes[name], self._enqueued, self._sized = tuple(shape), False, False
        return True

    def _images(self) -> int:
        return next(iter(self._shapes.values()))[0]

    def get_tensor_shape(self, name: str) -> Any:
        shape = self._engine.get_tensor_shape(name)
        return (self._images(), *shape[1:]) if self._shapes else shape

    def _needed(self) -> int:
        """What the largest batch needs, unless the plan may resize."""
        most = max(p[name][2][0] for p in self._engine._head["profiles"] for name in p)
        return 4096 * (self._images() if self._engine._head["resizes"] else int(most))

    def update_device_memory_size_for_shapes(self) -> int:
        self._sized = bool(self._shapes)
        return self._needed() if self._shapes else 0

    def set_device_memory(self, address: int, size: int) -> None:
        if not STATE.memory_at(address, size):
            STATE.errors.append("scratch memory is not allocated")
        if not self._sized:
            STATE.errors.append("scratch memory was set before its size was asked for")
        self._scratch = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self._engine._all or not address:
            return bool(self._refuse(f"{name}: no such tensor, or no address", False))
        self._addresses[name], self._enqueued = address, False
        return True

    def execute_async_v3(self, stream: int) -> bool:
        found = STATE.streams.get(stream)
        if found is None or found.device != STATE.current():
            return bool(self._refuse("a stream of another GPU, or none", False))
        if set(self._shapes) != set(self._engine._inputs):
            return bool(self._refuse("not all shapes are set", False))
        if set(self._addresses) != set(self._engine._all):
            return bool(self._refuse("not all addresses are set", False))
        if self._managed and self._scratch[1] < self._needed():
            return bool(self._refuse("too little device memory was set", False))
        if found.captured is not None and not self._enqueued:
            return bool(self._refuse("captured before the first enqueue", False))
        self._enqueued = True
        shapes, addresses, scratch = dict(self._shapes), dict(self._addresses), self._scratch
        here = weakref.ref(self)  # work outlives the context for a real one no more than here

        def compute() -> None:
            context = here()
            if context is None:
                STATE.errors.append("the context is gone")
            else:
                context._compute(shapes, addresses, scratch)

        found.put(compute)
        return True

    def _compute(self, shapes: Any, addresses: Any, scratch: tuple[int, int]) -> None:
        if not STATE.memory_at(*scratch):
            STATE.errors.append("scratch memory was freed")
            return
        ctypes.memset(scratch[0], fake_cuda.POISON, scratch[1])
        engine, feed = self._engine, {}
        for name, shape in shapes.items():
            dtype = np.dtype({"tensor(float)": "f4", "tensor(uint8)": "u1"}[engine._all[name].type])
            size = int(np.prod(shape)) * dtype.itemsize
            if not STATE.memory_at(addresses[name], size):
                STATE.errors.append(f"{name} was freed")
                return
            content = ctypes.string_at(addresses[name], size)
            feed[name] = np.frombuffer(content, dtype).reshape(shape)
        answers = engine._session.run(list(engine._outputs), feed)
        for name, answer in zip(engine._outputs, answers, strict=True):
            if not STATE.memory_at(addresses[name], answer.nbytes):
                STATE.errors.append(f"{name} was freed")
                return
            data = np.ascontiguousarray(answer)
            ctypes.memmove(addresses[name], data.ctypes.data, data.nbytes)
