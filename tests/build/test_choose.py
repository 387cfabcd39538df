"""Picking a way to run a bundle from what was measured."""

from __future__ import annotations

import dataclasses

import pytest

from vit_edge.build.choose import Measured, choose
from vit_edge.errors import ParityError, ResourceError

ORT = Measured("ort", {}, latency_ms={1: 10.0, 8: 90.0}, peak_anonymous_bytes=50_000_000)
OPENVINO = Measured("openvino", {}, latency_ms={1: 12.0, 8: 70.0}, peak_anonymous_bytes=300_000_000)


def test_each_batch_size_gets_its_fastest() -> None:
    assert choose([ORT, OPENVINO], [1, 8], one=False) == {1: 0, 8: 1}


def test_one_for_all_is_the_one_that_loses_least() -> None:
    """12 of 10 and 70 of 70 against 10 of 10 and 90 of 70."""
    assert choose([ORT, OPENVINO], [1, 8], one=True) == {1: 1, 8: 1}


@pytest.mark.parametrize(
    "fault",
    [{"parity": ("logits: wrong",)}, {"refused": "no kernel"}, {"over_limit": "needed more"}],
)
def test_what_is_wrong_refused_or_too_large_is_never_chosen(fault: dict[str, object]) -> None:
    fastest = dataclasses.replace(ORT, latency_ms={1: 0.1, 8: 0.1}, **fault)  # type: ignore[arg-type]
    assert choose([fastest, OPENVINO], [1, 8], one=False) == {1: 1, 8: 1}


def test_where_nothing_fits_the_least_is_named() -> None:
    setups = [dataclasses.replace(setup, over_limit="killed") for setup in (OPENVINO, ORT)]
    with pytest.raises(ResourceError, match="ort came closest, with 50 MB"):
        choose(setups, [1], one=True)


def test_where_nothing_answers_right_the_nearest_is_named() -> None:
    wrong = [
        dataclasses.replace(ORT, parity=("a", "b")),
        dataclasses.replace(OPENVINO, parity=("logits: 1.2e-3 apart",)),
    ]
    with pytest.raises(ParityError, match="openvino came closest:\n  logits: 1.2e-3 apart"):
        choose(wrong, [1], one=False)


def test_where_nothing_runs_every_reason_is_given() -> None:
    with pytest.raises(ResourceError, match="ort: too old"):
        choose([dataclasses.replace(ORT, refused="too old")], [1], one=False)
