"""The examples do what they say: the service, the camera, the tests for CI, the way to a Jetson."""

from __future__ import annotations

import io
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from tests.support.documents import blocks
from tests.support.modules import module_from
from vit_edge import Predictor
from vit_edge.bundle import Bundle
from vit_edge.cli.verbs import parser_of

requires = ("onnxruntime",)


@pytest.fixture(scope="module")
def examples(repository: Path) -> Path:
    return repository / "examples"


@pytest.fixture(scope="module")
def predictor(embedded_bundle: Bundle) -> Iterator[Predictor]:
    with Predictor(embedded_bundle, "ort") as opened:
        yield opened


@pytest.fixture
def service(examples: Path, predictor: Predictor) -> Any:
    pytest.importorskip("flask")
    return module_from(examples / "app_flask.py").create_app(predictor).test_client()


def test_the_service_answers_a_body_and_a_form(
    service: Any, predictor: Predictor, photos: list[Path]
) -> None:
    encoded = photos[0].read_bytes()
    expected = predictor.predict(encoded, 2).as_dict()
    assert service.post("/predict?top_k=2", data=encoded).get_json() == expected
    form = {"image": (io.BytesIO(encoded), "odd name;.txt")}
    assert service.post("/predict?top_k=2", data=form).get_json() == expected
    assert service.get("/healthz").get_json()["runtime"].startswith("onnxruntime ")


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/predict", b"", 400, "no image"),
        ("/predict", b"GIF89a, or so it says", 400, ""),
        ("/predict", None, 400, "truncated"),
        ("/predict?top_k=0", b"x", 400, "top_k=0"),
        ("/predict?top_k=five", b"x", 400, "top_k=five"),
        ("/predict", bytes((20 << 20) + 1), 413, ""),
        ("/nothing", b"x", 404, ""),
    ],
)
def test_a_bad_request_is_answered_with_the_reason(
    service: Any, photos: list[Path], path: str, body: bytes | None, status: int, message: str
) -> None:
    encoded = photos[0].read_bytes()[:3000] if body is None else body
    answer = service.post(path, data=encoded)
    assert answer.status_code == status
    assert answer.get_json()["error"]
    assert message in answer.get_json()["message"]
    assert service.post("/predict", data=photos[0].read_bytes()).status_code == 200


def test_eight_clients_at_once_get_their_own_answers(
    examples: Path, embedded_bundle: Bundle, predictor: Predictor, photos: list[Path]
) -> None:
    """The script as it is started, in a process of its own, eight requests at a time."""
    pytest.importorskip("flask")
    pytest.importorskip("waitress")
    command = [sys.executable, examples / "app_flask.py", embedded_bundle.path, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as served:
        try:
            assert served.stderr is not None
            address = next(
                found[0] for line in served.stderr if (found := re.search(r"http://\S+", line))
            )
            sent = [path.read_bytes() for path in photos] * 4 + [b"no image"]
            with ThreadPoolExecutor(8) as clients:
                answers = list(clients.map(lambda body: post(f"{address}/predict", body), sent))
        finally:
            served.terminate()
    assert answers[-1] == (400, None)
    for path, (status, label) in zip(photos * 4, answers, strict=False):
        assert (status, label) == (200, predictor.predict(path).label)


def post(url: str, body: bytes) -> tuple[int, str | None]:
    import json

    try:
        with urlopen(Request(url, body, {"Content-Type": "application/octet-stream"})) as answer:
            return answer.status, json.load(answer)["label"]
    except HTTPError as error:
        return error.code, None


@pytest.fixture
def camera(examples: Path) -> ModuleType:
    pytest.importorskip("cv2")
    return module_from(examples / "camera.py")


def test_a_clip_is_classified_frame_by_frame_in_the_right_colours(
    camera: ModuleType,
    embedded_bundle: Bundle,
    predictor: Predictor,
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rgb = np.asarray(Image.open(photos[0]).convert("RGB").resize((320, 240)))
    write_clip(tmp_path / "clip.avi", rgb, frames=4)
    monkeypatch.setattr(
        sys, "argv",
        ["camera.py", str(embedded_bundle.path), "--source", str(tmp_path / "clip.avi")],
    )  # fmt: skip
    camera.main()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert all(line.startswith(predictor.predict(rgb).label) for line in printed[:4])
    assert printed[4].startswith("4 frames, median ")
    capture = camera.cv2.VideoCapture(str(tmp_path / "clip.avi"))
    frame = next(camera.newest_frames(capture, live=False)).rgb.astype(int)
    assert np.abs(frame - rgb).mean() < 6  # of 255: what MJPG costs
    assert np.abs(frame[:, :, ::-1] - rgb).mean() > 12


def write_clip(path: Path, rgb: np.ndarray[Any, Any], frames: int) -> None:
    import cv2

    size = (rgb.shape[1], rgb.shape[0])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, size)
    for _ in range(frames):
        writer.write(rgb[:, :, ::-1])
    writer.release()


def test_a_source_that_cannot_be_opened_is_named(
    camera: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["camera.py", "bundle", "--source", "absent.avi"])
    with pytest.raises(SystemExit) as stopped:
        camera.main()
    assert stopped.value.code == 2
    assert "absent.avi" in capsys.readouterr().err


class Camera:
    """Gives frame 1, 2, 3 ... each time the test allows one; each is as grey as its number."""

    def __init__(self) -> None:
        self.allowed: queue.Queue[bool] = queue.Queue()
        self.read_frames = threading.Semaphore(0)
        self.number = 0

    def read(self) -> tuple[bool, np.ndarray[Any, Any] | None]:
        if self.number:
            self.read_frames.release()  # the one before was handed on
        if not self.allowed.get(timeout=30):
            return False, None
        self.number += 1
        return True, np.full((2, 2, 3), self.number, np.uint8)


def test_frames_that_a_slow_model_had_no_time_for_are_dropped(camera: ModuleType) -> None:
    source = Camera()
    frames = camera.newest_frames(source, live=True)
    seen = []
    for arriving in (1, 50, 1):
        for _ in range(arriving):
            source.allowed.put(True)
        if arriving == 50:
            for _ in range(arriving + 1):
                assert source.read_frames.acquire(timeout=30)
        seen.append(int(next(frames).rgb[0, 0, 0]))
    source.allowed.put(False)
    assert seen == [1, 51, 52]
    assert list(frames) == []


def test_the_tests_for_ci_are_green_and_turn_red(
    examples: Path, embedded_bundle: Bundle, repository: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(embedded_bundle.path, wrong)
    labels = (wrong / "labels.txt").read_text().splitlines()
    assert run_ci(examples, embedded_bundle.path, repository).returncode == 0
    (wrong / "labels.txt").write_text("\n".join(reversed(labels)) + "\n")
    done = run_ci(examples, wrong, repository)
    assert done.returncode == 1, done.stdout
    assert "labels.txt" in done.stdout


def run_ci(examples: Path, bundle: Path, repository: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "vit_edge.parity.pytest_plugin",
            "-p", "no:cacheprovider", examples / "ci", "--rootdir", examples,
        ],
        env={
            **os.environ, "BUNDLE": str(bundle), "PYTHONPATH": str(repository),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_every_command_of_the_way_to_a_jetson_is_one(examples: Path) -> None:
    pytest.importorskip("torch")
    page = (examples / "jetson.md").read_text("utf-8").replace("\\\n", " ")
    commands = [shlex.split(line) for line in re.findall(r"^\$ (vit-edge .+)$", page, re.MULTILINE)]
    assert {words[1] for words in commands} == {
        "export", "doctor", "build", "parity", "bench", "predict",
    }  # fmt: skip
    for _, verb, *arguments in commands:
        parser_of(verb).parse_args(arguments)


def test_the_python_of_the_way_to_a_jetson_runs(
    examples: Path, embedded_bundle: Bundle, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks((examples / "jetson.md").read_text("utf-8"), "python")
    code = code.replace("bundles/base-int8", str(embedded_bundle.path))
    exec(code.replace("cat.jpg", str(photos[0])), {})
    assert capsys.readouterr().out.startswith("onnxruntime ")


def test_every_example_is_in_the_list(examples: Path) -> None:
    listed = set(re.findall(r"\]\(([^.)][^)]*)\)", (examples / "README.md").read_text("utf-8")))
    there = {
        path.relative_to(examples).as_posix()
        for path in examples.rglob("*.*")
        if "__pycache__" not in path.parts and path.name != "README.md"
    }
    assert listed == there
