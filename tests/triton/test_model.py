"""The model of Triton's Python backend, with Triton's own module played by a stand-in."""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_edge import Bundle, PredictionError, Predictor
from vit_edge.triton.config import Serving, config_from_bundle
from vit_edge.triton.repository import triton

requires = ("onnxruntime",)

BAD = b"this is a text"
KINDS = {"TYPE_STRING": np.object_, "TYPE_FP32": np.float32, "TYPE_INT32": np.int32}


class Tensor:
    def __init__(self, name: str, values: Any) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> Any:
        return self.values


class TritonError:
    INVALID_ARG, INTERNAL = 3, 1

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


class Response:
    def __init__(self, tensors: Any = (), error: Any = None) -> None:
        self.tensors = {tensor.name: tensor.values for tensor in tensors}
        self.error = error


class Request:
    def __init__(self, images: list[bytes], *outputs: str) -> None:
        self.image = Tensor("image", np.array(images, object).reshape(-1, 1))
        self.outputs = outputs

    def requested_output_names(self) -> list[str]:
        return list(self.outputs)


@pytest.fixture
def model_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    server: Any = types.ModuleType("triton_python_backend_utils")
    server.Tensor, server.TritonError, server.InferenceResponse = Tensor, TritonError, Response
    server.get_input_tensor_by_name = lambda request, name: getattr(request, name)
    server.triton_string_to_numpy = KINDS.__getitem__
    monkeypatch.setitem(sys.modules, server.__name__, server)
    monkeypatch.delitem(sys.modules, "vit_edge.triton.model", raising=False)
    module = importlib.import_module("vit_edge.triton.model")
    yield module.TritonPythonModel
    sys.modules.pop("vit_edge.triton.model", None)


@pytest.fixture
def model(model_class: Any, testing_bundle: Bundle, tmp_path: Path) -> Iterator[Any]:
    """The model as Triton opens it."""
    yield from opened(model_class, testing_bundle, tmp_path)


def opened(model_class: Any, bundle: Bundle, tmp_path: Path) -> Iterator[Any]:
    """The model of a bundle, in a repository of its own."""
    triton(bundle, out=tmp_path / "models", names=["m"])
    largest = bundle.manifest.max_batch
    message = config_from_bundle("m", bundle, Serving("python", 1, 0, 1, 3, largest))
    parameters = {one["key"]: one["value"] for one in message["parameters"]}
    model = model_class()
    model.initialize(
        {
            "model_config": json.dumps(message | {"parameters": parameters}),
            "model_repository": str(tmp_path / "models" / "m"),
            "model_version": "1",
        }
    )
    yield model
    model.finalize()


@pytest.fixture
def images(photos: list[Path]) -> list[bytes]:
    return [photo.read_bytes() for photo in photos[:5]]


def test_requests_get_their_own_images_answers(
    model: Any, testing_bundle: Bundle, images: list[bytes]
) -> None:
    first, second, none = model.execute(
        [
            Request(images[:2], "logits", "label", "index", "score"),
            Request(images[2:5], "features"),
            Request([], "logits", "label"),
        ]
    )
    with Predictor(testing_bundle, threads=1) as predictor:
        answers = list(predictor.run(images, ("top", "logits", "features"), top_k=3, batch_size=4))
    predictions = [answer.prediction for answer in answers]
    assert set(first.tensors) == {"logits", "label", "index", "score"}
    assert first.tensors["label"].tolist() == [
        [ranked.label.encode() for ranked in prediction.top] for prediction in predictions[:2]
    ]
    assert first.tensors["index"].tolist() == [
        [ranked.index for ranked in prediction.top] for prediction in predictions[:2]
    ]
    logits = np.stack([answer.outputs["logits"] for answer in answers[:2]])
    assert np.array_equal(first.tensors["logits"], logits)
    assert first.tensors["score"].shape == (2, 3)
    features = np.stack([answer.outputs["features"] for answer in answers[2:]])
    assert np.array_equal(second.tensors["features"], features)
    assert second.tensors["features"].dtype == np.float32
    assert none.tensors["logits"].shape == (0, 10)
    assert none.tensors["label"].shape == (0, 3)


def test_what_triton_batched_runs_at_once(
    model_class: Any,
    bundle: Bundle,
    images: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Up to what the bundle allows, also where that is more than a stream takes by itself."""
    file = bundle.path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_batch": 12}))
    sizes, run = [], Predictor._run_pixels

    def counted(predictor: Predictor, pixels: Any, *rest: Any) -> Any:
        sizes.append(len(pixels))
        return run(predictor, pixels, *rest)

    monkeypatch.setattr(Predictor, "_run_pixels", counted)
    for model in opened(model_class, Bundle.read(bundle.path), tmp_path):
        model.execute([Request(images, "logits"), Request(images, "logits")])
        model.execute([Request([*images, *images, *images], "logits")])
    assert sizes == [10, 12, 3]


def test_a_bad_image_is_an_error_of_its_request_alone(model: Any, images: list[bytes]) -> None:
    good, bad, mixed, last = model.execute(
        [
            Request(images[:1], "logits"),
            Request([BAD], "logits"),
            Request([images[1], b"", images[2]], "logits"),
            Request(images[3:5], "logits"),
        ]
    )
    assert good.error is last.error is None
    assert last.tensors["logits"].shape == (2, 10)
    assert bad.error.code == mixed.error.code == TritonError.INVALID_ARG
    assert bad.error.message.startswith("ImageDecodeError: <bytes, 14 B>: not an image")
    assert mixed.error.message.startswith("image 2 of 3: ImageDecodeError: <bytes, 0 B>")


def test_an_image_that_the_model_cannot_answer_takes_no_other_with_it(
    model: Any, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where one image's logits are NaN: the whole batch is refused first."""
    run = model._predictor.run

    def refuse(batch: list[bytes], *arguments: Any, **keywords: Any) -> Any:
        if images[1] in batch:
            raise PredictionError("the model answered NaN or Inf")
        return run(batch, *arguments, **keywords)

    monkeypatch.setattr(model._predictor, "run", refuse)
    first, second, third = model.execute(
        [Request([image], "logits") for image in images[:3]],
    )
    assert first.error is third.error is None
    assert second.error.code == TritonError.INTERNAL
    assert second.error.message == "PredictionError: the model answered NaN or Inf"
