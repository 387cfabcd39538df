"""The structure of a parity result, and whether a value read from a file has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from vit_edge.parity.run import DIED, FAIL, INCONCLUSIVE, PASS, SCHEMA_VERSION
from vit_edge.parity.targets import STATISTICS

# Statistics are of float32 values, counts fit what NumPy counts with: what is larger was not
# written by vit_edge, and would overflow in whoever shows it.
LARGEST_NUMBER = 3.5e38
LARGEST_COUNT = 2**63

# A check yields what is wrong with a value; `where` is its place, such as runs[0].verdict.
Check: TypeAlias = "Callable[[Any, str], Iterator[str]]"


def problems(value: Any) -> list[str]:
    """Everything that keeps a value from being a parity result; empty if nothing does.

    Keys that are not known are let through: they change nothing that is shown.
    """
    return list(_RESULT(value, "the file"))


@dataclass(frozen=True)
class _Plain:
    words: str
    holds: Callable[[Any], bool]

    def __call__(self, value: Any, where: str) -> Iterator[str]:
        if not self.holds(value):
            yield f"{where} is {_shown(value)}, expected {self.words}"


@dataclass(frozen=True)
class _Optional:
    check: Check

    def __call__(self, value: Any, where: str) -> Iterator[str]:
        if value is not None:
            yield from self.check(value, where)


@dataclass(frozen=True)
class _Items:
    check: Check
    exactly: int | None = None

    def __call__(self, value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, list):
            yield f"{where} is {_shown(value)}, expected a list"
            return
        if self.exactly is not None and len(value) != self.exactly:
            yield f"{where} has {len(value)} entries, expected {self.exactly}"
        for index, item in enumerate(value):
            yield from self.check(item, f"{where}[{index}]")


@dataclass(frozen=True)
class _Values:
    """A mapping with any keys, or with known ones that may be absent."""

    check: Check
    keys: frozenset[str] | None = None

    def __call__(self, value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{where} is {_shown(value)}, expected an object"
            return
        for key, item in value.items():
            if self.keys is not None and key not in self.keys:
                yield f"{where} has {_shown(key)}, known are {', '.join(sorted(self.keys))}"
            yield from self.check(item, f"{where}[{_shown(key)}]")


@dataclass(frozen=True)
class _Object:
    """A mapping that has these keys, and perhaps the optional ones."""

    keys: Mapping[str, Check]
    optional: Mapping[str, Check] = field(default_factory=dict)

    def __call__(self, value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{where} is {_shown(value)}, expected an object"
            return
        for key, check in {**self.keys, **self.optional}.items():
            if key in value:
                yield from check(value[key], f"{where}.{key}".removeprefix("the file."))
            elif key in self.keys:
                yield f"{where} lacks {key!r}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST_COUNT


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST_NUMBER


def _scattered(value: Any, where: str) -> Iterator[str]:
    found = list(_POINTS(value, where))
    yield from found
    if not found and len(value["reference"]) != len(value["candidate"]):
        yield f"{where} has {len(value['reference'])} and {len(value['candidate'])} values"


_TEXT = _Plain("a text", lambda value: isinstance(value, str))
_NUMBER = _Plain("a finite number", _finite)
_COUNT = _Plain("a whole number from 0 on", _whole)
_BOOL = _Plain("true or false", lambda value: isinstance(value, bool))
_VERDICT = _Plain(
    f"one of {PASS}, {FAIL}, {INCONCLUSIVE}, {DIED}",
    lambda value: value in (PASS, FAIL, INCONCLUSIVE, DIED),
)
_VERSION = _Plain(f"{SCHEMA_VERSION}", lambda value: value == SCHEMA_VERSION)
_TEXTS, _FACTS = _Items(_TEXT), _Values(_TEXT)
_BOUNDS = _Values(_NUMBER, frozenset(STATISTICS))
_POINTS = _Object({"reference": _Items(_NUMBER), "candidate": _Items(_NUMBER)})
_INTERVAL = _Items(_NUMBER, exactly=2)
_BUNDLE = _Object(
    {"name": _TEXT, "variant": _TEXT, "precision": _TEXT, "model_sha256": _TEXT,
     "model_bytes": _COUNT}
)  # fmt: skip
_ROW = _Object(
    {"output": _TEXT, "batch": _COUNT, "images": _COUNT, "non_finite": _COUNT},
    {name: _Optional(_NUMBER) for name in (*STATISTICS, "reference_margin_median")}
    | {s.interval: _Optional(_INTERVAL) for s in STATISTICS.values() if s.interval}
    | {"flips": _Optional(_COUNT), "labelled": _Optional(_COUNT)},
)


def _choice(value: Any, where: str) -> Iterator[str]:
    """[class, logit]: a logit that is no number is null."""
    if not isinstance(value, list) or len(value) != 2:
        yield f"{where} is {_shown(value)}, expected [class, logit]"
        return
    yield from _COUNT(value[0], f"{where}[0]")
    yield from _Optional(_NUMBER)(value[1], f"{where}[1]")


_IMAGE = _Object(
    {"index": _COUNT, "name": _TEXT, "reference": _Items(_choice), "candidate": _Items(_choice),
     "kl": _Optional(_NUMBER), "relative_margin": _Optional(_NUMBER)}
)  # fmt: skip
_RUN = _Object(
    {
        "name": _TEXT, "verdict": _VERDICT, "problems": _TEXTS, "open_questions": _TEXTS,
        "death": _Optional(_TEXT), "facts": _FACTS, "simulated": _Optional(_TEXT),
        "limit": _Object({}, {"logits": _BOUNDS, "others": _BOUNDS,
                              "top1_agreement_surely_below": _Optional(_NUMBER)}),
        "limit_reason": _TEXT, "target": _Optional(_BOUNDS), "comparisons": _Items(_ROW),
        "checks": _Items(_Object({"name": _TEXT, "passed": _BOOL, "detail": _TEXT})),
        "images": _Items(_IMAGE), "scatter": _scattered,
        "blocks": _Optional(_Items(_Object({"tap": _TEXT, "sqnr_db": _Optional(_NUMBER)}))),
        "localized": _Optional(_TEXT),
        "memory": _Object(
            {"limit_bytes": _Optional(_COUNT)},
            {"limited_by": _Optional(_TEXT), "peak_rss_bytes": _Optional(_COUNT),
             "peak_anonymous_bytes": _Optional(_COUNT)},
        ),
        "seconds": _Object({"total": _NUMBER, "running": _NUMBER}),
    }
)  # fmt: skip
_RESULT = _Object(
    {
        "schema_version": _VERSION, "tool": _TEXT, "created": _TEXT, "machine": _FACTS,
        "bundle": _BUNDLE, "against": _Optional(_BUNDLE),
        "golden": _Object(
            {"name": _TEXT, "sha256": _TEXT, "images": _COUNT, "reference_dtype": _TEXT}
        ),
        "runs": _Items(_RUN),
    }
)  # fmt: skip
