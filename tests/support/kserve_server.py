"""A small server of KServe's protocol, version 2, that a test can make say anything."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_edge import Bundle
from vit_edge.backends import Backend, ort
from vit_edge.images.preprocess import input_from_resized, resized_from_source

Answers = dict[str, NDArray[np.float32]]
LENGTH = "Inference-Header-Content-Length"


@dataclass
class Model:
    """What is served, and what is wrong with it.

    Attributes:
        bundle: Whose answers are given.
        name: Of the model.
        encoded: It takes image files, not the model's tensor.
        binary: It speaks the extension of tensors as bytes.
        max_batch: As Triton's configuration tells it; None: it has no configurations.
        metadata: Changes what is said of the model.
        spoil: Changes answers.
        resized: Makes pixels of files.
        reply: Replaces whole replies: path -> status and body.
        requests: The batch sizes that were asked.
    """

    bundle: Bundle
    name: str = "m"
    encoded: bool = True
    binary: bool = True
    max_batch: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    spoil: Callable[[Answers], Answers] = lambda answers: answers
    resized: Callable[..., NDArray[np.uint8]] = resized_from_source
    reply: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    requests: list[int] = field(default_factory=list)

    @functools.cached_property
    def _backend(self) -> Backend:
        return ort.load(self.bundle, threads=1)

    def about(self) -> dict[str, Any]:
        tensor = self.bundle.manifest.input
        given = {"name": "image", "datatype": "BYTES", "shape": [-1, 1]}
        if not self.encoded:
            kind = {"float32": "FP32", "uint8": "UINT8"}[tensor.dtype]
            given = {"name": tensor.name, "datatype": kind, "shape": [-1, *tensor.shape[1:]]}
        outputs = [
            {"name": one.name, "datatype": "FP32", "shape": [-1, *one.shape[1:]]}
            for one in self.bundle.manifest.outputs
        ]
        about = {"name": self.name, "versions": ["1", "2"], "platform": "test"}
        return {**about, "inputs": [given], "outputs": outputs, **self.metadata}

    def answer(self, given: dict[str, Any], data: bytes) -> Answers:
        manifest = self.bundle.manifest
        if self.encoded:
            files = list(_files(given, data))
            images = [self.resized(file, manifest.preprocessing) for file in files]
            pixels = input_from_resized(np.stack(images), manifest)
        else:
            kind = np.dtype(manifest.input.dtype)
            values = np.frombuffer(data, kind) if data else np.array(given["data"], kind)
            pixels = values.reshape(given["shape"])
        self.requests.append(len(pixels))
        if self.max_batch is not None and len(pixels) > self.max_batch:
            raise ValueError(f"batch-size must be <= {self.max_batch}")
        return self.spoil(self._backend.run(pixels))


def _files(given: dict[str, Any], data: bytes) -> Iterator[bytes]:
    if "data" in given:
        assert given["parameters"] == {"content_type": "base64"}
        yield from (base64.b64decode(text) for text in given["data"])
        return
    assert given["parameters"] == {"binary_data_size": len(data)}
    while data:
        (length,) = struct.unpack("<I", data[:4])
        yield data[4 : 4 + length]
        data = data[4 + length :]


@contextlib.contextmanager
def serve(*models: Model) -> Iterator[str]:
    """Serve models; gives the address."""
    handler = type("Handler", (_Handler,), {"models": {model.name: model for model in models}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    models: dict[str, Model]

    def do_GET(self) -> None:
        first = next(iter(self.models.values()))
        if self._replaced():
            return
        if self.path == "/v2":
            extensions = ["binary_tensor_data"] * first.binary
            extensions += ["model_configuration"] * (first.max_batch is not None)
            self._send(200, {"name": "stand-in", "version": "1.0", "extensions": extensions})
        elif (model := self._model()) is None:
            self._send(404, {"error": "unknown model"})
        elif self.path.endswith("/config"):
            self._send(200, {"max_batch_size": model.max_batch})
        else:
            self._send(200, model.about())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._replaced():
            return
        model = self._model()
        if self.path == "/v2/repository/index":
            self._send(200, [{"name": name} for name in self.models])
            return
        assert model is not None
        end = int(self.headers.get(LENGTH, len(body)))
        request = json.loads(body[:end])
        try:
            answers = model.answer(request["inputs"][0], body[end:])
        except Exception as error:
            self._send(400, {"error": f"{type(error).__name__}: {error}"})
            return
        outputs, data = [], b""
        for name, values in answers.items():
            entry = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
            if model.binary:
                part = values.astype("<f4").tobytes()
                outputs.append({**entry, "parameters": {"binary_data_size": len(part)}})
                data += part
            else:
                outputs.append({**entry, "data": values.ravel().tolist()})
        self._send(200, {"model_name": model.name, "outputs": outputs}, data)

    def _model(self) -> Model | None:
        parts = self.path.split("/")
        return self.models.get(parts[3]) if len(parts) > 3 else None

    def _replaced(self) -> bool:
        for model in self.models.values():
            if self.path in model.reply:
                status, body = model.reply[self.path]
                self.send_response(status)
                self.send_header("Location", "http://elsewhere/")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return True
        return False

    def _send(self, status: int, content: Any, data: bytes = b"") -> None:
        head = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(head) + len(data)))
        if data:
            self.send_header(LENGTH, str(len(head)))
        self.end_headers()
        self.wfile.write(head + data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
