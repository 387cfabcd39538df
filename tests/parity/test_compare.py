"""A comparison passes what is right and nothing else."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_edge.backends import ort
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden, Probe, write_golden
from vit_edge.errors import BundleError, UsageError
from vit_edge.images.resize import resized_from_image
from vit_edge.parity.__main__ import main
from vit_edge.parity.compare import Comparison, check_probes, compare_answers, gate_batches
from vit_edge.parity.limits import limit_for
from vit_edge.parity.statistics import Difference, cosine
from vit_edge.variants import variant

requires = ("onnxruntime",)


class Wrapped:
    """A backend whose answers or pixels are changed."""

    def __init__(self, right: Any, pixels: Any = None, answers: Any = None) -> None:
        self.right, self.pixels, self.answers = right, pixels, answers

    def run(self, pixels: Any) -> Any:
        found = self.right.run(self.pixels(pixels) if self.pixels else pixels)
        return {n: self.answers(v) for n, v in found.items()} if self.answers else found


def problems(bundle: Bundle, backend: Any) -> list[str]:
    with Golden(bundle.golden_path) as golden:
        return compare_answers(
            backend,
            golden,
            bundle.manifest,
            batches=gate_batches(bundle.manifest.max_batch),
            limit=limit_for("fp32"),
        ).problems


@pytest.fixture
def right(testing_bundle: Bundle) -> Any:
    return ort.load(testing_bundle)


def test_the_right_backend_passes(testing_bundle: Bundle, right: Any) -> None:
    assert problems(testing_bundle, right) == []


@pytest.mark.parametrize(
    "change",
    [
        {"pixels": lambda p: np.ascontiguousarray(p[:, ::-1])},  # channels swapped
        {"pixels": lambda p: p * np.float32(0.5 / 0.226)},  # another std
        {"pixels": lambda p: np.ascontiguousarray(p[..., ::-1])},  # mirrored
        {"pixels": lambda p: p + np.float32(1 / 255)},  # one level off
        {"answers": lambda v: v * np.float32(1 + 3e-5)},
        {"answers": lambda v: np.roll(v, 1, axis=0)},  # rows in another order
        {"answers": lambda v: np.where(np.arange(v.shape[-1]) == 3, np.float32(0), v)},
        {"answers": lambda v: np.where(np.arange(v.shape[-1]) == 3, np.float32("nan"), v)},
    ],
)
def test_a_planted_fault_is_found(
    testing_bundle: Bundle, right: Any, change: dict[str, Any]
) -> None:
    assert problems(testing_bundle, Wrapped(right, **change))


def test_a_fault_at_one_batch_size_alone_is_found(testing_bundle: Bundle, right: Any) -> None:
    class WrongAtThree(Wrapped):
        def run(self, pixels: Any) -> Any:
            found = self.right.run(pixels)
            return {n: v * (1.01 if len(v) == 3 else 1) for n, v in found.items()}

    found = problems(testing_bundle, WrongAtThree(right))
    assert found
    assert all("batch 3" in problem for problem in found)


def test_the_limit_itself_is_tried_where_there_are_fewer_images(
    testing_bundle: Bundle, right: Any
) -> None:
    sizes = []

    class Counting(Wrapped):
        def run(self, pixels: Any) -> Any:
            sizes.append(len(pixels))
            return self.right.run(pixels)

    with Golden(testing_bundle.golden_path) as golden:
        golden.names = golden.names[:2]
        compare_answers(
            Counting(right),
            golden,
            testing_bundle.manifest,
            batches=[1, 4],
            limit=limit_for("fp32"),
        )
    assert sizes == [1, 1, 4]


def test_gate_batches_stay_below_the_limit() -> None:
    assert gate_batches(32) == [1, 2, 3, 32]
    assert gate_batches(2) == [1, 2]
    assert gate_batches(1) == [1]


def test_a_missing_exif_rotation_is_found_by_the_probes() -> None:
    spec = variant("testing").preprocessing
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    photo.save(data, "PNG", exif=exif)
    ignored = Probe("rotated.png", data.getvalue(), resized_from_image(photo, spec))
    turned = photo.transpose(Image.Transpose.ROTATE_270)
    applied = Probe("rotated.png", data.getvalue(), resized_from_image(turned, spec))
    assert check_probes([applied], spec) == []
    assert "differs by" in check_probes([ignored], spec)[0]


def test_a_png_probe_must_be_exact_and_a_jpeg_within_two_levels() -> None:
    spec = variant("testing").preprocessing
    for suffix, form, allowed in (("png", "PNG", 0), ("jpg", "JPEG", 2)):
        data = io.BytesIO()
        Image.new("RGB", (64, 64), (100, 120, 140)).save(data, form)
        exact = resized_from_image(Image.open(data).convert("RGB"), spec)
        for off in (allowed, allowed + 1):
            probe = Probe(f"p.{suffix}", data.getvalue(), exact + np.uint8(off))
            assert bool(check_probes([probe], spec)) == (off > allowed)


def test_differences_are_those_of_the_definition() -> None:
    difference = Difference()
    left = np.array([[1.0, 2.0], [0.0, -4.0]], np.float32)
    right = np.array([[1.5, 2.0], [0.0, -4.25]], np.float32)
    difference.add(np.array([7, 8]), left, right)
    assert difference.max_abs_diff == 0.5
    assert difference.worst_image == 7
    assert difference.relative == 0.5 / 4.25
    assert np.allclose(cosine(left.astype(float), left.astype(float)), 1)


def test_the_worst_of_several_batches_is_kept() -> None:
    difference = Difference()
    for index, off in enumerate((0.1, 0.3, 0.2)):
        one = np.ones((1, 3))
        difference.add(np.array([index]), one + off, one)
    assert difference.worst_image == 1
    assert abs(difference.max_abs_diff - 0.3) < 1e-12


def test_infinite_and_missing_numbers_never_pass() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        difference = Difference()
        difference.add(np.array([0]), np.array([[1.0, bad]]), np.array([[1.0, 1.0]]))
        assert difference.non_finite == 1
        assert not difference.relative <= 1e-5


@pytest.mark.parametrize("cut", [0, 10, 1000, -30])
def test_a_damaged_golden_file_is_a_typed_error(
    testing_bundle: Bundle, tmp_path: Path, cut: int
) -> None:
    data = testing_bundle.golden_path.read_bytes()
    (tmp_path / "golden.npz").write_bytes(data[:cut])
    with pytest.raises(BundleError, match="golden"):
        Golden(tmp_path / "golden.npz")


def test_a_flipped_bit_in_a_member_is_a_typed_error(testing_bundle: Bundle, tmp_path: Path) -> None:
    data = bytearray(testing_bundle.golden_path.read_bytes())
    at = data.index(b"image/0000.npy") + 400
    data[at] ^= 0xFF
    (tmp_path / "golden.npz").write_bytes(data)
    with pytest.raises(BundleError, match="image/0000"), Golden(tmp_path / "golden.npz") as golden:
        golden.images([0])


def test_pickled_arrays_in_a_golden_file_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", meta=np.array([{"evil": 1}], dtype=object))
    with pytest.raises(BundleError):
        Golden(tmp_path / "golden.npz")


def test_a_golden_file_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    for name in ("a.npz", "b.npz"):
        write_golden(
            tmp_path / name,
            probes=[],
            names=["x", "y"],
            images=images,
            answers={"logits": np.zeros((2, 3), np.float32)},
            reference_dtype="float64",
        )
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_an_unknown_precision_has_no_limit() -> None:
    with pytest.raises(UsageError, match="fp3"):
        limit_for("fp3")


@pytest.mark.parametrize("backend", ["ort", "eager"])
def test_the_verb_says_that_parity_holds(
    testing_bundle: Bundle, capsys: pytest.CaptureFixture[str], backend: str
) -> None:
    if backend == "eager":
        pytest.importorskip("torch")
    assert main([str(testing_bundle.path), "--backend", backend]) == 0
    assert "parity holds" in capsys.readouterr().out
    assert main([str(testing_bundle.path), "--backend", backend, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert found["verdict"] == "pass"
    assert found["facts"]["backend"] == backend


def test_the_verb_holds_a_target_and_shows_every_statistic(
    testing_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(testing_bundle.path), "--target"]
    assert main([*arguments, "top1_agreement=1,sqnr_centred_db=100"]) == 0
    assert "target >= 100.0 dB" in capsys.readouterr().out
    assert main([*arguments, "sqnr_centred_db=290", "--json"]) == 4
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert found["target"] == {"sqnr_centred_db": 290}
    assert len(found["problems"]) == 1


def test_a_misspelt_target_is_wrong_usage(
    testing_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(testing_bundle.path), "--target", "top1=0.9"]) == 2
    assert "there are: top1_agreement" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"images": []},
        {"outputs": []},
        {"outputs": ["features"]},
        {"outputs": ["logits", "tokens"]},
        {"schema_version": 7},
    ],
)
def test_a_golden_file_that_proves_nothing_is_no_golden_file(
    testing_bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
) -> None:
    with np.load(testing_bundle.golden_path) as file:
        members = dict(file)
    meta = json.loads(bytes(members["meta"])) | change
    members["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(tmp_path / "golden.npz", **members)
    assert main([str(testing_bundle.path), "--golden", str(tmp_path / "golden.npz")]) == 3
    assert "parity holds" not in capsys.readouterr().out


def test_without_probes_parity_does_not_hold(
    testing_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(testing_bundle.golden_path) as file:
        members = dict(file)
    meta = json.loads(bytes(members["meta"])) | {"probes": []}
    members["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(tmp_path / "golden.npz", **members)
    assert main([str(testing_bundle.path), "--golden", str(tmp_path / "golden.npz")]) == 4
    assert "preprocessing was not checked" in capsys.readouterr().out


def test_a_broken_probe_is_a_problem_and_no_crash(testing_bundle: Bundle) -> None:
    broken = Probe("broken.png", b"no image", np.zeros((64, 64, 3), np.uint8))
    (problem,) = check_probes([broken], testing_bundle.manifest.preprocessing)
    assert "broken.png" in problem


def test_a_comparison_of_nothing_does_not_pass() -> None:
    assert Comparison({}, limit_for("fp32")).problems == ["nothing was compared"]


def test_the_verb_exits_with_4_on_another_models_answers(
    testing_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Golden(testing_bundle.golden_path) as golden:
        indices = range(len(golden))
        answers = {k: v * np.float32(1.001) for k, v in golden.answers(indices).items()}
        write_golden(
            tmp_path / "other.npz",
            probes=golden.probes(),
            names=golden.names,
            images=golden.images(indices),
            answers=answers,
            reference_dtype="float64",
        )
    assert main([str(testing_bundle.path), "--golden", str(tmp_path / "other.npz")]) == 4
    assert "parity FAILED" in capsys.readouterr().out
