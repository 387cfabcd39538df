"""A real tritonserver on repositories of ours."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving as serving_benchmark
from numpy.typing import NDArray
from PIL import Image

import vit_edge
from tests.support import tritonserver
from tests.support.tritonserver import Server, serving
from vit_edge import BackendError, Bundle, Predictor
from vit_edge.triton.config import Serving, config_from_bundle
from vit_edge.triton.repository import triton
from vit_edge.triton.text import text_from_message

requires = ("onnxruntime", "pytriton", "tritonclient")

PHOTOS = 64
OTHERS = {
    "onnxruntime": Serving("onnxruntime", 2, 500, 1, 5, 4),
    "openvino": Serving("openvino", 2, 500, 3, 5, 4),
    "tensorrt": Serving("tensorrt", 2, 0, None, 5, 4, profiles=2),
}

# Triton's ONNX Runtime is in no registry: the same files, run by its Python backend.
STAND_IN = """
import json
from pathlib import Path

import onnxruntime
import triton_python_backend_utils as utils


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        (file,) = folder.glob("*.onnx")
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        config = json.loads(args["model_config"])
        self.inputs = [one["name"] for one in config["input"]]
        self.outputs = [one["name"] for one in config["output"]]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensors = [utils.get_input_tensor_by_name(request, name) for name in self.inputs]
        given = {name: one.as_numpy() for name, one in zip(self.inputs, tensors)}
        made = self.session.run(self.outputs, given)
        return utils.InferenceResponse([utils.Tensor(*one) for one in zip(self.outputs, made)])
"""


def stand_in(repository: Path) -> None:
    """Let the Python backend run what ONNX Runtime's would."""
    for path in repository.glob("*/config.pbtxt"):
        text = path.read_text()
        if 'backend: "onnxruntime"' in text:
            text = text.replace('backend: "onnxruntime"', 'backend: "python"')
            path.write_text(re.sub(r'(default_model_filename: )".*"', r'\1"model.py"', text))
            (path.parent / "1" / "model.py").write_text(STAND_IN)


@pytest.fixture(scope="module")
def repositories(
    embedded_bundle: Bundle, testing_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Models that run, one that waits for company, two versions, and configs of other backends."""
    if tritonserver.folder() is None:
        pytest.skip("nvidia-pytriton has no Python backend for this Python")
    folder = tmp_path_factory.mktemp("repositories")
    triton(embedded_bundle, out=folder / "a", names=["cifar10"])
    triton(testing_bundle, out=folder / "b", names=["patient"], queue_us=2_000_000, threads=1)
    both = [testing_bundle, testing_bundle]
    triton(both, out=folder / "c", names=["versions"] * 2, instances=2, top_k=1)
    for name, served in OTHERS.items():
        model = folder / "d" / name
        (model / "1").mkdir(parents=True)
        config = config_from_bundle(name, testing_bundle, served, versions=2)
        (model / "config.pbtxt").write_text(text_from_message(config))
    shutil.copytree(folder / "d/onnxruntime", folder / "d/wrong")
    text = (folder / "d/wrong/config.pbtxt").read_text()
    (folder / "d/wrong/config.pbtxt").write_text(text.replace("data_type:", "datatype:"))
    triton(embedded_bundle, out=folder / "e", names=["chain"], backend="onnxruntime", ensemble=True)
    stand_in(folder / "e")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def server(repositories: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), *repositories) as running:
        yield running


@pytest.fixture(scope="module")
def images(photos: list[Path]) -> list[bytes]:
    """64 photos: parts of those in the package."""
    encoded = []
    for number in range(PHOTOS):
        with Image.open(photos[number % len(photos)]) as photo:
            width, height = photo.size
            left, top = number * width // (3 * PHOTOS), number * height // (3 * PHOTOS)
            part = photo.convert("RGB").crop((left, top, left + width // 2, top + height // 2))
        buffer = io.BytesIO()
        part.save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


def infer(server: Server, model: str, images: list[bytes], *outputs: str) -> tuple[int, Any]:
    """Send encoded images as Triton's clients do: JSON, and the bytes behind it."""
    data = b"".join(struct.pack("<I", len(image)) + image for image in images)
    parameters = {"binary_data_size": len(data)}
    request = {
        "inputs": [
            {"name": "image", "shape": [len(images), 1], "datatype": "BYTES",
             "parameters": parameters}
        ],
        "outputs": [{"name": output} for output in outputs],
    }  # fmt: skip
    head = json.dumps(request).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return server.ask("POST", f"/v2/models/{model}/infer", head + data, headers)


def tensors(answer: Any) -> dict[str, NDArray[Any]]:
    return {
        one["name"]: np.array(
            one["data"], np.float32 if one["datatype"] == "FP32" else None
        ).reshape(one["shape"])
        for one in answer["outputs"]
    }


def test_answers_are_those_of_the_predictor(
    server: Server, embedded_bundle: Bundle, images: list[bytes]
) -> None:
    outputs = ("logits", "features", "label", "index", "score")
    with Predictor(embedded_bundle) as predictor:
        expected = list(predictor.run(images, ("top", "logits", "features"), batch_size=8))
    for start in range(0, PHOTOS, 8):
        status, answer = infer(server, "cifar10", images[start : start + 8], *outputs)
        assert status == 200, answer
        got = tensors(answer)
        for row, wanted in enumerate(expected[start : start + 8]):
            for name in ("logits", "features"):
                assert np.abs(got[name][row] - wanted.outputs[name]).max() == 0
            assert wanted.prediction is not None
            top = wanted.prediction.top
            assert got["label"][row].tolist() == [ranked.label for ranked in top]
            assert got["index"][row].tolist() == [ranked.index for ranked in top]
            assert got["score"][row].tolist() == [np.float32(ranked.score) for ranked in top]


def test_a_bad_image_is_a_400_of_its_own_request(server: Server, images: list[bytes]) -> None:
    """The requests wait two seconds for company: those of four clients are one batch."""
    sent = [images[0][:200] if client == 3 else images[client] for client in range(4)]
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda image: infer(server, "patient", [image], "logits"), sent))
    assert [status for status, _ in answers] == [200, 200, 200, 400]
    assert answers[3][1]["error"].startswith("ImageDecodeError: <bytes, 200 B>: cannot be decoded")
    _, found = server.ask("GET", "/v2/models/patient/stats")
    batches = found["model_stats"][0]["batch_stats"]
    (fours,) = [one["compute_infer"]["count"] for one in batches if one["batch_size"] == 4]
    assert fours == 2  # the warm-up's, and ours
    status, answer = infer(server, "patient", [images[0], b""], "logits")
    assert (status, answer["error"].partition(":")[0]) == (400, "image 2 of 2")


def test_every_version_is_served(server: Server, images: list[bytes]) -> None:
    _, about = server.ask("GET", "/v2/models/versions")
    assert about["versions"] == ["1", "2"]
    for version in about["versions"]:
        status, answer = infer(server, f"versions/versions/{version}", images[:2], "label")
        assert (status, answer["model_version"]) == (200, version)
        assert tensors(answer)["label"].shape == (2, 1)


def test_an_ensemble_takes_images_of_any_size(
    server: Server, embedded_bundle: Bundle, images: list[bytes]
) -> None:
    with Predictor(embedded_bundle) as predictor:
        expected = list(predictor.run(images[:6], ("logits",)))
    sizes = set()
    for encoded, wanted in zip(images[:6], expected, strict=True):
        with Image.open(io.BytesIO(encoded)) as opened:
            image = np.asarray(opened.convert("RGB"))
        sizes.add(image.shape)
        parameters = {"binary_data_size": image.nbytes}
        given = {
            "name": "image",
            "shape": image.shape,
            "datatype": "UINT8",
            "parameters": parameters,
        }
        head = json.dumps({"inputs": [given], "outputs": [{"name": "logits"}]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        path = "/v2/models/chain_ensemble/infer"
        status, answer = server.ask("POST", path, head + image.tobytes(), headers)
        assert status == 200, answer
        got = tensors(answer)["logits"]
        assert got.shape == (1, 10)
        np.testing.assert_allclose(got[0], wanted.outputs["logits"], rtol=1e-4, atol=1e-4)
    assert len(sizes) > 1


def test_metadata_is_what_the_repository_says(server: Server) -> None:
    _, about = server.ask("GET", "/v2/models/cifar10")
    assert about["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}]
    assert {one["name"]: one["shape"] for one in about["outputs"]} == {
        "logits": [-1, 10], "features": [-1, 192], "label": [-1, 5], "index": [-1, 5],
        "score": [-1, 5],
    }  # fmt: skip


def test_parity_holds_and_another_models_golden_answers_are_refused(
    server: Server, embedded_bundle: Bundle, testing_bundle: Bundle
) -> None:
    url = f"{server.url}/v2/models/cifar10"
    (run,) = vit_edge.parity(embedded_bundle, against_url=url).runs
    assert (run.verdict, run.problems) == ("pass", ())
    assert run.facts["runtime"].startswith("triton ")
    assert run.facts["transfer"] == "bytes"
    assert "9 probe files, sent whole" in run.checks[0].detail
    with pytest.raises(BackendError, match="another model than the bundle's: features is"):
        vit_edge.parity(testing_bundle, against_url=url)
    with pytest.raises(BackendError, match="unknown model: 'onnxruntime' has no available"):
        vit_edge.parity(testing_bundle, against_url=f"{server.url}/v2/models/onnxruntime")


def test_the_benchmark_runs(
    server: Server, embedded_bundle: Bundle, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--bundle", str(embedded_bundle.path), "--photos", str(photos[0].parent)]
    url = f"{server.url}/v2/models/cifar10"
    assert serving_benchmark.main([*words, "--url", url, "--count", "8", "--rounds", "1"]) == 0
    assert "Triton, 8 clients: " in capsys.readouterr().out


def test_the_server_reads_configurations_of_backends_that_it_lacks(server: Server) -> None:
    _, index = server.ask("POST", "/v2/repository/index")
    reasons = {model["name"]: model.get("reason", "") for model in index}
    for name in OTHERS:
        assert f"unable to find backend library for backend '{name}'" in reasons[name]
    log = server.log.read_text(errors="replace")  # a config that is none is refused otherwise
    assert "failed to read text proto from" in log
    assert log.count("failed to read text proto from") == 1


def test_configurations_are_messages_of_tritons_schema(repositories: list[Path]) -> None:
    text_format = pytest.importorskip("google.protobuf.text_format")
    from tritonclient.grpc import model_config_pb2 as schema

    read = {}
    for folder in repositories:
        for path in folder.glob("*/config.pbtxt"):
            if path.parent.name != "wrong":
                read[path.parent.name] = text_format.Parse(path.read_text(), schema.ModelConfig())
    chain = {"chain", "chain_preprocess", "chain_ensemble"}
    assert set(read) == {"cifar10", "patient", "versions", *chain, *OTHERS}
    steps = read["chain_ensemble"].ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["chain_preprocess", "chain"]
    for name, message in read.items():
        assert message.name == name
    cifar10 = read["cifar10"]
    assert (cifar10.backend, cifar10.max_batch_size) == ("python", 32)
    assert (cifar10.input[0].data_type, list(cifar10.input[0].dims)) == (schema.TYPE_STRING, [1])
    assert [warmup.batch_size for warmup in cifar10.model_warmup] == [1, 32]
    plan = read["tensorrt"]
    assert plan.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert list(plan.instance_group[0].profile) == ["0", "1"]
    assert read["openvino"].parameters["INFERENCE_NUM_THREADS"].string_value == "6"
    assert (read["openvino"].max_batch_size, read["openvino"].input[0].dims[0]) == (0, -1)
    ort = read["onnxruntime"]
    assert ort.dynamic_batching.max_queue_delay_microseconds == 500
    assert ort.parameters["intra_op_thread_count"].string_value == "1"
    assert ort.version_policy.WhichOneof("policy_choice") == "all"
    assert ort.output[0].label_filename == "labels.txt"
