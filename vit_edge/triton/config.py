"""config.pbtxt: what Triton has to know of a model, from the bundle's manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from vit_edge.bundle import Bundle
from vit_edge.bundle.bundle import LABELS_NAME, MODEL_NAME, PREPROCESS_NAME
from vit_edge.bundle.manifest import Manifest, TensorSpec
from vit_edge.triton.text import Word

Backend: TypeAlias = Literal["python", "onnxruntime", "tensorrt", "openvino"]

IMAGE = "image"  # the input of the Python backend: encoded files; of preprocess.onnx: RGB
PIXELS = "pixels"  # what preprocess.onnx makes
RANKED = {"label": "STRING", "index": "INT32", "score": "FP32"}  # what it adds of the best classes
WARMUP_NAME = "probe"
# What is in a version's folder; Triton's OpenVINO backend would look for model.xml.
FILES: dict[Backend, str] = {
    "python": "model.py", "onnxruntime": MODEL_NAME, "tensorrt": "model.plan",
    "openvino": MODEL_NAME,
}  # fmt: skip
_ANY = -1  # of a dimension
_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}


@dataclass(frozen=True)
class Serving:
    """How a model is served.

    Attributes:
        backend: Triton's name of it.
        instances: How many run at the same time.
        queue_us: How long a request may wait for others to fill a batch.
        threads: Of each instance; None leaves it to the runtime, which takes every CPU.
        top_k: How many classes the Python backend ranks.
        max_batch: The largest batch.
        profiles: How many optimization profiles a plan has.
    """

    backend: Backend
    instances: int
    queue_us: int
    threads: int | None
    top_k: int
    max_batch: int
    profiles: int = 1

    @property
    def batches(self) -> bool:
        """True if Triton makes batches of requests.

        Its OpenVINO backend would fix the model at the largest batch, and compute all of it for a
        single image (openvino.cc, ValidateInputs). So it is told of no batch: an axis of any size.
        """
        return self.backend != "openvino"


def config_from_bundle(
    name: str, bundle: Bundle, serving: Serving, *, versions: int = 1, warmup: bool = True
) -> dict[str, Any]:
    """Write the message ModelConfig.

    Args:
        name: The model's.
        bundle: Of any of its versions.
        serving: How it is served.
        versions: How many there are; all of them are served.
        warmup: Whether there is a file for it.
    """
    backend, manifest = serving.backend, bundle.manifest
    config: dict[str, Any] = {
        "name": name,
        "backend": backend,
        "default_model_filename": FILES[backend],
        "max_batch_size": serving.max_batch if serving.batches else 0,
        "input": [_input(manifest, serving)],
        "output": list(_outputs(manifest, serving)),
        "instance_group": [_group(serving)],
    }
    if serving.batches and serving.max_batch > 1:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": serving.queue_us}
    if versions > 1:
        config["version_policy"] = {"all": {}}
    config["parameters"] = [
        {"key": key, "value": {"string_value": value}} for key, value in _parameters(serving)
    ]
    if warmup:
        config["model_warmup"] = list(_warmups(config["input"][0], serving))
    return config


def preprocess_config(name: str, bundle: Bundle, serving: Serving) -> dict[str, Any]:
    """Write the message ModelConfig of preprocess.onnx: one image of any size, no batch.

    Args:
        name: The model's.
        bundle: Of which it is.
        serving: How the model behind it is served.
    """
    graph = bundle.manifest.input
    return {
        "name": name,
        "backend": "onnxruntime",
        "default_model_filename": PREPROCESS_NAME,
        "max_batch_size": 0,
        "input": [_image()],
        "output": [_tensor(PIXELS, graph, (1, *graph.shape[1:]))],
        "instance_group": [{"count": serving.instances, "kind": Word("KIND_CPU")}],
        "parameters": [
            {"key": "intra_op_thread_count", "value": {"string_value": str(serving.threads or 1)}}
        ],
    }


def ensemble_config(name: str, bundle: Bundle, preprocess: str, model: str) -> dict[str, Any]:
    """Write the message ModelConfig of both, one after the other: an image in, answers out.

    Requests of the model are still batched: each has a batch of one.

    Args:
        name: The ensemble's.
        bundle: Of the model.
        preprocess: The model that `preprocess_config` names.
        model: The model that `config_from_bundle` names.
    """
    manifest = bundle.manifest
    outputs = {tensor.name: tensor.name for tensor in manifest.outputs}
    steps = (
        (preprocess, {IMAGE: IMAGE}, {PIXELS: PIXELS}),
        (model, {manifest.input.name: PIXELS}, outputs),
    )
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": 0,
        "input": [_image()],
        "output": [
            _labelled(_tensor(one.name, one, (1, *one.shape[1:])), manifest)
            for one in manifest.outputs
        ],
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": step, "model_version": -1,
                    "input_map": _entries(given), "output_map": _entries(made),
                }
                for step, given, made in steps
            ]
        },
    }  # fmt: skip


def _entries(names: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in names.items()]


def _image() -> dict[str, Any]:
    return {"name": IMAGE, "data_type": Word("TYPE_UINT8"), "dims": [_ANY, _ANY, 3]}


def _warmups(tensor: Mapping[str, Any], serving: Serving) -> Iterator[dict[str, Any]]:
    """One image, and the largest batch of it."""
    dims = [1 if size == _ANY else size for size in tensor["dims"]]
    value = {"data_type": tensor["data_type"], "dims": dims, "input_data_file": WARMUP_NAME}
    for size in sorted({1, serving.max_batch} if serving.batches else {1}):
        inputs = {"key": tensor["name"], "value": value}
        yield {"name": f"batch of {size}", "batch_size": size, "inputs": inputs}


def _input(manifest: Manifest, serving: Serving) -> dict[str, Any]:
    if serving.backend == "python":
        return {"name": IMAGE, "data_type": Word("TYPE_STRING"), "dims": [1]}
    return _served_tensor(manifest.input, serving)


def _outputs(manifest: Manifest, serving: Serving) -> Iterator[dict[str, Any]]:
    for tensor in manifest.outputs:
        yield _labelled(_served_tensor(tensor, serving), manifest)
    if serving.backend == "python" and manifest.num_classes:
        count = [min(serving.top_k, manifest.num_classes)]
        for name, kind in RANKED.items():
            yield {"name": name, "data_type": Word(f"TYPE_{kind}"), "dims": count}


def _labelled(output: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """Name the file of labels where an output has a value for each class."""
    has_classes = output["name"] == "logits" and manifest.num_classes
    return output | ({"label_filename": LABELS_NAME} if has_classes else {})


def _served_tensor(tensor: TensorSpec, serving: Serving) -> dict[str, Any]:
    return _tensor(tensor.name, tensor, tensor.shape[1:] if serving.batches else tensor.shape)


def _tensor(name: str, tensor: TensorSpec, shape: Sequence[int | None]) -> dict[str, Any]:
    dims = [_ANY if size is None else size for size in shape]
    return {"name": name, "data_type": Word(_TYPES[tensor.dtype]), "dims": dims}


def _group(serving: Serving) -> dict[str, Any]:
    kind = "KIND_GPU" if serving.backend == "tensorrt" else "KIND_CPU"
    group: dict[str, Any] = {"count": serving.instances, "kind": Word(kind)}
    if serving.profiles > 1:  # Triton takes the one that a batch fits best
        group["profile"] = [str(number) for number in range(serving.profiles)]
    return group


def _parameters(serving: Serving) -> Iterator[tuple[str, str]]:
    """What each backend calls its threads; see the README of its repository."""
    if serving.backend == "openvino":  # a stream an instance, or each has its own share of none
        yield "NUM_STREAMS", str(serving.instances)
        if serving.threads is not None:
            yield "INFERENCE_NUM_THREADS", str(serving.threads * serving.instances)
    elif serving.threads is not None and serving.backend != "tensorrt":
        names: Mapping[Backend, str] = {"python": "threads", "onnxruntime": "intra_op_thread_count"}
        yield names[serving.backend], str(serving.threads)
