"""The servers of docs/serving.md answer; test_commands_of_the_docs.py parses its commands."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import vit_edge
from tests.support.documents import BLOCK, blocks
from vit_edge import Bundle, Predictor

requires = ("onnxruntime",)

_STARTING_S = 180.0


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "serving.md").read_text("utf-8")


def test_every_language_of_the_page_has_a_test_or_says_that_it_was_not_run(page: str) -> None:
    assert {found for found, _ in BLOCK.findall(page)} == {"console", "python", "json", "text"}
    (sketch,) = blocks(page, "text")
    assert "**not run**" in page.partition(sketch)[0].rpartition("\n\n```")[0].rpartition("\n\n")[2]
    assert len(blocks(page, "python")) == 2


def test_the_tensors_of_the_page_are_the_bundles(page: str, embedded_bundle: Bundle) -> None:
    """MLServer's settings name the outputs of the bundle that the page serves."""
    (described,) = blocks(page, "json")
    outputs = {one["name"]: one["shape"] for one in json.loads(described)["outputs"]}
    del outputs["label"]
    assert outputs == {
        tensor.name: [-1, *tensor.shape[1:]] for tensor in embedded_bundle.manifest.outputs
    }


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def ask(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()


@contextlib.contextmanager
def started(command: list[str], folder: Path, port: int, ready: str) -> Iterator[None]:
    """A server in a process of its own, from when it is ready."""
    log = folder / "server.log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    with log.open("wb") as written:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=written, stderr=written
        )
    try:
        until = time.monotonic() + _STARTING_S
        while True:
            with contextlib.suppress(OSError):
                if ask(port, "GET", ready)[0] == 200:
                    break
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"{command[0]} does not answer:\n{log.read_text()[-4000:]}")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_mlserver_answers_as_the_bundle_does(
    page: str, embedded_bundle: Bundle, tmp_path: Path
) -> None:
    if not find_spec("mlserver"):
        pytest.skip("needs mlserver")
    (tmp_path / "served.py").write_text(blocks(page, "python")[1])
    described = blocks(page, "json")[0].replace("bundles/cifar10", str(embedded_bundle.path))
    (tmp_path / "model-settings.json").write_text(described)
    port = free_port()
    settings = {
        "host": "127.0.0.1", "http_port": port, "grpc_port": free_port(),
        "metrics_port": free_port(), "parallel_workers": 0,
    }  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    command = [str(Path(sys.executable).with_name("mlserver")), "start", str(tmp_path)]
    with started(command, tmp_path, port, "/v2/models/cifar10/ready"):
        (run,) = vit_edge.parity(
            embedded_bundle, against_url=f"http://127.0.0.1:{port}/v2/models/cifar10"
        ).runs
        assert (run.verdict, run.problems) == ("pass", ())
        assert run.facts["transfer"] == "JSON"
        bad = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": ["bm90aGluZw=="]}
        status, content = ask(
            port, "POST", "/v2/models/cifar10/infer", json.dumps({"inputs": [bad]}).encode()
        )
        assert (status, b"not an image" in content) == (400, True)


@pytest.mark.slow
def test_ray_serve_answers_as_the_predictor_does(
    page: str, embedded_bundle: Bundle, photos: list[Path], tmp_path: Path
) -> None:
    if not all(find_spec(name) for name in ("ray", "starlette", "uvicorn")):
        pytest.skip("needs ray[serve]")
    code = blocks(page, "python")[0].replace("bundles/cifar10", str(embedded_bundle.path))
    port = free_port()
    (tmp_path / "served.py").write_text(code)
    run = f"""
        import time
        import ray
        from ray import serve

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        serve.start(http_options={{"host": "127.0.0.1", "port": {port}}})
        from served import app

        serve.run(app)
        time.sleep(600)
    """
    (tmp_path / "run.py").write_text(textwrap.dedent(run))
    with started([sys.executable, "run.py"], tmp_path, port, "/-/healthz"):
        with Predictor(embedded_bundle, threads=1) as predictor:
            expected = predictor.predict_batch(photos[:3])
        for photo, wanted in zip(photos[:3], expected, strict=True):
            status, content = ask(port, "POST", "/", photo.read_bytes())
            answer = json.loads(content)
            assert (status, answer["label"]) == (200, wanted.label)
            assert answer["score"] == pytest.approx(wanted.score, rel=1e-6)
        status, content = ask(port, "POST", "/", b"nothing")
        assert (status, b"not an image" in content) == (400, True)
