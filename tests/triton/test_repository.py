"""A bundle becomes a model repository: what is in it, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vit_edge
from tests.support.bundles import TESTING, Exporter
from vit_edge import BackendError, Bundle, BundleError, IntegrityError, Predictor, UsageError, cli
from vit_edge.bundle.bundle import write_manifest
from vit_edge.bundle.golden import Golden
from vit_edge.images.preprocess import input_from_resized
from vit_edge.triton.config import Serving, config_from_bundle
from vit_edge.triton.repository import triton
from vit_edge.triton.text import Word, text_from_message

requires = ("onnxruntime",)


def altered(bundle: Bundle, folder: Path, **changes: Any) -> Bundle:
    """A copy of a bundle whose manifest says something else."""
    shutil.copytree(bundle.path, folder)
    write_manifest(folder, dataclasses.replace(bundle.manifest, **changes))
    return Bundle.read(folder)


def config(path: Path) -> str:
    return (path / "config.pbtxt").read_text(encoding="utf-8")


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_the_python_backend_gets_the_bundle_and_takes_encoded_images(
    embedded_bundle: Bundle, tmp_path: Path
) -> None:
    written = triton(embedded_bundle, out=tmp_path / "models", names=["cifar10"], instances=1)
    (model,) = written.models
    folder = tmp_path / "models" / "cifar10"
    assert files(folder) == {
        "config.pbtxt", "labels.txt", "warmup/probe", "1/model.py", "1/bundle/manifest.json",
        *(f"1/bundle/{name}" for name in embedded_bundle.manifest.files),
    }  # fmt: skip
    assert model.inputs == {"image": "STRING [1]"}
    assert model.outputs == {
        "logits": "FP32 [10]", "features": "FP32 [192]", "label": "STRING [5]",
        "index": "INT32 [5]", "score": "FP32 [5]",
    }  # fmt: skip
    text = config(folder)
    for line in (
        'backend: "python"', "max_batch_size: 32", "max_queue_delay_microseconds: 2000", "count: 1",
        "kind: KIND_CPU", 'label_filename: "labels.txt"', 'name: "batch of 32"',
    ):  # fmt: skip
        assert line in text
    assert '"threads"' not in text  # one instance takes all that the server has
    assert (folder / "labels.txt").read_text() == "\n".join(embedded_bundle.labels) + "\n"
    length, encoded = (
        struct.unpack("<I", (raw := (folder / "warmup/probe").read_bytes())[:4]),
        raw[4:],
    )
    with Golden(embedded_bundle.golden_path) as golden:
        assert (length[0], encoded) == (len(encoded), golden.probes()[0].data)
    with Predictor(folder / "1/bundle") as predictor:  # it is a bundle of its own
        assert predictor.labels == embedded_bundle.labels


@pytest.mark.parametrize(
    ("backend", "batch", "dims", "batching"),
    [
        ("onnxruntime", 4, [3, 64, 64], True),
        ("openvino", 0, [-1, 3, 64, 64], False),  # it would pad every batch to the largest
    ],
)
def test_a_runtime_gets_the_graph_and_takes_its_tensor(
    testing_bundle: Bundle,
    tmp_path: Path,
    backend: str,
    batch: int,
    dims: list[int],
    batching: bool,
) -> None:
    written = triton([testing_bundle.path], out=tmp_path / "models", names=["m"], backend=backend)
    folder = tmp_path / "models" / "m"
    assert files(folder) == {"config.pbtxt", "labels.txt", "warmup/probe", "1/model.onnx"}
    assert (folder / "1/model.onnx").read_bytes() == testing_bundle.model_path.read_bytes()
    text = config(folder)
    assert f"max_batch_size: {batch}\n" in text
    assert f"dims: [ {', '.join(map(str, dims))} ]" in text
    assert 'default_model_filename: "model.onnx"' in text
    assert ("dynamic_batching" in text) is batching
    notes = " ".join(written.notes)
    assert "resizing images is the client's job" in notes
    assert "--input uint8" in notes
    with Golden(testing_bundle.golden_path) as golden:
        pixels = input_from_resized(golden.probes()[0].resized[None], testing_bundle.manifest)
    assert (folder / "warmup/probe").read_bytes() == pixels.tobytes()


def test_an_ensemble_has_the_preprocessing_in_front(testing_bundle: Bundle, tmp_path: Path) -> None:
    written = triton(
        testing_bundle, out=tmp_path / "models", names=["m"], backend="ort", instances=2, threads=1,
        ensemble=True,
    )  # fmt: skip
    assert files(tmp_path / "models") == {
        "m/config.pbtxt", "m/labels.txt", "m/warmup/probe", "m/1/model.onnx",
        "m_preprocess/config.pbtxt", "m_preprocess/1/preprocess.onnx",
        "m_ensemble/config.pbtxt", "m_ensemble/labels.txt",
    }  # fmt: skip
    assert (tmp_path / "models/m_ensemble/1").is_dir()  # Triton wants a version of an ensemble, too
    preprocess, both = (
        config(tmp_path / "models" / f"m_{what}") for what in ("preprocess", "ensemble")
    )
    assert "dims: [ -1, -1, 3 ]" in preprocess
    assert "dims: [ 1, 3, 64, 64 ]" in preprocess
    assert "count: 2" in preprocess
    assert 'platform: "ensemble"' in both
    assert both.index('model_name: "m_preprocess"') < both.index('model_name: "m"')
    assert 'label_filename: "labels.txt"' in both
    assert "uint8[height, width, 3]" in " ".join(written.notes)
    triton(testing_bundle, out=tmp_path / "models", names=["m"], force=True)  # they are ours


def test_an_ensemble_that_cannot_be_is_refused(testing_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "models"
    with pytest.raises(UsageError, match="the Python backend takes encoded images"):
        triton(testing_bundle, out=out, ensemble=True)
    old = altered(testing_bundle, tmp_path / "old")
    (old.path / "preprocess.onnx").unlink()
    write_manifest(old.path, old.manifest)
    with pytest.raises(UsageError, match=r"old has no preprocess\.onnx; export it anew"):
        triton(old.path, out=out, backend="onnxruntime", ensemble=True)
    spec = dataclasses.replace(testing_bundle.manifest.preprocessing, interpolation="box")
    other = altered(testing_bundle, tmp_path / "other", preprocessing=spec)
    with pytest.raises(UsageError, match="the versions of m prepare images differently"):
        triton([other, testing_bundle], out=out, names=["m", "m"], backend="ort", ensemble=True)
    with pytest.raises(UsageError, match="m_ensemble is a model already"):
        triton(
            [testing_bundle] * 2, out=out, names=["m", "m_ensemble"], backend="ort", ensemble=True
        )
    assert not out.exists()


def test_a_model_of_uint8_is_served_as_one(export_once: Exporter, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    bundle = export_once(*TESTING, "--input", "uint8")
    written = triton(bundle, out=tmp_path / "m", names=["m"], backend="onnxruntime")
    assert written.models[0].inputs == {"pixel_values": "UINT8 [64, 64, 3]"}
    assert len((tmp_path / "m/m/warmup/probe").read_bytes()) == 64 * 64 * 3
    assert "--input uint8" not in " ".join(written.notes)


def test_weights_beside_the_graph_come_with_it(testing_bundle: Bundle, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "large"
    shutil.copytree(testing_bundle.path, folder)
    model = onnx.load(folder / "model.onnx")
    onnx.save_model(
        model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data"
    )
    write_manifest(folder, testing_bundle.manifest)
    triton(folder, out=tmp_path / "models", backend="onnxruntime")
    copied = tmp_path / "models/large/1"
    assert {"model.onnx", "model.onnx.data"} == files(copied)
    import onnxruntime

    onnxruntime.InferenceSession(copied / "model.onnx", providers=["CPUExecutionProvider"])


def test_threads_are_shared_by_instances(
    testing_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit_edge.machine.cpus.default_threads", lambda: 9)
    for backend, expected in {
        "python": {"threads": "2"},
        "onnxruntime": {"intra_op_thread_count": "2"},
        "openvino": {"NUM_STREAMS": "4", "INFERENCE_NUM_THREADS": "8"},
    }.items():
        out = tmp_path / backend
        triton(testing_bundle, out=out, names=["m"], backend=backend, instances=4)
        text = config(out / "m")
        assert "count: 4" in text
        for key, value in expected.items():
            assert f'key: "{key}"\n  value {{\n    string_value: "{value}"\n' in text
    triton(testing_bundle, out=tmp_path / "asked", names=["m"], threads=3)
    assert 'string_value: "3"' in config(tmp_path / "asked/m")


def test_several_bundles_are_several_models_or_versions_of_one(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    first = altered(testing_bundle, tmp_path / "a/same")
    second = altered(testing_bundle, tmp_path / "b/same", max_batch=2)
    triton([first, testing_bundle], out=tmp_path / "two", names=["x", "y"])
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"x", "y"}
    with pytest.raises(UsageError, match=r"have one name.*--names same,same"):
        triton([first, second], out=tmp_path / "no")
    written = triton([first, second], out=tmp_path / "one", names=["m", "m"])
    assert [model.bundles for model in written.models] == [(str(first.path), str(second.path))]
    assert Bundle.read(tmp_path / "one/m/2/bundle").manifest.max_batch == 2
    assert "version_policy" in config(tmp_path / "one/m")
    assert "max_batch_size: 2\n" in config(tmp_path / "one/m")  # what every version takes


def test_versions_that_differ_in_tensors_or_labels_are_refused(
    testing_bundle: Bundle, embedded_bundle: Bundle, tmp_path: Path
) -> None:
    shutil.copytree(testing_bundle.path, tmp_path / "renamed")
    labels = "".join(f"{label}!\n" for label in testing_bundle.labels)
    (tmp_path / "renamed/labels.txt").write_text(labels)
    write_manifest(tmp_path / "renamed", testing_bundle.manifest)
    wrong = {"other inputs or outputs": embedded_bundle, "other labels": tmp_path / "renamed"}
    for message, bundle in wrong.items():
        with pytest.raises(UsageError, match=message):
            triton([testing_bundle, bundle], out=tmp_path / "m", names=["m", "m"])
    assert not (tmp_path / "m").exists()


def test_a_model_without_a_head_has_no_labels(testing_bundle: Bundle, tmp_path: Path) -> None:
    bare = dataclasses.replace(
        testing_bundle,
        labels=(),
        manifest=dataclasses.replace(
            testing_bundle.manifest,
            architecture=dataclasses.replace(testing_bundle.manifest.architecture, num_classes=0),
            outputs=tuple(t for t in testing_bundle.manifest.outputs if t.name != "logits"),
        ),
    )
    message = config_from_bundle("m", bare, Serving("python", 1, 0, None, 5, 4))
    assert [one["name"] for one in message["output"]] == ["features"]
    assert "label_filename" not in text_from_message(message)
    assert message["dynamic_batching"] == {"max_queue_delay_microseconds": 0}


def test_one_image_at_a_time_is_not_batched(testing_bundle: Bundle, tmp_path: Path) -> None:
    single = altered(testing_bundle, tmp_path / "single", max_batch=1)
    triton(single, out=tmp_path / "models")
    text = config(tmp_path / "models/single")
    assert "max_batch_size: 1\n" in text
    assert "dynamic_batching" not in text
    assert text.count("model_warmup") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "pytorch"}, "--backend pytorch: expected one of python, onnxruntime"),
        ({"instances": 0}, "instances must be a whole number from 1 on, not 0"),
        ({"instances": True}, "instances"),
        ({"queue_us": -1}, "from 0 on, not -1"),
        ({"queue_us": 0.5}, "queue-us"),
        ({"threads": 0}, "threads"),
        ({"top_k": 0}, "top-k"),
        ({"top_k": 3, "backend": "onnxruntime"}, "is for the Python backend"),
        ({"threads": 2, "backend": "tensorrt"}, "is for CPUs"),
        ({"names": ["a", "b"]}, "one name for each of the 1 bundles"),
        ({"names": "a"}, "one name for each"),
        ({"names": ["a/b"]}, "no name for a model"),
        ({"names": [".."]}, "no name for a model"),
        ({"names": [""]}, "no name for a model"),
        ({"names": ["Größe"]}, "no name for a model"),
        ({"bundles": []}, "at least one bundle"),
    ],
)
def test_what_means_nothing_is_refused_and_nothing_is_written(
    testing_bundle: Bundle, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    bundles = changes.pop("bundles", [testing_bundle])
    with pytest.raises(UsageError, match=message):
        triton(bundles, out=tmp_path / "models", **changes)
    assert not list(tmp_path.iterdir())


def test_a_bundle_that_is_none_or_was_changed_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such directory"):
        triton(tmp_path / "nowhere", out=tmp_path / "models")
    content = bytearray(bundle.model_path.read_bytes())
    content[-1] ^= 1
    bundle.model_path.write_bytes(content)
    for backend in ("python", "onnxruntime"):
        with pytest.raises(IntegrityError, match="changed since"):
            triton(bundle, out=tmp_path / "models", backend=backend)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_precision_that_a_runtime_cannot_serve_is_refused(
    testing_bundle: Bundle, tmp_path: Path, precision: str
) -> None:
    bundle = altered(testing_bundle, tmp_path / "b", precision=precision)
    with pytest.raises(BackendError, match=rf"cannot serve {precision}: .*--backend python"):
        triton(bundle, out=tmp_path / "m", backend="onnxruntime")
    triton(bundle, out=tmp_path / "m")


def test_an_output_that_the_python_backend_adds_is_not_the_models_too(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    first, second = testing_bundle.manifest.outputs
    renamed = dataclasses.replace(second, name="score")
    bundle = altered(testing_bundle, tmp_path / "b", outputs=(first, renamed))
    with pytest.raises(BackendError, match="its output score has the name of one"):
        triton(bundle, out=tmp_path / "m")


def test_scales_of_a_whole_batch_are_told(testing_bundle: Bundle, tmp_path: Path) -> None:
    bundle = altered(testing_bundle, tmp_path / "b", precision="int8-dynamic")
    assert "depends on the requests that share" in triton(bundle, out=tmp_path / "m").notes[-1]


def test_a_repository_is_replaced_when_that_is_asked_for_and_nothing_else_ever_is(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "models"
    triton(testing_bundle, out=out, names=["old"])
    with pytest.raises(UsageError, match="exists; --force replaces it"):
        triton(testing_bundle, out=out, names=["new"])
    triton(testing_bundle, out=out, names=["new"], force=True)
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["models"]  # nothing is left aside
    foreign = out / "yolo"
    foreign.mkdir()
    for content in (None, 'backend: "onnxruntime"\n', b"\xff\xfe"):
        if isinstance(content, str):
            (foreign / "config.pbtxt").write_text(content)
        elif content is not None:
            (foreign / "config.pbtxt").write_bytes(content)
        with pytest.raises(UsageError, match="no model repository; choose another --out"):
            triton(testing_bundle, out=out, names=["new"], force=True)
    assert foreign.is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="exists and is no directory"):
        triton(testing_bundle, out=tmp_path / "file", force=True)


def test_what_fails_on_the_way_leaves_the_old_repository(
    testing_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "models"
    triton(testing_bundle, out=out, names=["old"])
    before = files(out)

    def full(*paths: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(vit_edge.ResourceError, match="No space left"):
        triton(testing_bundle, out=out, names=["new"], force=True)
    assert files(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(vit_edge.ResourceError, match="MB needed"):
        triton(testing_bundle, out=tmp_path / "else", names=["new"])


def test_texts_survive_the_text_form() -> None:
    message = {"a": 'q"\\\n\x01ü', "b": [1, 2], "c": [{"d": True}, {"d": False}], "e": Word("ON")}
    lines = text_from_message(message | {"f": [], "g": {}}).splitlines()
    assert lines[:3] == [r'a: "q\"\\\n\001ü"', "b: [ 1, 2 ]", "c {"]
    assert lines[3:] == ["  d: true", "}", "c {", "  d: false", "}", "e: ON", "g {", "}"]


def test_the_command_says_what_it_wrote(
    testing_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["triton", str(testing_bundle.path), "-o", str(tmp_path / "m"), "--names", "m"]
    assert cli.main([*words, "--backend", "ORT", "--instances", "2", "--queue-us", "500"]) == 0
    printed = capsys.readouterr().out
    assert "model    m on onnxruntime, batches up to 4\n" in printed
    assert "input    pixel_values FP32 [3, 64, 64]\n" in printed
    assert f"tritonserver --model-repository {tmp_path / 'm'}\n" in printed
    assert "max_queue_delay_microseconds: 500" in config(tmp_path / "m/m")
    assert cli.main([*words, "--backend", "python"]) == 2
    assert "exists; --force replaces it" in capsys.readouterr().err
    assert cli.main([*words, "--force", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["path"] == str(tmp_path / "m")
    assert result["models"][0]["outputs"]["label"] == "STRING [5]"
    for backend in ("onnxruntime", "openvino"):  # names that other verbs have their own for
        assert cli.main([*words, "--force", "--backend", backend]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--backend", "tflite"])
    assert stopped.value.code == 2


def test_pixels_of_the_warmup_are_those_of_the_model(testing_bundle: Bundle) -> None:
    """The file has no axis of the batch, and the config's dims say how much is read."""
    shape = testing_bundle.manifest.input.shape[1:]
    with Golden(testing_bundle.golden_path) as golden:
        pixels = input_from_resized(golden.probes()[0].resized[None], testing_bundle.manifest)
    assert pixels.nbytes == 4 * int(np.prod([size or 0 for size in shape]))
