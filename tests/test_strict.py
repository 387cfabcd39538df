"""Dataclasses from JSON that anybody may have written: what their hints say is what is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from vit_edge.strict import (
    LARGEST_COUNT,
    Check,
    Keys,
    Rest,
    Rules,
    json_from_record,
    json_from_text,
    record_from_json,
)

REST = Rest({"size": int}, {"rate": float | None, "ends": tuple[float, float]})


@dataclass(frozen=True)
class Part:
    name: str
    others: Annotated[Mapping[str, Any], REST] = field(default_factory=dict)


@dataclass(frozen=True)
class Whole:
    version: Literal[3]
    state: Literal["open", "closed"]
    on: bool
    count: int
    number: float
    parts: tuple[Part, ...]
    bounds: Annotated[Mapping[str, float], Keys(frozenset({"low", "high"}))]
    absent: str | None = None

    def __post_init__(self) -> None:
        if self.count != len(self.parts):
            raise ValueError(f"has {len(self.parts)} parts, counted {self.count}")


def whole() -> dict[str, Any]:
    return {
        "version": 3, "state": "open", "on": True, "count": 1, "number": 2,
        "parts": [{"name": "a", "size": 1, "rate": None, "ends": [0, 1.5], "free": [{"x": None}]}],
        "bounds": {"low": -1.5}, "absent": None,
    }  # fmt: skip


def problems(**changes: Any) -> list[str]:
    return record_from_json(Whole, whole() | changes)[1]


def test_what_is_read_is_written_back() -> None:
    record, wrong = record_from_json(Whole, whole())
    assert wrong == []
    assert record.parts[0].others["ends"] == [0, 1.5]  # checked, and kept as it came
    assert json_from_record(record) == whole()


def test_what_has_a_default_may_be_absent_and_nothing_else() -> None:
    value = whole()
    del value["absent"]
    assert record_from_json(Whole, value)[1] == []
    for key in value:
        rest = {name: entry for name, entry in value.items() if name != key}
        assert record_from_json(Whole, rest)[1] == [f"the file lacks {key!r}"]


def test_keys_that_nobody_knows_are_let_through() -> None:
    assert problems(unknown=object()) == []


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("version", 4, "expected 3"),
        ("version", "3", "expected 3"),
        ("state", "ajar", "expected one of open, closed"),
        ("state", ["open"], "expected one of open, closed"),
        ("on", 1, "expected true or false"),
        ("count", True, "expected a whole number from 0 on"),
        ("count", -1, "expected a whole number from 0 on"),
        ("count", 1.0, "expected a whole number from 0 on"),
        ("count", LARGEST_COUNT, "expected a whole number from 0 on"),
        ("number", "1", "expected a finite number"),
        ("number", 1e39, "expected a finite number"),
        ("number", float("nan"), "expected a finite number"),
        ("number", True, "expected a finite number"),
        ("absent", 7, "expected a text"),
        ("parts", {}, "expected a list"),
        ("bounds", [], "expected an object"),
    ],
)
def test_a_value_of_another_kind_is_named_with_what_was_expected(
    key: str, value: Any, expected: str
) -> None:
    (problem,) = problems(**{key: value})
    assert problem == f"{key} is {value!r}, {expected}"


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (7, "parts[0] is 7, expected an object"),
        ({"size": 1}, "parts[0] lacks 'name'"),
        ({"name": "a"}, "parts[0] lacks 'size'"),
        ({"name": "a", "size": "1"}, "parts[0].size is '1', expected a whole number from 0 on"),
        ({"name": "a", "size": 1, "ends": [0]}, "parts[0].ends has 1 entries, expected 2"),
        ({"name": "a", "size": 1, "ends": 0}, "parts[0].ends is 0, expected a list"),
        (
            {"name": "a", "size": 1, "ends": [0, None]},
            "parts[0].ends[1] is None, expected a finite number",
        ),
    ],
)
def test_the_place_of_a_problem_is_named(part: Any, problem: str) -> None:
    assert problems(parts=[part]) == [problem]


def test_a_key_that_is_not_known_is_refused_where_the_keys_are() -> None:
    assert problems(bounds={"middle": 1.0}) == ["bounds has 'middle', known are high, low"]


def test_a_dataclass_can_refuse_what_its_hints_cannot_say() -> None:
    assert problems(count=2) == ["the file has 1 parts, counted 2"]


@dataclass(frozen=True)
class Marked:
    imports: float = field(metadata={"key": "import"})
    pair: Annotated[tuple[int, int], Check("a pair", lambda v: len(v) == 2, tuple)] = (0, 0)
    note: str | None = field(default=None, metadata={"omitted": True})

    def faults(self) -> Iterator[str]:
        if self.imports < 0:
            yield "has negative imports"
        if self.pair == (1, 1):
            yield "has a pair of ones"


def test_metadata_of_a_field_says_its_key_and_when_it_is_not_written() -> None:
    record, wrong = record_from_json(Marked, {"import": 1, "pair": [3, 4]})
    assert (record, wrong) == (Marked(1, (3, 4)), [])
    assert json_from_record(record) == {"import": 1, "pair": [3, 4]}
    assert record_from_json(Marked, {"imports": 1})[1] == ["the file lacks 'import'"]


def test_a_check_of_its_own_is_named_by_its_words() -> None:
    assert record_from_json(Marked, {"import": 1, "pair": [3]})[1] == [
        "pair is [3], expected a pair"
    ]


def test_a_dataclass_can_name_every_fault() -> None:
    assert record_from_json(Marked, {"import": -1, "pair": [1, 1]}, "it")[1] == [
        "it has negative imports",
        "it has a pair of ones",
    ]


def test_rules_refuse_unknown_keys_defaults_and_what_is_too_large() -> None:
    rules = Rules(numbers_below=10, defaults=False, unknown_keys=False)
    assert record_from_json(Marked, {"import": 10, "more": 1}, rules=rules)[1] == [
        "the file lacks 'pair'",
        "the file lacks 'note'",
        "the file has 'more', an unknown key",
        "import is 10, expected a finite number",
    ]


@pytest.mark.parametrize("to_float", [False, True])
def test_a_whole_number_stays_one_unless_the_rules_say_otherwise(to_float: bool) -> None:
    record, _ = record_from_json(Marked, {"import": 1}, rules=Rules(to_float=to_float))
    assert type(record.imports) is (float if to_float else int)


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", '"\\ud800"', "{", "[" * 10**5])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        json_from_text(text)


def test_all_problems_are_listed_at_once() -> None:
    assert len(problems(version=1, state=2, parts=[3, {}])) == 5


def test_a_long_value_is_shortened() -> None:
    (problem,) = problems(state="x" * 1000)
    assert len(problem) < 100
