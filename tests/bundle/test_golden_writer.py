"""A golden file is written image by image, appears whole or not at all, and is reproducible."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from vit_edge.bundle.golden import Golden, GoldenWriter, Probe, write_golden
from vit_edge.errors import ResourceError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 4, 5, 3), np.uint8)
ANSWERS = RNG.standard_normal((3, 7)).astype(np.float32)
PROBE = Probe("dot.png", b"bytes", np.zeros((4, 5, 3), np.uint8))


def writer(path: Path, *, labelled: bool = False) -> GoldenWriter:
    return GoldenWriter(
        path, probes=[PROBE], outputs=["logits"], reference_dtype="float64", labelled=labelled
    )


def write(path: Path) -> bytes:
    with writer(path, labelled=True) as file:
        for index in range(3):
            label = None if index == 1 else index
            file.add(f"{index}.jpg", IMAGES[index], {"logits": ANSWERS[index]}, label)
    return path.read_bytes()


def test_what_is_added_can_be_read(tmp_path: Path) -> None:
    write(tmp_path / "golden.npz")
    with Golden(tmp_path / "golden.npz") as golden:
        assert golden.names == ["0.jpg", "1.jpg", "2.jpg"]
        assert golden.reference_dtype == "float64"
        assert np.array_equal(golden.images(range(3)), IMAGES)
        assert np.array_equal(golden.answers(range(3))["logits"], ANSWERS)
        labels, probe = golden.labels(range(3)), golden.probes()[0]
    assert labels is not None
    assert labels.tolist() == [0, -1, 2]
    assert (probe.name, probe.data) == (PROBE.name, PROBE.data)


def test_the_same_content_gives_the_same_bytes_at_another_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(tmp_path / "a.npz")
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert write(tmp_path / "b.npz") == first


def test_all_at_once_writes_the_same_bytes(tmp_path: Path) -> None:
    write_golden(
        tmp_path / "all.npz",
        probes=[PROBE],
        names=["0.jpg", "1.jpg", "2.jpg"],
        images=IMAGES,
        answers={"logits": ANSWERS},
        reference_dtype="float64",
        labels=[0, -1, 2],
    )
    assert (tmp_path / "all.npz").read_bytes() == write(tmp_path / "one.npz")


def test_after_an_error_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(KeyError), writer(tmp_path / "golden.npz") as file:
        file.add("0.jpg", IMAGES[0], {"logits": ANSWERS[0]})
        file.add("1.jpg", IMAGES[1], {})
    assert list(tmp_path.iterdir()) == []


def test_after_an_error_the_old_file_is_what_it_was(tmp_path: Path) -> None:
    before = write(tmp_path / "golden.npz")
    with pytest.raises(KeyboardInterrupt), writer(tmp_path / "golden.npz"):
        raise KeyboardInterrupt
    assert (tmp_path / "golden.npz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_is_at_the_path_before_the_end(tmp_path: Path) -> None:
    with writer(tmp_path / "golden.npz") as file:
        file.add("0.jpg", IMAGES[0], {"logits": ANSWERS[0]})
        assert not (tmp_path / "golden.npz").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["golden.npz"]


def test_a_folder_that_is_not_there_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="nonesuch"):
        write(tmp_path / "nonesuch" / "golden.npz")


def test_a_full_disk_is_a_typed_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match="No space left"), writer(tmp_path / "g.npz") as file:
        monkeypatch.setattr(np.lib.format, "write_array", full)
        file.add("0.jpg", IMAGES[0], {"logits": ANSWERS[0]})
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    image = np.zeros((128, 128, 3), np.uint8)  # 49 kB; 200 of them would be 9.8 MB
    tracemalloc.start()
    try:
        with writer(tmp_path / "golden.npz") as file:
            file.add("first", image, {"logits": ANSWERS[0]})
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            for index in range(200):
                file.add(str(index), image.copy(), {"logits": ANSWERS[0]})
            _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 2e6  # one image at a time, and the archive's index
