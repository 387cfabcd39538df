"""How far apart tensors lie, and which of a graph's steps can be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_edge.backends import ort
from vit_edge.bundle import Bundle
from vit_edge.errors import UsageError
from vit_edge.parity.localize import localize
from vit_edge.parity.localize.localize import Step
from vit_edge.parity.localize.taps import Apart, Tap, boundaries, inside, present, tapped

requires = ("onnxruntime",)

RANDOM = np.random.default_rng(0)


def sqnr_db(found: Any, expected: Any, *, scaled: bool = False) -> float:
    apart = Apart(scaled=scaled)
    apart.add(found, expected)
    return apart.sqnr_db()


def test_noise_is_measured_against_what_varies_in_its_channel() -> None:
    values = RANDOM.standard_normal((400, 8))
    noisy = values + 0.1 * RANDOM.standard_normal((400, 8))
    assert sqnr_db(noisy, values) == pytest.approx(20, abs=0.5)
    assert sqnr_db(values, values) == 300


def test_a_huge_channel_does_not_hide_a_fault_in_another() -> None:
    values = RANDOM.standard_normal((400, 8))
    values[:, 0] = 1400 + 10 * values[:, 0]
    wrong = values.copy()
    wrong[:, 5] = 0
    assert sqnr_db(wrong, values) == pytest.approx(10 * np.log10(8), abs=0.5)


def test_a_factor_and_an_offset_count_unless_they_are_allowed() -> None:
    values = RANDOM.standard_normal((400, 8))
    other = values * np.linspace(0.1, 10, 8) + np.arange(8)
    assert sqnr_db(other, values) < 3
    assert sqnr_db(other, values, scaled=True) > 100
    mixed = other[:, ::-1]
    assert sqnr_db(mixed, values, scaled=True) < 3


def test_nans_are_as_far_apart_as_can_be() -> None:
    values = RANDOM.standard_normal((4, 8))
    assert sqnr_db(np.full((4, 8), np.nan), values) == -300


def test_what_a_graph_lacks_is_bridged(testing_bundle: Bundle) -> None:
    last = present(inside(1), testing_bundle)
    assert "block 1, qkv" not in {tap.place for tap in last}  # one token asks there
    attention = next(tap for tap in last if tap.place == "block 1, attention")
    assert attention.inputs == ("blocks.1.norm1/LayerNormalization:0",)


def test_a_tapped_bundle_shows_its_steps_and_answers_as_before(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    taps = present([*boundaries(2), *inside(0)[1:-1], *inside(1)[1:-1]], testing_bundle)
    shown = tapped(testing_bundle, taps, tmp_path)
    shape = testing_bundle.manifest.input.shape[1:]
    pixels = RANDOM.standard_normal((2, *shape)).astype(np.float32)
    found = ort.load(shown).run(pixels)
    expected = ort.load(testing_bundle).run(pixels)["logits"]
    assert np.abs(found["logits"] - expected).max() <= 1e-5 * np.abs(expected).max()
    specs = {spec.name: spec.shape[1:] for spec in shown.manifest.outputs}
    for tap in taps:
        assert found[tap.output].shape == (2, *specs[tap.output])


# The place to blame


def steps(*sqnr_db: float) -> list[Step]:
    taps = [Tap(str(n), f"place {n}", (str(n - 1),)) for n in range(len(sqnr_db))]
    return [Step(tap, value, 1.0) for tap, value in zip(taps, sqnr_db, strict=True)]


def test_the_first_large_fall_is_to_blame_and_not_the_noise_it_brings() -> None:
    found = localize._largest_fall(steps(300, 44, 42, 12, 8, 5), ceiling_db=45)
    assert found is not None
    assert found.tap.place == "place 3"


def test_noise_that_grows_step_by_step_has_no_place() -> None:
    rising = steps(300, 44, 40, 36, 32, 28)
    assert localize._largest_fall(rising, ceiling_db=45) is None
    assert localize._spread_out(rising).startswith("no single place: from place 0 to place 5")


@pytest.mark.parametrize(
    ("plain_db", "tapped_db", "said"),
    [
        (8.0, 40.0, "looking there lifts the logits from 8 dB to 40 dB: the fault is in what"),
        (8.0, 9.0, "after block 0, the final norm or the head: SQNR falls from 300 dB to 8 dB"),
        (123.0, 123.0, "no single place"),
    ],
)
def test_what_no_block_explains_is_in_a_fusion_or_behind_them_or_nowhere(
    testing_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    plain_db: float,
    tapped_db: float,
    said: str,
) -> None:
    search = localize._Search(
        testing_bundle, testing_bundle, "ort", testing_bundle.golden_path, None, None
    )
    answers = iter([plain_db, tapped_db])
    monkeypatch.setattr(search, "_ask", lambda *_: next(answers))
    taps = present(boundaries(1), testing_bundle)
    assert search.elsewhere([Step(tap, 300.0, 1.0) for tap in taps]).startswith(said)


def test_only_a_float32_bundle_of_the_same_model_is_a_reference(
    testing_bundle: Bundle, bundle: Bundle
) -> None:
    import dataclasses

    int8 = dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, precision="int8")
    )
    with pytest.raises(UsageError, match="needs the float32 graph"):
        localize.check_pair(testing_bundle, int8)
    shape = dataclasses.replace(bundle.manifest.architecture, depth=3)  # type: ignore[type-var]
    other = dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, architecture=shape)
    )
    with pytest.raises(UsageError, match="is not the model of"):
        localize.check_pair(testing_bundle, other)
