"""Results as one self-contained HTML page: no network, no script, no other file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vit_edge.parity.report import plots
from vit_edge.parity.report.numbers import tables
from vit_edge.parity.report.pictures import Pictures, data_uri, worst_images
from vit_edge.parity.report.sections import (
    Column,
    Section,
    device_words,
    devices,
    merged,
    overall,
    separate_note,
)
from vit_edge.parity.result import (
    DIED,
    FAIL,
    INCONCLUSIVE,
    PASS,
    Check,
    Choice,
    ImageAnswers,
    Result,
    Run,
)
from vit_edge.report.page import filled

TEMPLATES = Path(__file__).parent / "templates"
_CLASSES_SHOWN = 3  # of each answer: a flip and what came close

_HEADLINES = {
    PASS: "Parity holds",
    FAIL: "Parity failed",
    INCONCLUSIVE: "Parity is inconclusive",
    DIED: "Parity failed",
}
_WORDS = {PASS: "passed", FAIL: "failed", INCONCLUSIVE: "inconclusive", DIED: "died"}
_MARKS = {PASS: "✓", FAIL: "✗", INCONCLUSIVE: "?", DIED: "✗"}


class Answer(NamedTuple):
    """What one backend, or the reference, said of an image."""

    who: str
    first: str
    rest: str  # the next classes
    change: str  # how far it is from the reference; empty for the reference itself
    flipped: bool


class Card(NamedTuple):
    """One image and its answers."""

    name: str
    picture: str | None  # a data URI
    answers: list[Answer]


class Facts(NamedTuple):
    """A list of names and values to fold away."""

    title: str
    entries: list[tuple[str, str]]


def html_page(
    results: Sequence[Result],
    *,
    pictures: Pictures | None = None,
    labels: Sequence[str] | None = None,
) -> str:
    """Render results as one page.

    Args:
        results: What `vit_edge.parity.run.compare` returned, or `read_result` read.
        pictures: (sha256 of the golden file, image index) -> uint8[H, W, 3]; `pictures_of` reads
            them. Images without one are shown by name.
        labels: Class names; without them classes are shown by number.

    Returns:
        The page. Every text in the results is escaped, and the page's own policy forbids scripts
        and everything from elsewhere.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    sections = merged(results)
    verdict = overall(results)
    return filled(
        TEMPLATES,
        verdict=verdict,
        headline=_HEADLINES[verdict],
        words=_WORDS,
        marks=_MARKS,
        summary=_summary(results),
        note=separate_note(sections),
        machines=[
            (device, device_words(result), result.created, result.tool)
            for device, result in zip(devices(len(results)), results, strict=True)
        ],
        sections=[
            _view(section, f"s{place}", pictures or {}, labels)
            for place, section in enumerate(sections)
        ],
    )


def _summary(results: Sequence[Result]) -> str:
    """How many runs ended how, in words."""
    verdicts = [run.verdict for result in results for run in result.runs]
    if not verdicts:
        return "Nothing was compared, so nothing is shown."
    counts = [f"{verdicts.count(v)} {word}" for v, word in _WORDS.items() if v in verdicts]
    backends = f"{len(verdicts)} backend{'s' * (len(verdicts) > 1)}"
    machines = f" on {len(results)} machines" if len(results) > 1 else ""
    return f"{backends}{machines}: {', '.join(counts)}."


def _view(
    section: Section, prefix: str, pictures: Pictures, labels: Sequence[str] | None
) -> dict[str, Any]:
    """What the template shows of a section."""
    return {
        "title": section.title,
        "question": section.question,
        "columns": section.columns,
        "reason": next(filter(None, (column.run.limit_reason for column in section.columns)), ""),
        "tables": tables(section),
        "checks": _checks(section.columns),
        "figures": list(plots.figures(section, prefix)),
        "cards": list(_cards(section, pictures, labels)),
        "facts": list(_facts(section)),
    }


def _checks(columns: Sequence[Column]) -> list[tuple[str, list[Check | None]]]:
    """Check -> what each run found, None where it did not get there."""
    by_name = [{check.name: check for check in column.run.checks} for column in columns]
    names = dict.fromkeys(name for checks in by_name for name in checks)
    return [(name, [checks.get(name) for checks in by_name]) for name in names]


def _cards(section: Section, pictures: Pictures, labels: Sequence[str] | None) -> Iterator[Card]:
    """The images whose answers changed most."""
    sha256 = section.golden.sha256
    for index in worst_images([column.run for column in section.columns]):
        entries = [
            (column, image)
            for column in section.columns
            for image in column.run.images
            if image.index == index
        ]
        _, first = entries[0]
        picture = pictures.get((sha256, index))
        yield Card(
            first.name,
            None if picture is None else data_uri(picture),
            [
                Answer("reference", *_classes(first.reference, labels), "", False),
                *(
                    _answer(column.label, image, labels, sigmoid=_by_sigmoid(column))
                    for column, image in entries
                ),
            ],
        )


def _answer(
    who: str, image: ImageAnswers, labels: Sequence[str] | None, *, sigmoid: bool
) -> Answer:
    first, rest = _classes(image.candidate, labels)
    ours, theirs = (answer[:1] for answer in (image.candidate, image.reference))
    margin, kl = image.relative_margin, image.kl
    # Of sigmoid scores a class may flip that is not the first.
    flipped = [choice[0] for choice in ours] != [choice[0] for choice in theirs]
    flipped = margin != 0 if sigmoid else flipped
    change = "KL infinite" if kl is None else f"KL {kl:.2g} nats"
    if flipped:
        over = "of a reference that does not vary" if margin is None else f"{margin:.2g} spreads"
        change = f"flip over a margin of {over}, {change}"
    return Answer(who, first, rest, change, flipped)


def _by_sigmoid(column: Column) -> bool:
    return any(row.summary.get("scores") == "sigmoid" for row in column.run.comparisons)


def _classes(answer: Sequence[Choice], labels: Sequence[str] | None) -> tuple[str, str]:
    """The first class with its logit, and the next ones."""
    words = [
        f"{_label(place, labels)} {'no number' if logit is None else f'{logit:.2f}'}"
        for place, logit in answer[:_CLASSES_SHOWN]
    ]
    return (words or ["no answer"])[0], ", ".join(words[1:])


def _label(place: int, labels: Sequence[str] | None) -> str:
    known = labels is not None and place < len(labels)
    return labels[place].partition(",")[0] if known and labels is not None else f"class {place}"


def _facts(section: Section) -> Iterator[Facts]:
    """Everything else that a result says, folded away."""
    for title, value in (
        ("Bundle", section.bundle),
        ("Golden file", section.golden),
        ("Reference bundle", section.first.against),
    ):
        if value is not None:
            entries = dataclasses.asdict(value).items()
            yield Facts(title, [(key, _text(entry)) for key, entry in entries])
    seen = set()
    for column in section.columns:
        if column.device not in seen:
            seen.add(column.device)
            yield Facts(f"Machine {column.device}".strip(), list(column.result.machine.items()))
        yield Facts(f"Backend {column.label}", list(_run_facts(column.run)))


def _run_facts(run: Run) -> Iterator[tuple[str, str]]:
    yield from run.facts.items()
    if run.memory.limited_by is not None:
        limit = run.memory.limit_bytes or 0
        yield "memory limit", f"{limit / 1e6:.0f} MB, kept by {run.memory.limited_by}"
    for output, bounds in (("logits", run.limit.logits), ("others", run.limit.others)):
        for name, bound in bounds.items():
            yield f"limit of {output}: {name}", f"{bound:.4g}"
    for row in run.comparisons:
        numbers = (
            f"{key} {value:.4g}"
            for key, value in row.summary.items()
            if isinstance(value, (int, float)) and key != "images"
        )
        yield row.place, f"{row.images} images: {', '.join(numbers)}"


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
