"""One way to run a model, in a process of its own: what cpu.py takes turns among.

    python candidates.py '{"kind": "onnxruntime", "model": "timm.onnx", "pixels": "pixels.npy",
                           "threads": 2, "options": {}}'

Runs in the competitors' environments too, so every kind imports what it needs itself. The protocol
is harness.worker's; the calls are `facts`, `seconds` and `answers`.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from harness.measure import seconds
from harness.worker import serve
from numpy.typing import NDArray

GEMM_SIDE = 2048  # large enough for the peak rate, small enough to run in 50 ms

Run: TypeAlias = Callable[[], NDArray[np.float32]]


class Spec(NamedTuple):
    """What to open, as JSON brings it."""

    kind: str
    model: str
    pixels: str
    threads: int
    options: Mapping[str, Any]


class Opened(NamedTuple):
    """A model that is ready, and what to do to time it on given pixels, float32[N, 3, H, W]."""

    facts: Mapping[str, str]
    prepare: Callable[[NDArray[np.float32]], Run]


def main() -> int:
    spec = Spec(**json.loads(sys.argv[1]))
    opened = KINDS[spec.kind](spec)
    pixels = np.load(spec.pixels)
    prepared: dict[int, Run] = {}

    def timed(batch: int, times: int) -> float:
        """The median of `times` runs, after one that brings the caches back."""
        if batch not in prepared:
            prepared[batch] = opened.prepare(np.ascontiguousarray(pixels[:batch]))
        run = prepared[batch]
        run()
        return statistics.median(seconds(run) for _ in range(times))

    def answers(out: str, batch: int) -> None:
        """Write the logits of all images, taken `batch` at a time."""
        starts = range(0, len(pixels), batch)
        rows = [opened.prepare(pixels[start : start + batch])() for start in starts]
        np.save(out, np.concatenate(rows).astype(np.float32))

    serve({"facts": lambda: dict(opened.facts), "seconds": timed, "answers": answers})
    return 0


def vit_edge_bundle(spec: Spec) -> Opened:
    """A bundle in one of our backends."""
    from vit_edge import backends
    from vit_edge.bundle import Bundle

    bundle = Bundle.read(spec.model)
    options = dict(spec.options)
    module: Any = backends.module(options.pop("backend"))
    if options.get("split_tokens") == "full blocks":
        options["split_tokens"] = module.full_blocks(bundle)
    loaded = module.load(bundle, threads=spec.threads, **options)

    def prepare(pixels: NDArray[np.float32]) -> Run:
        return lambda: loaded.run(pixels)["logits"]

    return Opened(loaded.facts, prepare)


def onnxruntime_model(spec: Spec) -> Opened:
    """An ONNX file in onnxruntime, with its defaults."""
    import onnxruntime

    session = _session(spec.model, spec.threads)

    def prepare(pixels: NDArray[np.float32]) -> Run:
        return lambda: session.run(None, {"pixel_values": pixels})[0]

    return Opened({"runtime": f"onnxruntime {onnxruntime.__version__}"}, prepare)


def openvino_model(spec: Spec) -> Opened:
    """A model in OpenVINO, compiled for the very batch; in throughput mode for single images."""
    import openvino

    core = openvino.Core()
    throughput = spec.options["mode"] == "THROUGHPUT"
    properties = {
        "INFERENCE_PRECISION_HINT": spec.options["precision"],  # by itself: bf16, where there is
        "PERFORMANCE_HINT": spec.options["mode"],
        "INFERENCE_NUM_THREADS": spec.threads,
        "NUM_STREAMS": spec.options["streams"],
    }

    def requests(batch: int, count: int) -> list[Any]:
        model = core.read_model(spec.model)
        model.reshape({0: [batch, *list(model.inputs[0].partial_shape)[1:]]})
        compiled = core.compile_model(model, "CPU", properties)
        return [compiled.create_infer_request() for _ in range(count)]

    made: dict[int, list[Any]] = {}

    def prepare(pixels: NDArray[np.float32]) -> Run:
        batch = len(pixels)
        if batch not in made:
            made[batch] = requests(1, batch) if throughput else requests(batch, 1)
        images = np.split(pixels, len(made[batch]))

        def run() -> NDArray[np.float32]:
            for request, image in zip(made[batch], images, strict=True):
                request.start_async({0: image}, share_inputs=True)
            for request in made[batch]:
                request.wait()
            return np.concatenate([r.get_output_tensor(0).data for r in made[batch]])

        return run

    version = openvino.__version__.partition("-")[0]
    return Opened({"runtime": f"openvino {version}", **spec.options}, prepare)


def torch_vit_edge(spec: Spec) -> Opened:
    """Our model in PyTorch."""
    import torch
    from safetensors.torch import load_file

    from vit_edge.models.vit import vit_from_weights
    from vit_edge.variants import variant

    torch.set_num_threads(spec.threads)
    architecture = variant(spec.options["variant"]).architecture
    model: Any = vit_from_weights(architecture, load_file(spec.model))
    return _torch(model, lambda outputs: outputs.logits, spec.options["dtype"])


def torch_timm(spec: Spec) -> Opened:
    """timm's model in PyTorch."""
    import torch

    sys.path.insert(0, str(Path(__file__).with_name("peers")))
    from cpu_models import timm_model

    torch.set_num_threads(spec.threads)
    model = timm_model(spec.options["timm"], Path(spec.model))
    return _torch(model, lambda logits: logits, spec.options["dtype"])


def gemm_torch(spec: Spec) -> Opened:
    """A float32 product in PyTorch, which is oneDNN's or MKL's."""
    import torch

    torch.set_num_threads(spec.threads)
    left, right = (torch.from_numpy(matrix) for matrix in _matrices())
    run = partial(_on_inference, lambda: torch.matmul(left, right).numpy())
    return Opened({"runtime": f"torch {torch.__version__}"}, lambda pixels: run)


def gemm_onnxruntime(spec: Spec) -> Opened:
    """A float32 product in onnxruntime, one factor constant, as weights are."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    left, right = _matrices()
    shape = [GEMM_SIDE, GEMM_SIDE]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "gemm",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(right, "b")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = _session(model.SerializeToString(), spec.threads)
    facts = {"runtime": f"onnxruntime {onnxruntime.__version__}"}
    return Opened(facts, lambda pixels: lambda: session.run(None, {"a": left})[0])


KINDS: dict[str, Callable[[Spec], Opened]] = {
    "vit_edge": vit_edge_bundle,
    "onnxruntime": onnxruntime_model,
    "openvino": openvino_model,
    "torch_vit_edge": torch_vit_edge,
    "torch_timm": torch_timm,
    "gemm_torch": gemm_torch,
    "gemm_onnxruntime": gemm_onnxruntime,
}


def _session(model: str | bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])


def _torch(model: Any, logits: Callable[[Any], Any], dtype: str) -> Opened:
    import torch

    model = model.to(getattr(torch, dtype))

    def prepare(pixels: NDArray[np.float32]) -> Run:
        given = torch.from_numpy(pixels).to(getattr(torch, dtype))
        return partial(_on_inference, lambda: logits(model(given)).float().numpy())

    return Opened({"runtime": f"torch {torch.__version__}", "dtype": dtype}, prepare)


def _on_inference(run: Run) -> NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        return run()


def _matrices() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(0)
    shape = (GEMM_SIDE, GEMM_SIDE)
    return random.random(shape, np.float32), random.random(shape, np.float32)


if __name__ == "__main__":
    sys.exit(main())
