"""Destinations that can be neither renamed nor exchanged: mount points, layers of an overlay."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vit_edge.backends import ort
from vit_edge.bundle import Bundle, staging, trust
from vit_edge.errors import IntegrityError, ResourceError, UsageError

requires = ("onnxruntime",)


def write(stage: Path, text: str) -> None:
    for name in ("manifest.json", "model.onnx", "labels.txt"):
        (stage / name).write_text(text)


def publish(destination: Path, text: str) -> None:
    with staging.staged_bundle(destination, force=True) as stage:
        write(stage, text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[None]:
    """Mount something for a test, or skip it where that is not allowed."""
    done = subprocess.run(["mount", *arguments, str(place)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this process may not mount: {done.stderr.decode(errors='replace')}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def refusing(code: int) -> object:
    def refuse(source: Path, target: Path, flag: int) -> None:
        if flag == 1:  # RENAME_NOREPLACE
            raise FileExistsError(errno.EEXIST, "exists", str(target))
        raise OSError(code, os.strerror(code), str(target))

    return refuse


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EBUSY])
def test_a_directory_that_cannot_be_exchanged_is_filled_and_that_is_said(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    publish(out, "old")
    (out / "engines").mkdir()
    (out / "engines" / "x").write_text("of the old one")
    monkeypatch.setattr(staging, "_renameat2", refusing(code))
    with caplog.at_level(logging.WARNING):
        publish(out, "new")
    assert "one by one" in caplog.text
    assert names(out) == ["labels.txt", "manifest.json", "model.onnx"]
    assert {file.read_text() for file in out.iterdir()} == {"new"}
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("moves", range(4))
def test_killed_while_it_is_filled_it_is_no_bundle_and_never_a_mixed_one(
    moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    publish(out, "old")
    monkeypatch.setattr(staging, "_renameat2", refusing(errno.EXDEV))
    rename, done = Path.rename, []

    def dying(self: Path, target: Path) -> Path:
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(self.name)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        if moves == 3:
            publish(out, "new")
        else:
            with pytest.raises(KeyboardInterrupt):
                publish(out, "new")
    assert (out / "manifest.json").exists() == (moves == 3)
    assert {file.read_text() for file in out.iterdir()} <= {"new"}
    if moves < 3:  # what is left is no bundle of ours: it is not replaced without a word
        with pytest.raises(UsageError) if moves else contextlib.nullcontext():
            publish(out, "newer")


def test_a_mount_point_is_filled_from_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (out / "lost+found").mkdir(parents=True)
    (out / f"{staging._INSIDE}0123").mkdir()  # of a process that was killed
    monkeypatch.setattr(Path, "is_mount", lambda self: self == out)
    monkeypatch.setattr(
        staging, "_renameat2", lambda *_: pytest.fail("the directory itself is renamed")
    )
    for text in ("first", "second"):
        publish(out, text)
        assert names(out) == ["labels.txt", "lost+found", "manifest.json", "model.onnx"]
        assert (out / "model.onnx").read_text() == text
    assert names(tmp_path) == ["out"]
    (out / "manifest.json").unlink()
    with pytest.raises(UsageError, match="no bundle"):
        publish(out, "third")


def test_a_volume_a_bind_mount_and_a_read_only_one(tmp_path: Path) -> None:
    out, source = tmp_path / "my out", tmp_path / "source"
    out.mkdir()
    source.mkdir()
    with mounted(out, "-t", "tmpfs", "tmpfs"):
        publish(out, "volume")
        publish(out, "again")
        assert (out / "model.onnx").read_text() == "again"
    with mounted(out, "--bind", str(source)):
        publish(out, "bound")
    assert names(source) == ["labels.txt", "manifest.json", "model.onnx"]
    with mounted(out, "-t", "tmpfs", "-o", "ro", "tmpfs"):
        for place in (out, out / "below"):
            with pytest.raises(ResourceError, match=r"Read-only .* choose another --out"):
                publish(place, "never")


def test_bundles_and_engines_of_an_images_layer_are_replaced(
    bundle: Bundle, tmp_path: Path
) -> None:
    ort.build(bundle)
    layers = tmp_path / "layers"
    layers.mkdir()
    merged = tmp_path / "merged"
    merged.mkdir()
    with mounted(layers, "-t", "tmpfs", "tmpfs"):
        for name in ("lower", "upper", "work"):
            (layers / name).mkdir()
        bundle.path.rename(tmp_path / "aside")
        subprocess.run(
            ["cp", "-r", str(tmp_path / "aside"), str(layers / "lower" / "bundle")], check=True
        )
        options = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
        with mounted(merged, "-t", "overlay", "-o", options, "overlay"):
            again = Bundle.read(merged / "bundle")
            engine = ort.build(again)
            opened = ort.load(again, engine="required")
            assert opened.facts["engine"] == engine.name
            opened.close()
            publish(merged / "bundle", "new")
            assert names(merged / "bundle") == ["labels.txt", "manifest.json", "model.onnx"]


def test_what_changes_while_it_is_moved_is_not_vouched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "a").write_text("engine")
    known = trust.fingerprints(folder, ["a"])
    (folder / "a").rename(folder / "b")
    (folder / "b").rename(folder / "a")  # another time of change
    trust.record_moved(folder, known)
    assert trust.recorded_hashes(folder) == {"a": known["a"].sha256}
    (folder / "a").write_text("other")
    with pytest.raises(IntegrityError, match="changed while it was moved: a"):
        trust.record_moved(folder, known)
