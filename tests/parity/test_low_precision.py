"""The limits of the low precisions: healthy noise passes, planted faults do not.

The answers are drawn, so that the noise level is known exactly; tests/export holds the limits
against real quantizers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from vit_edge.bundle.manifest import Manifest, TensorSpec
from vit_edge.parity.compare import Comparison, as_json, compare_answers
from vit_edge.parity.limits import LIMITS, explained_margin, limit_for
from vit_edge.parity.tables import exact_table, statistics_table
from vit_edge.parity.targets import DECIDED, STATISTICS, Target, parse_target
from vit_edge.variants import variant

Logits = NDArray[np.float32]
LOW = [name for name in LIMITS if name != "fp32"]
SPEC = variant("testing").preprocessing
PIXELS = TensorSpec("pixels", "float32", "NCHW", (None, 3, 1, 1))
MANIFEST = cast(Manifest, SimpleNamespace(input=PIXELS, preprocessing=SPEC, scores="softmax"))


@dataclass(frozen=True)
class Drawn:
    """A reference whose images carry nothing but their own number."""

    logits: Logits
    features: Logits
    classes: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def images(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        images = np.zeros((len(indices), 1, 1, 3), np.uint8)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(indices, 256)
        return images

    def answers(self, indices: Sequence[int]) -> dict[str, Logits]:
        return {"logits": self.logits[indices], "features": self.features[indices]}

    def labels(self, indices: Sequence[int]) -> NDArray[np.int64] | None:
        return None if self.classes is None else self.classes[indices]


@dataclass
class Candidate:
    """A backend that looks its answers up by the number in the image, and may change a batch."""

    logits: Logits
    features: Logits
    change: Callable[[Logits], Logits] = lambda logits: logits

    def run(self, pixels: NDArray[Any]) -> dict[str, Logits]:
        levels = pixels[:, :2, 0, 0] * np.float32(SPEC.std[0]) + np.float32(SPEC.mean[0])
        high, low = np.rint(levels * 255).astype(int).T
        chosen = high * 256 + low
        return {"logits": self.change(self.logits[chosen]), "features": self.features[chosen]}


def reference(images: int, classes: int = 10, lead: float = 6.0, constant: float = 1.0) -> Drawn:
    """Logits with a class that leads (by nothing: an untrained model) and a constant part."""
    rng = np.random.default_rng(images + classes)
    logits = rng.standard_normal((images, classes)) + constant * rng.standard_normal(classes)
    labels = rng.integers(0, classes, images)
    logits[np.arange(images), labels] += lead
    features = rng.standard_normal((images, 16))
    return Drawn(logits.astype(np.float32), features.astype(np.float32), labels)


def with_noise(values: Logits, sqnr_db: float, seed: int = 1) -> Logits:
    """Add noise at a level below what varies from image to image."""
    noise = np.random.default_rng(seed).standard_normal(values.shape)
    varying = np.sqrt(np.square(values - values.mean(axis=0)).mean())
    return (values + noise * varying * 10 ** (-sqnr_db / 20)).astype(np.float32)


def least_db(precision: str) -> float:
    return limit_for(precision).logits.as_dict()["sqnr_centred_db"]


def compared(
    precision: str, golden: Drawn, candidate: Any, target: Target | None = None
) -> Comparison:
    return compare_answers(
        candidate,
        golden,
        MANIFEST,
        batches=[1, 3] if len(golden) < 100 else [100],
        limit=limit_for(precision),
        target=target,
    )


def healthy(precision: str, golden: Drawn) -> tuple[Logits, Logits]:
    """Noise of half the power that is allowed."""
    level = least_db(precision) + 3
    return with_noise(golden.logits, level), with_noise(golden.features, level, seed=2)


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize(("images", "classes"), [(16, 10), (16, 1000), (2000, 10)])
def test_half_the_noise_allowed_passes(precision: str, images: int, classes: int) -> None:
    golden = reference(images, classes)
    assert compared(precision, golden, Candidate(*healthy(precision, golden))).problems == []


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("images", [16, 2000])
def test_twice_the_noise_allowed_does_not(precision: str, images: int) -> None:
    golden = reference(images)
    noisy = with_noise(golden.logits, least_db(precision) - 3)
    assert compared(precision, golden, Candidate(noisy, golden.features)).problems


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("images", [16, 2000])
def test_identical_answers_pass(precision: str, images: int) -> None:
    golden = reference(images)
    candidate = Candidate(golden.logits, golden.features)
    comparison = compared(precision, golden, candidate, parse_target("sqnr_db=300,kl_max=0"))
    assert comparison.problems == []


def swap_classes(logits: Logits) -> Logits:
    """The classes that the first image and another one have."""
    first, *others = logits.argmax(axis=1)
    second = next(other for other in others if other != first)
    result = logits.copy()
    result[:, [first, second]] = result[:, [second, first]]
    return result


def one_image_wrong(logits: Logits) -> Logits:
    result = logits.copy()
    result[7] = np.roll(result[7], 1)
    return result


def constant(logits: Logits) -> Logits:
    return np.tile(logits.mean(axis=0), (len(logits), 1))


def nan(logits: Logits) -> Logits:
    result = logits.copy()
    result[3, 2] = np.nan
    return result


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("images", [16, 2000])
@pytest.mark.parametrize(
    "fault",
    [
        constant,
        swap_classes,
        one_image_wrong,
        nan,
        lambda logits: with_noise(logits, -20),
        lambda logits: np.roll(logits, 1, axis=0),  # answers in another order
        lambda logits: logits * np.float32(0.7),
        lambda logits: logits[:, ::-1],
    ],
)
def test_a_planted_fault_is_found(
    precision: str, images: int, fault: Callable[[Logits], Logits]
) -> None:
    golden = reference(images)
    logits, features = healthy(precision, golden)
    assert compared(precision, golden, Candidate(fault(logits), features)).problems


@pytest.mark.parametrize("precision", LOW)
def test_constant_logits_are_found_although_their_cosine_is_high(precision: str) -> None:
    golden = reference(16, constant=60.0)
    found = compared(precision, golden, Candidate(constant(golden.logits), golden.features))
    assert found.rows()[0].summary["cosine_min"] > 0.98
    assert any("centred SQNR" in problem for problem in found.problems)


@pytest.mark.parametrize("precision", LOW)
def test_a_fault_in_the_features_alone_is_found(precision: str) -> None:
    golden = reference(16)
    logits, features = healthy(precision, golden)
    problems = compared(precision, golden, Candidate(logits, np.roll(features, 1, axis=0))).problems
    assert problems
    assert all(problem.startswith("features, batch 1, 3: ") for problem in problems)


@pytest.mark.parametrize("precision", LOW)
def test_rows_that_mix_are_found(precision: str) -> None:
    golden = reference(16)

    def mix(rows: Logits) -> Logits:
        return np.float32(0.8) * rows + np.float32(0.2) * np.roll(rows, 1, axis=0)

    problems = compared(precision, golden, Candidate(*healthy(precision, golden), mix)).problems
    assert problems
    assert all(problem.startswith("logits, batch 3: ") for problem in problems)


@pytest.mark.parametrize("precision", [name for name in LOW if name != "int8-dynamic"])
def test_a_fault_in_rows_that_only_fill_up_a_batch_is_found(precision: str) -> None:
    golden = reference(2)  # in a batch of 3, the last row repeats the first image

    def third_row_wrong(rows: Logits) -> Logits:
        rows[2:] += np.float32(0.1)
        return rows

    comparison = compared(
        precision, golden, Candidate(*healthy(precision, golden), third_row_wrong)
    )
    assert any("between batch sizes" in problem for problem in comparison.problems)


def test_an_image_that_fills_up_a_batch_counts_once() -> None:
    golden = reference(16)
    comparison = compared("int8", golden, Candidate(*healthy("int8", golden)))
    assert {row.images for row in comparison.rows()} == {16}


@pytest.mark.parametrize(("wrong", "images", "refused"), [(1, 16, False), (3, 16, True)])
def test_few_images_condemn_what_is_surely_bad_only(wrong: int, images: int, refused: bool) -> None:
    golden = reference(images)
    assert agreement_is_refused(golden, wrong) == refused


@pytest.mark.parametrize(("wrong", "refused"), [(80, False), (100, True)])
def test_many_images_are_strict(wrong: int, refused: bool) -> None:
    assert agreement_is_refused(reference(2000), wrong) == refused  # int8: 96 % of 2,000 is 80


def agreement_is_refused(golden: Drawn, wrong: int) -> bool:
    """Whether INT8's limit refuses that the first images go to their second class, by a hair."""
    logits = golden.logits.copy()
    second, first = np.argsort(logits[:wrong], axis=1)[:, -2:].T
    rows = np.arange(wrong)
    golden.logits[rows, second] = logits[rows, first] - np.float32(1e-3)
    logits[:wrong] = golden.logits[:wrong]
    logits[rows, second] += np.float32(2e-3)
    problems = compared("int8", golden, Candidate(logits, golden.features)).problems
    assert all("top-1 agreement" in problem for problem in problems)
    return bool(problems)


def test_where_the_reference_does_not_decide_agreement_is_not_judged() -> None:
    golden = reference(2000, classes=1000, lead=0.0)
    comparison = compared("int8", golden, Candidate(*healthy("int8", golden)))
    row = comparison.rows()[0].summary
    assert row["reference_margin_median"] < DECIDED
    assert row["top1_agreement"] < 0.95
    assert comparison.problems == []
    assert any(
        "not judged" in line
        for line in statistics_table(comparison.rows(), comparison.limit, comparison.target)
    )


@pytest.mark.parametrize("precision", LOW)
def test_where_the_reference_does_not_decide_a_fault_is_found_all_the_same(precision: str) -> None:
    golden = reference(16, lead=0.0)
    wrong = Candidate(np.roll(golden.logits, 1, axis=0), golden.features)
    assert compared(precision, golden, wrong).problems


def test_one_image_proves_nothing_of_a_low_precision() -> None:
    golden = reference(1)
    problems = compared("int8", golden, Candidate(golden.logits, golden.features)).problems
    assert any("needs two images or more" in problem for problem in problems)


def test_less_noise_explains_a_smaller_margin() -> None:
    assert explained_margin(20) == pytest.approx(0.1 * 5 * 2**0.5)
    assert explained_margin(40) == pytest.approx(explained_margin(20) / 10)


def test_every_limit_is_on_statistics_that_exist_and_has_its_reason() -> None:
    for limit in LIMITS.values():
        assert {*limit.logits.as_dict(), *limit.others.as_dict()} <= STATISTICS.keys()
        assert len(limit.reason) > 20


def test_a_target_is_held_against_the_logits_besides_the_limit() -> None:
    golden = reference(16)
    candidate = Candidate(*healthy("int8", golden))
    comparison = compared("int8", golden, candidate, parse_target("sqnr_centred_db=40"))
    (problem,) = comparison.problems
    assert problem.startswith("logits, batch 1, 3: target: centred SQNR is 2")
    assert any(
        "target >= 40.0 dB" in line
        for line in statistics_table(comparison.rows(), comparison.limit, comparison.target)
    )


def test_parity_json_holds_what_was_allowed_asked_and_found() -> None:
    golden = reference(16)
    target = parse_target("top1_agreement=0.9,accuracy_drop=0.1")
    comparison = compared("fp8", golden, Candidate(*healthy("fp8", golden)), target)
    result = json.loads(json.dumps(as_json(comparison, {"simulated": "Q/DQ in float32"})))
    assert result["schema_version"] == 2
    assert result["passed"]
    assert result["simulated"] == "Q/DQ in float32"
    assert result["target"] == {"top1_agreement": 0.9, "accuracy_drop": 0.1}
    assert result["limit"]["logits"]["sqnr_centred_db"] == least_db("fp8")
    proofs = [(p["output"], p["batch"], p["statistic"]) for p in result["proofs"]]
    assert proofs == [
        ("logits", batch, name) for batch in (1, 3) for name in ("top1_agreement", "accuracy_drop")
    ]
    logits = result["comparisons"][0]
    assert logits["accuracy"] == logits["reference_accuracy"] > 0.9


def test_without_a_simulation_parity_json_says_none() -> None:
    golden = reference(16)
    comparison = compared("fp32", golden, Candidate(golden.logits, golden.features))
    assert as_json(comparison, {})["simulated"] is None


def test_the_tables_show_nan_without_failing() -> None:
    golden = reference(16)
    candidate = Candidate(nan(golden.logits), golden.features)
    low, exact = compared("int8", golden, candidate), compared("fp32", golden, candidate)
    assert any(
        "flip" in line and "image 3" in line
        for line in statistics_table(low.rows(), low.limit, low.target)
    )
    assert len(list(exact_table(exact.rows()))) == 5
    assert exact.problems == ["logits, batch 1, 3: 1 NaN or Inf; worst is image 3"]
