"""The bundle's directory: read strictly, published in one step."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vit_edge.bundle import Bundle
from vit_edge.bundle import bundle as bundles
from vit_edge.bundle.bundle import write_manifest
from vit_edge.bundle.manifest import (
    CheckpointRecord,
    FileRecord,
    Manifest,
    TensorSpec,
    json_from_manifest,
    manifest_from_json,
)
from vit_edge.bundle.staging import staged_bundle
from vit_edge.errors import BundleError, ResourceError, UsageError
from vit_edge.variants import variant

ROW = variant("testing")
MANIFEST = Manifest(
    variant="testing",
    architecture=ROW.architecture,
    input=TensorSpec("pixel_values", "float32", "NCHW", (None, 3, 64, 64)),
    outputs=(TensorSpec("logits", "float32", "NC", (None, 10)),),
    max_batch=4,
    preprocessing=ROW.preprocessing,
    precision="fp32",
    opset=23,
    ir_version=10,
    recipe={"name": "cpu-fp32"},
    checkpoint=CheckpointRecord("seeded:0", {}),
    reference_dtype="float64",
    producer={"vit_edge": "0"},
)


def fill(folder: Path, content: str = "x") -> None:
    """Put the files of a bundle into a folder; no model that could run."""
    for name in ("model.onnx", "golden.npz", "parity.json"):
        (folder / name).write_text(content)
    (folder / "labels.txt").write_text("".join(f"class {i}\n" for i in range(10)))
    write_manifest(folder, MANIFEST)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose model is no model."""
    made = tmp_path / "made"
    made.mkdir()
    fill(made)
    return made


def test_a_manifest_survives_being_written_and_read() -> None:
    manifest = with_files(MANIFEST)
    assert manifest_from_json(json_from_manifest(manifest), "m") == manifest


def test_a_zero_shot_head_survives_and_a_manifest_without_one_means_none() -> None:
    shape = dataclasses.replace(ROW.architecture, projection_dim=24, logit_scale=1 / 0.07)
    manifest = with_files(dataclasses.replace(MANIFEST, architecture=shape))
    assert manifest_from_json(json_from_manifest(manifest), "m") == manifest
    data = json.loads(json_from_manifest(with_files(MANIFEST)))
    del data["architecture"]["projection_dim"], data["architecture"]["logit_scale"]
    old = manifest_from_json(json.dumps(data), "m").architecture
    assert old == ROW.architecture
    assert old.features_dim == old.width


def test_every_problem_of_a_manifest_is_listed(folder: Path) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    del data["opset"]
    data["surprise"] = 1
    data["max_batch"] = "four"
    data["preprocessing"]["resize"] = "stretch"
    data["architecture"]["image_hw"] = [64]
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError) as caught:
        Bundle.read(folder)
    for part in ("lacks 'opset'", "'surprise', an unknown key", "max_batch", "stretch", "image_hw"):
        assert part in str(caught.value)


def test_parts_of_a_manifest_that_contradict_each_other_are_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    data["input"]["shape"] = [None, 3, 32, 32]
    data["outputs"][0]["shape"] = [1, 10]
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match="(?s)the architecture needs.*must be dynamic"):
        Bundle.read(folder)


def foreign(**changes: Any) -> Manifest:
    """The manifest of a graph that vit_edge does not take apart."""
    source = CheckpointRecord("onnx:vit.onnx", {"vit.onnx": "0" * 64})
    quantization = {"linears": 3, "kept_float": ["blocks.0.mlp.fc2"]}
    return dataclasses.replace(
        MANIFEST, architecture=None, checkpoint=source, quantization=quantization, **changes
    )


def with_files(manifest: Manifest) -> Manifest:
    names = ("model.onnx", "golden.npz", "labels.txt", "parity.json")
    return dataclasses.replace(manifest, files={name: FileRecord(1, "0" * 64) for name in names})


def test_a_manifest_without_an_architecture_survives_too() -> None:
    manifest = with_files(foreign())
    assert manifest_from_json(json_from_manifest(manifest), "m") == manifest
    assert manifest.num_classes == 10


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"input": TensorSpec("x", "float32", "NCHW", (None, 3, 32, 32))},
            r"the preprocessing needs float32 NCHW \[None, 3, 64, 64\]",
        ),
        ({"input": TensorSpec("x", "float32", "NCHW", (None, 1, 64, 64))}, "preprocessing needs"),
        ({"input": TensorSpec("x", "float32", "NHWC", (None, 64, 64, 3))}, "preprocessing needs"),
        ({"input": TensorSpec("x", "float32", "NCHW", ())}, "preprocessing needs"),
        ({"outputs": (TensorSpec("logits", "float32", "NC", (None, 5, 10)),)}, "logits has shape"),
        ({"outputs": (TensorSpec("logits", "float32", "NC", (None, None)),)}, "must be dynamic"),
    ],
)
def test_tensors_without_an_architecture_must_fit_the_images(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(BundleError, match=said):
        manifest_from_json(json_from_manifest(with_files(foreign(**changes))), "m")


def test_without_a_head_there_are_no_classes() -> None:
    features = (TensorSpec("features", "float32", "NC", (None, 64)),)
    assert foreign(outputs=features).num_classes == 0


def test_a_manifest_of_another_schema_says_which(folder: Path) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"schema_version": 99}))
    with pytest.raises(BundleError, match="schema_version is 99, this vit_edge reads 2"):
        Bundle.read(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"schema_version": 2}', "[" * 100_000])
def test_what_is_no_manifest_is_a_typed_error(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BundleError):
        Bundle.read(folder)


def test_a_directory_without_a_manifest_is_no_bundle(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(BundleError, match="no manifest.json"):
        Bundle.read(folder)


def test_missing_and_short_files_are_named_together(folder: Path) -> None:
    (folder / "golden.npz").unlink()
    (folder / "model.onnx").write_text("")
    with pytest.raises(BundleError, match="(?s)golden.npz: missing.*model.onnx: 0 bytes"):
        Bundle.read(folder)


def test_a_label_too_few_is_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "labels.txt").write_text("only one\n")
    write_manifest(tmp_path, MANIFEST)
    with pytest.raises(BundleError, match="1 labels for 10 classes"):
        Bundle.read(tmp_path)


def test_a_file_name_that_leaves_the_bundle_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    data["files"]["../outside"] = {"size": 1, "sha256": "0" * 64}
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match="not a plain file name"):
        Bundle.read(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("preprocessing", "std"), [float("inf")] * 3),
        (("preprocessing", "mean"), [float("nan")] * 3),
        (("preprocessing", "rescale_factor"), 10**400),
        (("preprocessing", "resize_hw"), [10**19, 64]),
        (("architecture", "depth"), 10**12),
        (("architecture", "projection_dim"), 0),
        (("architecture", "projection_dim"), 10**12),
        (("architecture", "logit_scale"), 0.0),
        (("architecture", "logit_scale"), -100.0),
        (("architecture", "logit_scale"), float("nan")),
        (("architecture", "logit_scale"), 1e300),
        (("architecture", "logit_scale"), "100"),
        (("max_batch",), -1),
        (("files", "model.onnx", "size"), -1),
        (("files", "model.onnx", "sha256"), ""),
    ],
)
def test_numbers_that_are_none_are_refused(
    folder: Path, path: tuple[str, ...], value: object
) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (folder / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BundleError):
        Bundle.read(folder)


def test_a_label_may_hold_what_python_takes_for_the_end_of_a_line(tmp_path: Path) -> None:
    fill(tmp_path)
    labels = [f"class\u2028{i}\x0b" for i in range(10)]
    (tmp_path / "labels.txt").write_text("".join(f"{x}\n" for x in labels), encoding="utf-8")
    write_manifest(tmp_path, MANIFEST)
    assert Bundle.read(tmp_path).labels == tuple(labels)


def test_a_file_is_no_bundle_and_says_so(folder: Path) -> None:
    with pytest.raises(BundleError, match="is a file; give its directory"):
        Bundle.read(folder / "model.onnx")


@pytest.mark.parametrize("out", [".", "..", "new/.."])
def test_the_working_directory_is_never_exchanged_away(
    folder: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError), staged_bundle(Path(out), force=True):
        pytest.fail("entered")
    with pytest.raises(UsageError, match="working directory"), staged_bundle(folder, force=True):
        pytest.fail("entered")


def test_a_fifo_that_looks_like_a_stage_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".b.partial-x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".b.partial-link").symlink_to(tmp_path / "elsewhere")
    with staged_bundle(tmp_path / "b", force=False) as stage:
        fill(stage)
    assert (tmp_path / "elsewhere").is_dir()
    assert (tmp_path / ".b.partial-link").is_symlink()


def test_the_umask_decides_who_may_read_a_bundle(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with staged_bundle(tmp_path / "b", force=False) as stage:
            fill(stage)
    finally:
        os.umask(before)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o700


def test_an_existing_bundle_needs_force(folder: Path) -> None:
    with pytest.raises(UsageError, match="--force"), staged_bundle(folder, force=False):
        pytest.fail("entered")


def test_force_replaces_the_whole_directory(folder: Path) -> None:
    (folder / "engines").mkdir()
    with staged_bundle(folder, force=True) as stage:
        fill(stage, "new")
    assert (folder / "model.onnx").read_text() == "new"
    assert not (folder / "engines").exists()
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_force_never_replaces_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="no bundle"), staged_bundle(tmp_path / "home", force=True):
        pytest.fail("entered")


def test_an_error_leaves_the_destination_as_it_was(folder: Path) -> None:
    with pytest.raises(RuntimeError), staged_bundle(folder, force=True) as stage:
        (stage / "model.onnx").write_text("half")
        raise RuntimeError
    assert (folder / "model.onnx").read_text() == "x"
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match="MB free"),
        staged_bundle(tmp_path / "b", force=False, needed_bytes=2**60),
    ):
        pytest.fail("entered")
    assert not list(tmp_path.iterdir())


def test_of_two_writers_to_one_path_one_wins_whole(tmp_path: Path) -> None:
    target = tmp_path / "b"
    with pytest.raises(UsageError), staged_bundle(target, force=False) as loser:
        fill(loser, "loser")
        with staged_bundle(target, force=False) as winner:
            fill(winner, "winner")
    assert (target / "model.onnx").read_text() == "winner"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_live_stage_is_not_swept_and_a_dead_one_is(tmp_path: Path) -> None:
    dead = tmp_path / ".b.partial-dead"
    dead.mkdir()
    (dead / "model.onnx").write_text("left behind")
    with staged_bundle(tmp_path / "b", force=True) as live:
        fill(live, "live")
        with staged_bundle(tmp_path / "b", force=True) as other:
            fill(other, "other")
            assert live.exists()
            assert not dead.exists()
    assert (tmp_path / "b" / "model.onnx").read_text() == "live"


WRITER = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from tests_fill import fill
from vit_edge.bundle.staging import staged_bundle
print("ready", flush=True)
content = 0
while True:
    content += 1
    with staged_bundle(Path({target!r}), force=True) as stage:
        fill(stage, str(content) * 200_000)
"""


def test_kill_9_at_any_moment_leaves_a_whole_bundle(tmp_path: Path) -> None:
    """Kill a process that keeps replacing a bundle, at many different moments."""
    target = tmp_path / "b"
    helper = tmp_path / "helper"
    helper.mkdir()
    (helper / "tests_fill.py").write_text(Path(__file__).read_text())
    code = WRITER.format(path=[str(helper), *sys.path], target=str(target))
    seen = set()
    for attempt in range(25):
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 0.004 * attempt
        while time.monotonic() < deadline:
            pass
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        if target.exists():
            found = Bundle.read(target)
            model = found.model_path.read_text()
            assert len(set(model)) >= 1
            assert bundles.sha256_of(found.model_path) == found.model_sha256
            seen.add(model[:3])
    assert seen, "no bundle was ever published: the test killed too early to prove anything"
    with staged_bundle(target, force=True) as stage:
        fill(stage)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "helper"]


@pytest.mark.parametrize("name", ["labels.txt", "parity.json"])
def test_a_sparse_text_file_is_refused_and_not_read(bundle: Bundle, name: str) -> None:
    size = 200 * 2**30  # more than any memory
    try:
        os.truncate(bundle.path / name, size)
    except OSError:
        pytest.skip("this file system has no files of that size")
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    manifest["files"][name]["size"] = size
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=rf"{name}: more than"):
        Bundle.read(bundle.path).parity()
