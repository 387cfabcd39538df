"""A lane: one stream, its buffers, and for each batch size a context with its recorded graph.

A context is set up once, for one batch size, and never changed. A recorded CUDA graph is then good
for as long as its buffers stay in place. NVIDIA advises one context per graph; all share scratch
memory. When buffers grow to a larger batch, graphs are recorded anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_edge.backends.trt.cudart import DEVICE_TO_HOST, HOST_TO_DEVICE, Cudart
from vit_edge.backends.trt.engine import Engine
from vit_edge.bundle.manifest import Manifest, TensorSpec
from vit_edge.errors import BackendError, ResourceError, VitEdgeError

_LOG = logging.getLogger(__name__)

_SLOTS = 16  # batch sizes kept ready; the one not used for longest goes


@dataclass
class _Slot:
    """A context for one batch size."""

    context: Any
    images: int
    runs: int = 0
    graph: int | None = None


class _Buffer:
    """Memory of the host and of the GPU for one tensor."""

    def __init__(self, cudart: Cudart, tensor: TensorSpec) -> None:
        self.name = tensor.name
        self.dtype = np.dtype(tensor.dtype)
        self.shape = tuple(size or 0 for size in tensor.shape[1:])
        self.capacity = self.host = self.device = 0
        self._cudart = cudart

    def bytes_of(self, images: int) -> int:
        return images * int(np.prod(self.shape)) * self.dtype.itemsize

    def array(self, images: int) -> NDArray[Any]:
        """The host's side, as an array that lasts as long as this buffer."""
        memory = (ctypes.c_ubyte * self.bytes_of(images)).from_address(self.host)
        flat: NDArray[Any] = np.ctypeslib.as_array(memory).view(self.dtype)
        return flat.reshape(images, *self.shape)

    def grow(self, images: int) -> None:
        self.free()
        self.host = self._cudart.allocate_pinned(self.bytes_of(images))
        self.device = self._cudart.allocate(self.bytes_of(images))
        self.capacity = images

    def free(self) -> None:
        device, host = self.device, self.host
        self.capacity = self.device = self.host = 0  # first: nobody frees twice after an error
        try:
            if device:
                self._cudart.free(device)
        finally:
            if host:
                self._cudart.free_pinned(host)


class Lane:
    """Runs one batch at a time. Not for several threads at once."""

    def __init__(
        self,
        engine: Engine,
        cudart: Cudart,
        manifest: Manifest,
        *,
        graphs: bool,
        on_eager: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Make a stream; memory is taken when the first batch comes.

        Args:
            engine: What to run.
            cudart: On the engine's GPU.
            manifest: Of the bundle.
            graphs: Record each batch size's launches after its first run, and replay them.
            on_eager: Called with the reason where that turns out not to be possible.
        """
        self._engine = engine
        self._cudart = cudart
        self._input = _Buffer(cudart, manifest.input)
        self._outputs = [_Buffer(cudart, tensor) for tensor in manifest.outputs]
        self._buffers = (self._input, *self._outputs)
        self._profiles = engine.profiles(manifest.input.name)
        self._rtx_records = engine.library.name == "tensorrt_rtx"  # by itself
        self._graphs = graphs
        self._on_eager = on_eager
        self._slots: OrderedDict[int, _Slot] = OrderedDict()
        self._scratch = self._scratch_bytes = 0
        self._running: _Slot | None = None
        self._stream = cudart.create_stream()

    def start(self, pixels: NDArray[np.generic]) -> None:
        """Begin to run a batch that one run can take."""
        self._cudart.use_device()
        try:
            slot = self._slot(len(pixels))
        except BaseException:  # Ctrl-C too: contexts may hold memory that is gone
            with contextlib.suppress(VitEdgeError):
                self._clear()
            raise
        self._input.array(slot.images)[:] = pixels
        self._running = slot
        if slot.graph is None and slot.runs and self._graphs and not self._rtx_records:
            self._record(slot)
        if slot.graph is None:
            self._enqueue(slot)
        else:
            self._cudart.launch(slot.graph, self._stream)
        slot.runs += 1

    def finish(self) -> dict[str, NDArray[np.float32]]:
        """Wait for the batch; the arrays are the caller's."""
        slot, self._running = self._running, None
        self._cudart.synchronize(self._stream)
        if slot is None:
            return {}
        return {out.name: out.array(slot.images).copy() for out in self._outputs}

    def abandon(self) -> None:
        """Wait for whatever is running, its answer not wanted."""
        self._running = None
        self._cudart.synchronize(self._stream)

    def close(self) -> None:
        """Give everything back, as much as can be where CUDA fails."""
        self._cudart.use_device()
        stream, self._stream = self._stream, 0
        try:
            self._clear()
        finally:
            if stream:
                self._cudart.destroy_stream(stream)

    def _clear(self) -> None:
        """Give contexts and memory back; the next batch takes them anew."""
        slots = list(self._slots.values())
        self._slots.clear()
        with contextlib.ExitStack() as last_to_first:  # all of it, also after an error
            if self._scratch:
                last_to_first.callback(self._cudart.free, self._scratch)
                self._scratch = self._scratch_bytes = 0
            for buffer in self._buffers:
                last_to_first.callback(buffer.free)
            for slot in slots:
                last_to_first.callback(self._forget, slot)

    def _slot(self, images: int) -> _Slot:
        """The context for a batch size, with room for it."""
        if images > min(buffer.capacity for buffer in self._buffers):
            self._make_room(images)
        slot = self._slots.get(images)
        if slot is None:
            slot = self._make_slot(images)
            self._slots[images] = slot
            if len(self._slots) > _SLOTS:
                _, oldest = self._slots.popitem(last=False)
                self._forget(oldest)
        self._slots.move_to_end(images)
        return slot

    def _make_room(self, images: int) -> None:
        for slot in self._slots.values():
            self._forget(slot)
        for buffer in self._buffers:
            buffer.grow(images)
        for slot in self._slots.values():
            self._set_addresses(slot.context)

    def _make_slot(self, images: int) -> _Slot:
        engine, shape = self._engine, (images, *self._input.shape)
        context = engine.context(graphs=self._graphs)
        if profile := self._profile(images):
            change = context.set_optimization_profile_async
            engine.granted(f"profile {profile}", lambda: change(profile, self._stream))
            self._cudart.synchronize(self._stream)
        engine.granted(
            f"a batch of {images}", lambda: context.set_input_shape(self._input.name, shape)
        )
        for out in self._outputs:
            actual = tuple(context.get_tensor_shape(out.name))
            if actual != (images, *out.shape):
                raise BackendError(f"{out.name} has shape {actual}, not {(images, *out.shape)}")
        self._set_addresses(context)
        scratch = int(context.update_device_memory_size_for_shapes())
        if scratch > self._scratch_bytes:
            self._grow_scratch(scratch)
        self._set_scratch(context)
        return _Slot(context, images)

    def _profile(self, images: int) -> int:
        """The narrowest that holds it."""
        fitting = [
            (profile.most - profile.least, index)
            for index, profile in enumerate(self._profiles)
            if profile.least <= images <= profile.most
        ]
        return min(fitting)[1]

    def _set_addresses(self, context: Any) -> None:
        for buffer in self._buffers:
            set_it = partial(context.set_tensor_address, buffer.name, buffer.device)
            self._engine.granted(f"the address of {buffer.name}", set_it)

    def _grow_scratch(self, size_bytes: int) -> None:
        for slot in self._slots.values():
            self._forget(slot)
        scratch, self._scratch, self._scratch_bytes = self._scratch, 0, 0
        if scratch:
            self._cudart.free(scratch)
        self._scratch = self._cudart.allocate(size_bytes)
        self._scratch_bytes = size_bytes
        for slot in self._slots.values():
            self._set_scratch(slot.context)

    def _set_scratch(self, context: Any) -> None:
        if self._scratch:
            context.set_device_memory(self._scratch, self._scratch_bytes)

    def _enqueue(self, slot: _Slot) -> None:
        """Put copy, run and copy back into the stream."""
        cudart, stream, source = self._cudart, self._stream, self._input
        size = source.bytes_of(slot.images)
        cudart.copy(source.device, source.host, size, HOST_TO_DEVICE, stream)
        self._engine.granted("the run", lambda: slot.context.execute_async_v3(stream))
        for out in self._outputs:
            size = out.bytes_of(slot.images)
            cudart.copy(out.host, out.device, size, DEVICE_TO_HOST, stream)

    def _record(self, slot: _Slot) -> None:
        """Record what `_enqueue` launches; without it a run is slower, and its answers the same."""
        try:
            self._cudart.begin_capture(self._stream)
            try:
                self._enqueue(slot)
            except BaseException:  # a stream that goes on recording would run nothing more
                self._cudart.abandon_capture(self._stream)
                raise
            slot.graph = self._cudart.end_capture(self._stream)
        except (BackendError, ResourceError) as error:
            self._graphs = False
            self._on_eager(str(error).partition("\n")[0])
            _LOG.warning("runs are not recorded as CUDA graphs, and slower for it: %s", str(error))

    def _forget(self, slot: _Slot) -> None:
        """Give its recording back: the next run is a plain one, and the one after it recorded."""
        slot.runs = 0
        graph, slot.graph = slot.graph, None
        if graph is not None:
            self._cudart.destroy_graph(graph)
