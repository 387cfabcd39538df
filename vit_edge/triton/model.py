"""A bundle in Triton's Python backend: encoded images in, answers out.

`vit-edge triton` copies this file into a model repository, beside the bundle. Where Triton runs,
`pip install "vit-edge[cpu]"` is all that it needs.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as server

from vit_edge import Failure, PredictionError, Predictor

RANKED = ("label", "index", "score")  # of the best classes; all other outputs are the model's own


class TritonPythonModel:
    """One instance: it answers all requests that Triton's batcher hands over together."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle of this version."""
        config = json.loads(args["model_config"])
        self._types = {
            output["name"]: server.triton_string_to_numpy(output["data_type"])
            for output in config["output"]
        }
        self._shapes = {output["name"]: output["dims"] for output in config["output"]}
        threads = config["parameters"].get("threads", {}).get("string_value")
        self._predictor = Predictor(
            Path(args["model_repository"], args["model_version"], "bundle"),
            threads=int(threads) if threads else None,
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request; a bad image is an error of its own request alone."""
        asked = [self._images(request) for request in requests]
        try:
            rows = self._answers([image for images in asked for image in images])
        except PredictionError:  # one image may have done it: the other requests get their answers
            return [self._alone(images, one) for images, one in zip(asked, requests, strict=True)]
        return [
            self._response([rows.pop(0) for _ in images], request)
            for images, request in zip(asked, requests, strict=True)
        ]

    def finalize(self) -> None:
        """Give the runtime back."""
        self._predictor.close()

    def _images(self, request: Any) -> list[bytes]:
        images: list[bytes] = server.get_input_tensor_by_name(request, "image").as_numpy().ravel()
        return list(images)

    def _answers(self, images: list[bytes]) -> list[Any]:
        outputs = [name for name in self._types if name not in RANKED]
        if "label" in self._types:
            outputs.append("top")
        top_k = self._shapes.get("label", [1])[0]
        size = min(len(images), self._predictor.bundle.manifest.max_batch)  # what Triton batched
        return list(self._predictor.run(images, outputs, top_k=top_k, batch_size=size or 1))

    def _alone(self, images: list[bytes], request: Any) -> Any:
        try:
            return self._response(self._answers(images), request)
        except PredictionError as error:
            return _refusal(error, server.TritonError.INTERNAL)

    def _response(self, rows: list[Any], request: Any) -> Any:
        for number, row in enumerate(rows, 1):
            if isinstance(row, Failure):
                where = f"image {number} of {len(rows)}: " if len(rows) > 1 else ""
                return _refusal(row.error, server.TritonError.INVALID_ARG, where)
        tensors = []
        for name in request.requested_output_names():
            values = [_value(row, name) for row in rows]
            shape = (len(rows), *self._shapes[name])
            tensors.append(server.Tensor(name, np.array(values, self._types[name]).reshape(shape)))
        return server.InferenceResponse(tensors)


def _value(row: Any, name: str) -> Any:
    """One image's part of an output."""
    if name not in RANKED:
        return row.outputs[name]
    values = [getattr(ranked, name) for ranked in row.prediction.top]
    return [value.encode() for value in values] if name == "label" else values


def _refusal(error: Exception, code: int, where: str = "") -> Any:
    text = f"{where}{type(error).__name__}: {error}"
    return server.InferenceResponse(error=server.TritonError(text, code))
