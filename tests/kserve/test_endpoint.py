"""A model on a server, asked as a backend: what is sent, what is read, what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.altered import altered
from tests.support.kserve_server import Answers, Model, serve
from vit_edge import BackendError, Bundle, UsageError
from vit_edge.backends import ort
from vit_edge.bundle.golden import Golden
from vit_edge.bundle.manifest import Preprocessing
from vit_edge.images.preprocess import input_from_resized, pixels_from_resized, resized_from_source
from vit_edge.kserve.client import RefusedError, address_from_url
from vit_edge.kserve.encode import file_from_resized, resized_from_input
from vit_edge.kserve.endpoint import Endpoint

requires = ("onnxruntime",)


def golden_images(bundle: Bundle, count: int) -> Any:
    with Golden(bundle.golden_path) as golden:
        return golden.images(range(count))


@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("binary", [True, False])
def test_answers_are_those_of_the_runtime_behind_the_server(
    testing_bundle: Bundle, encoded: bool, binary: bool
) -> None:
    pixels = input_from_resized(golden_images(testing_bundle, 3), testing_bundle.manifest)
    expected = ort.load(testing_bundle, threads=1).run(pixels)
    model = Model(testing_bundle, encoded=encoded, binary=binary)
    with serve(model) as url:
        endpoint = Endpoint(testing_bundle, f"{url}/v2/models/m")
        got = endpoint.run(pixels)
        assert endpoint.facts["transfer"] == ("bytes" if binary else "JSON")
        assert endpoint.facts["engine"] == "model m, version 2"
        assert endpoint.encoded is encoded
    assert set(got) == set(expected)
    for name, values in expected.items():
        assert got[name].dtype == np.float32
        assert np.array_equal(got[name], values)


@pytest.mark.parametrize(
    ("url", "text", "model", "version"),
    [
        ("http://h", "http://h:80", None, None),
        ("https://h:8443/", "https://h:8443", None, None),
        ("http://h:1/v2", "http://h:1", None, None),
        ("http://h:1/v2/models/a.b-c", "http://h:1", "a.b-c", None),
        ("http://h:1/v2/models/a%20b/versions/3/infer", "http://h:1", "a b", "3"),
        ("http://[::1]:8000/v2/models/a/", "http://[::1]:8000", "a", None),
    ],
)
def test_an_address_is_read(url: str, text: str, model: str | None, version: str | None) -> None:
    address = address_from_url(url)
    assert (address.text, address.model, address.version) == (text, model, version)


@pytest.mark.parametrize(
    "url",
    ["", "h:8000", "ftp://h", "http://", "http://h:0", "http://h:99999", "http://h:x",
     "http://h/v1/models/a", "http://h/v2/models", "http://h/v2?x=1", "http://u:p@h", "grpc://h:1",
     "http://h/v2/models/a/b", "http://[::1"],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="expected http://HOST:PORT"):
        address_from_url(url)


def test_the_model_is_the_bundles_namesake_or_the_only_one(
    bundle: Bundle, testing_bundle: Bundle
) -> None:
    with serve(Model(bundle, name="other"), Model(bundle, name="bundle")) as url:
        assert Endpoint(bundle, url).url == f"{url}/v2/models/bundle"
        with pytest.raises(BackendError, match=r"no model .*; it has bundle, other\. Name one"):
            Endpoint(testing_bundle, url)
    with serve(Model(bundle, name="single")) as url:
        assert Endpoint(bundle, url).url == f"{url}/v2/models/single"
    silent = Model(bundle, name="x", reply={"/v2/repository/index": (404, b"")})
    with serve(silent) as url, pytest.raises(BackendError, match="names none of its own"):
        Endpoint(bundle, url)


def test_a_smaller_batch_of_the_server_is_kept(testing_bundle: Bundle) -> None:
    with serve(Model(testing_bundle, max_batch=2)) as url:
        assert Endpoint(testing_bundle, url).max_batch == 2
    shape = [1, *testing_bundle.manifest.input.shape[1:]]
    fixed = {"inputs": [{"name": "pixel_values", "datatype": "FP32", "shape": shape}]}
    with serve(Model(testing_bundle, encoded=False, metadata=fixed, max_batch=0)) as url:
        assert Endpoint(testing_bundle, url).max_batch == 1


def image(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1, 1], **changes}]}


def output(classes: int) -> dict[str, Any]:
    return {"name": "logits", "datatype": "FP32", "shape": [-1, classes]}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"inputs": []}, "expected one input, the server names none"),
        ({"inputs": None}, "declare it in the server's settings"),
        ({"inputs": image()["inputs"] + image(name="b")["inputs"]}, "names image, b"),
        (image(datatype="FP32"), r"input image is FP32 \[-1, 1\], the bundle's is FP32 \[-1, 3,"),
        (image(datatype="UINT8", shape=[-1, 3, 64, 64]), "input image is UINT8"),
        (image(datatype="FP32", shape=[-1, 3, 32, 32]), "exported otherwise"),
        (image(shape=[-1, 2]), "input image is BYTES"),
        (image(shape=[]), "input image is BYTES"),
        (image(shape=None), "the server's inputs cannot be read"),
        (image(shape=["n"]), "cannot be read"),
        ({"inputs": [{"name": "image"}]}, "cannot be read"),
        ({"inputs": ["image"]}, "cannot be read"),
        ({"outputs": []}, "no output logits, only none; no output features"),
        ({"outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]}, "no output fea"),
        (
            {"outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 7]}]},
            r"\[-1, 7\], not",
        ),
    ],
)
def test_another_model_is_refused(
    testing_bundle: Bundle, metadata: dict[str, Any], message: str
) -> None:
    model = Model(testing_bundle, metadata=metadata)
    with serve(model) as url, pytest.raises(BackendError, match=message):
        Endpoint(testing_bundle, f"{url}/v2/models/m")


@pytest.mark.parametrize(
    ("path", "status", "body", "message"),
    [
        ("/v2", 200, b"<html>", "no JSON came back, but b'<html>'"),
        ("/v2", 200, b"[]", "expected a JSON object"),
        ("/v2", 200, b"[" * 100_000, "no JSON came back"),
        ("/v2", 404, b"", "HTTP 404: Not Found"),
        ("/v2", 401, b'{"error": "who are you?"}', "HTTP 401: who are you?"),
        ("/v2", 422, b'{"detail": [{"msg": "x"}]}', "HTTP 422: .*msg"),
        ("/v2", 302, b"", "HTTP 302: the server is at http://elsewhere/"),
        ("/v2", 500, b"\xff" * 1000, r"HTTP 500: .{300}\.\.\."),
        ("/v2/models/m", 400, b'{"error": "not ready"}', "HTTP 400: not ready"),
    ],
)
def test_what_a_server_says_instead_is_told(
    testing_bundle: Bundle, path: str, status: int, body: bytes, message: str
) -> None:
    model = Model(testing_bundle, reply={path: (status, body)})
    with serve(model) as url, pytest.raises(BackendError, match=message):
        Endpoint(testing_bundle, f"{url}/v2/models/m")


def reply(*outputs: dict[str, Any]) -> bytes:
    return json.dumps({"outputs": list(outputs)}).encode()


LOGITS = {"name": "logits", "datatype": "FP32", "shape": [1, 10], "data": [0.0] * 10}
FEATURES = {"name": "features", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{}", "the answer has no outputs"),
        (b"nonsense", "no JSON"),
        (reply(LOGITS), "the answer lacks features"),
        (reply(LOGITS | {"datatype": "BYTES"}, FEATURES), "output logits is BYTES, not FP32"),
        (reply(LOGITS | {"shape": [1, 9]}, FEATURES), "an output cannot be read"),
        (reply(LOGITS | {"data": ["x"] * 10}, FEATURES), "an output cannot be read"),
        (reply(LOGITS | {"shape": [10]}, FEATURES), r"logits is \[10\], not \[1, 10\]"),
        (reply(LOGITS | {"parameters": {"binary_data_size": 40}}, FEATURES), "cannot be read"),
        (reply(LOGITS | {"parameters": {"binary_data_size": "x"}}, FEATURES), "cannot be read"),
        (reply({"name": "logits"}), "an output cannot be read"),
        (reply("logits"), "an output cannot be read"),  # type: ignore[arg-type]
    ],
)
def test_an_answer_that_is_none_is_refused(
    testing_bundle: Bundle, body: bytes, message: str
) -> None:
    pixels = input_from_resized(golden_images(testing_bundle, 1), testing_bundle.manifest)
    with serve(Model(testing_bundle, reply={"/v2/models/m/infer": (200, body)})) as url:
        endpoint = Endpoint(testing_bundle, f"{url}/v2/models/m")
        with pytest.raises(BackendError, match=message):
            endpoint.run(pixels)


WRONG: tuple[Any, ...] = (None, True, -1, 10**400, 1.5, "x", [], [[]], {}, {"a": 1})


@pytest.mark.parametrize(
    "path", ["/v2", "/v2/models/m", "/v2/models/m/config", "/v2/models/m/infer"]
)
def test_whatever_a_server_says_is_an_answer_or_an_error_of_ours(
    testing_bundle: Bundle, path: str
) -> None:
    model = Model(testing_bundle, max_batch=4)
    pixels = input_from_resized(golden_images(testing_bundle, 1), testing_bundle.manifest)
    said: dict[str, Any] = {
        "/v2": {"name": "s", "version": "1", "extensions": ["binary_tensor_data"]},
        "/v2/models/m": model.about(),
        "/v2/models/m/config": {"max_batch_size": 4},
        "/v2/models/m/infer": {"outputs": [LOGITS | {"parameters": {"a": 1}}, FEATURES]},
    }
    with serve(model) as url:
        for wrong in WRONG:
            for whole in (*altered(said[path], wrong), wrong):
                model.reply = {path: (200, json.dumps(whole).encode())}
                with contextlib.suppress(BackendError):
                    Endpoint(testing_bundle, f"{url}/v2/models/m").run(pixels)
    assert model.requests or path.endswith("infer")  # some of it is an answer


def test_a_refusal_of_the_server_comes_with_its_message(testing_bundle: Bundle) -> None:
    def refuse(answers: Answers) -> Answers:
        raise ValueError("out of cheese")

    pixels = input_from_resized(golden_images(testing_bundle, 1), testing_bundle.manifest)
    with serve(Model(testing_bundle, spoil=refuse)) as url:
        endpoint = Endpoint(testing_bundle, f"{url}/v2/models/m")
        with pytest.raises(RefusedError, match="HTTP 400: ValueError: out of cheese") as caught:
            endpoint.run(pixels)
    assert caught.value.status == 400
    assert pickle.loads(pickle.dumps(caught.value)).status == 400  # a child hands it to its parent


def test_where_nobody_answers_that_is_said(testing_bundle: Bundle) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(BackendError, match=r"no answer: .*Does the server run"):
        Endpoint(testing_bundle, f"http://127.0.0.1:{port}")
    with pytest.raises(BackendError, match="no answer"):
        Endpoint(testing_bundle, "http://no-such-host.invalid:8000")


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Le"])
def test_what_speaks_no_http_is_no_server(testing_bundle: Bundle, said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def talk() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(said)

        thread = threading.Thread(target=talk)
        thread.start()
        with pytest.raises(BackendError, match=r"no answer|no JSON"):
            Endpoint(testing_bundle, f"http://127.0.0.1:{listening.getsockname()[1]}")
        thread.join()


STEPS = st.builds(
    Preprocessing,
    resize=st.sampled_from(["squash", "cover"]),
    resize_hw=st.tuples(st.integers(20, 33), st.integers(20, 33)),
    crop_hw=st.tuples(st.integers(12, 20), st.integers(12, 20)),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
    mean=st.tuples(*[st.floats(0.0, 1.0)] * 3),
    std=st.tuples(*[st.floats(0.1, 1.0)] * 3),
    crop_rounding=st.sampled_from(["even", "down"]),
)


@settings(max_examples=60)
@given(STEPS, st.integers(0, 2**32 - 1))
def test_a_file_is_found_for_any_pixels_and_any_preprocessing(
    steps: Preprocessing, seed: int
) -> None:
    resized = np.random.default_rng(seed).integers(0, 256, (*steps.crop_hw, 3), np.uint8)
    file = file_from_resized(resized, steps)
    assert np.array_equal(resized_from_source(file, steps), resized)


@settings(max_examples=60)
@given(STEPS, st.integers(0, 2**32 - 1), st.booleans())
def test_pixels_are_turned_back_into_the_image_that_they_are_of(
    testing_bundle: Bundle, steps: Preprocessing, seed: int, divided_twice: bool
) -> None:
    steps = dataclasses.replace(steps, divided_twice=divided_twice)
    manifest = dataclasses.replace(testing_bundle.manifest, preprocessing=steps)
    images = np.random.default_rng(seed).integers(0, 256, (2, *steps.crop_hw, 3), np.uint8)
    assert np.array_equal(resized_from_input(pixels_from_resized(images, steps), manifest), images)
    assert np.array_equal(resized_from_input(images, manifest), images)


def test_pixels_of_no_image_are_refused(testing_bundle: Bundle, tmp_path: Path) -> None:
    pixels = input_from_resized(golden_images(testing_bundle, 1), testing_bundle.manifest)
    for wrong in (pixels + np.float32(1e-3), pixels * np.float32(np.nan), pixels + 100):
        with pytest.raises(BackendError, match="no image's"):
            resized_from_input(wrong, testing_bundle.manifest)
