"""Accuracies are what counting by hand gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_edge.evaluate.accuracy import accuracy, drop, worst_classes
from vit_edge.evaluate.answers import UNREAD, Answers
from vit_edge.parity.intervals import mcnemar_p_value, wilson_interval

LABELS = tuple("abcdefg")


def answers(pairs: list[tuple[int, int]]) -> Answers:
    labels, chosen = np.array(pairs, np.int32).reshape(-1, 2).T
    return Answers(labels, chosen, chosen == labels)


PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(UNREAD, 6)), min_size=1, max_size=60)


@given(pairs=PAIRS)
def test_top1_counts_what_was_read_and_right(pairs: list[tuple[int, int]]) -> None:
    found = accuracy(answers(pairs), len(LABELS))["top1"]
    read = [(label, chosen) for label, chosen in pairs if chosen != UNREAD]
    right = sum(label == chosen for label, chosen in read)
    assert (found["count"], found["images"]) == (right, len(read))
    assert found["rate"] == (right / len(read) if read else None)
    assert found["interval"] == list(wilson_interval(right, len(read)))


def test_top5_of_five_classes_says_nothing() -> None:
    assert accuracy(answers([(0, 0)]), 5)["top5"] is None
    assert accuracy(answers([(0, 0)]), 6)["top5"]["rate"] == 1.0


@given(pairs=PAIRS, seed=st.integers(0, 9))
def test_a_drop_is_counted_over_what_both_read(pairs: list[tuple[int, int]], seed: int) -> None:
    other = np.random.default_rng(seed).integers(UNREAD, 7, len(pairs)).tolist()
    found = drop(answers(pairs), answers([(p[0], o) for p, o in zip(pairs, other, strict=True)]))
    both = [
        (label, mine, theirs)
        for (label, mine), theirs in zip(pairs, other, strict=True)
        if UNREAD not in (mine, theirs)
    ]
    lost = sum(mine != label == theirs for label, mine, theirs in both)
    won = sum(mine == label != theirs for label, mine, theirs in both)
    assert (found["lost"], found["won"]) == (lost, won)
    assert found["agreement"]["count"] == sum(mine == theirs for _, mine, theirs in both)
    assert found["agreement"]["images"] == len(both)
    assert found["mcnemar_p_value"] == pytest.approx(mcnemar_p_value(lost, won))
    assert found["top1_drop"] == (pytest.approx((lost - won) / len(both)) if both else None)


def test_a_model_against_itself_loses_nothing() -> None:
    same = answers([(0, 0), (1, 2), (2, UNREAD)])
    found = drop(same, same)
    assert (found["top1_drop"], found["mcnemar_p_value"]) == (0.0, 1.0)
    assert found["agreement"]["rate"] == 1.0


def test_the_worst_class_comes_first_with_what_it_is_taken_for() -> None:
    pairs = [(0, 0)] * 9 + [(0, 1)] + [(1, 1)] * 5 + [(2, 2)] * 2 + [(2, 4)] * 3 + [(2, 0)]
    first, second = worst_classes(answers(pairs), LABELS)
    assert (first["label"], first["recall"]["count"], first["recall"]["images"]) == ("c", 2, 6)
    assert [(t["label"], t["count"]) for t in first["taken_for"]] == [("e", 3), ("a", 1)]
    assert second["label"] == "a"


def test_a_class_without_mistakes_or_images_is_not_among_the_worst() -> None:
    assert worst_classes(answers([(0, 0), (3, UNREAD)]), LABELS) == []
