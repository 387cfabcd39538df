"""Measure accuracy on labelled images."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_edge import __version__, backends
from vit_edge.bundle import Bundle
from vit_edge.errors import InputError, UsageError
from vit_edge.evaluate.accuracy import accuracy, drop, worst_classes
from vit_edge.evaluate.answers import Asked, ask, class_names
from vit_edge.evaluate.journal import Journal
from vit_edge.images.folders import FOLDERS, read_labelled
from vit_edge.machine.facts import machine_facts

_LOG = logging.getLogger(__name__)

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Share:
    """A share of images, with its 95 % interval (Wilson)."""

    count: int
    images: int
    rate: float | None  # None: of no images
    interval: tuple[float, float]

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> Share | None:
        """Read what `accuracy.rate` gives."""
        return None if record is None else cls(**{**record, "interval": tuple(record["interval"])})


@dataclass(frozen=True)
class Evaluation:
    """How often a model is right."""

    bundle: Bundle
    images: int  # that were read
    unreadable: int  # images that count nowhere
    top1: Share
    top5: Share | None  # None: there are no more than five classes
    agreement: Share | None  # with the reference; None without one
    top1_drop: float | None  # what was lost against it, as a share
    top1_drop_interval: tuple[float, float] | None
    record: Mapping[str, Any]  # all of it, as the command's --json has it

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return dict(self.record)


def evaluate(
    bundle: str | os.PathLike[str] | Bundle,
    images: str | os.PathLike[str],
    *,
    labels_from: str | os.PathLike[str] = FOLDERS,
    backend: str = backends.AUTO,
    batch: int | None = None,
    against: str | os.PathLike[str] | Bundle | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """Measure top-1 and top-5 accuracy, and what was lost against another bundle.

    Args:
        bundle: Its directory, or a Bundle that was read.
        images: The folder of images.
        labels_from: "folders": they lie in folders called like their classes; or a CSV file,
            path,label a line.
        backend: A backend's name.
        batch: Images at a time; by default 8.
        against: The reference, such as the fp32 bundle.
        resume: A file that keeps answers; an interrupted evaluation goes on from them.

    Raises:
        UsageError: The two bundles cannot be compared, or there are no classes.
        InputError: The images cannot be used: nothing to read, or no such classes.
    """
    candidate = Bundle.read(bundle)
    other = None if against is None else Bundle.read(against)
    same = other is None or (
        other.labels == candidate.labels and other.manifest.scores == candidate.manifest.scores
    )
    if other is not None and not same:
        raise UsageError(
            f"{other.path} and {candidate.path} have different labels or scores: their accuracy "
            "cannot be compared image by image"
        )
    if candidate.manifest.scores == "none" and candidate.labels:
        raise UsageError(
            f"{candidate.path}: its outputs are values, as regression gives them, and no scores of "
            "classes: there is no accuracy to speak of. Predictor gives the values"
        )
    folder = Path(images)
    labelled = read_labelled(folder, str(labels_from), candidate.labels)
    with contextlib.ExitStack() as stack:
        journal = None
        if resume is not None:
            journal = stack.enter_context(Journal(Path(resume)))
            _LOG.info("%s: %s answers are there", resume, f"{len(journal):,}")
        # One after the other: a small device may not hold two models.
        asked = ask(candidate, labelled, backend, batch, role="candidate", journal=journal)
        _require_any(asked, folder)
        pair = None
        if other is not None:
            pair = other, ask(other, labelled, backend, batch, role="reference", journal=journal)
            _require_any(pair[1], folder)
    record = result(candidate, asked, pair)
    compared = record["against"]
    top1 = Share.of(record["top1"])
    assert top1 is not None  # `accuracy` always counts it
    return Evaluation(
        bundle=candidate,
        images=record["images"],
        unreadable=record["unreadable"]["count"],
        top1=top1,
        top5=Share.of(record["top5"]),
        agreement=None if compared is None else Share.of(compared["agreement"]),
        top1_drop=None if compared is None else compared["top1_drop"],
        top1_drop_interval=None if compared is None else tuple(compared["top1_drop_interval"]),
        record=record,
    )


def _require_any(asked: Asked, data: Path) -> None:
    if not asked.answers.read.any():
        raise InputError(f"{data}: none of its images could be read{asked.unreadable.text()}")


def result(bundle: Bundle, asked: Asked, against: tuple[Bundle, Asked] | None) -> dict[str, Any]:
    """What an evaluation found, ready for JSON.

    Args:
        bundle: The candidate.
        asked: Its answers.
        against: The reference and its answers to the same images.
    """
    labels = class_names(bundle)
    classes = len(labels)
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": f"vit_edge {__version__}",
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "bundle": _described(bundle, asked.facts),
        "scores": bundle.manifest.scores,
        "classes": len(bundle.labels),
        "images": int(asked.answers.read.sum()),
        "unreadable": asked.unreadable.as_dict(),
        **accuracy(asked.answers, classes),
        "worst_classes": worst_classes(asked.answers, labels),
        "against": None
        if against is None
        else {
            "bundle": _described(against[0], against[1].facts),
            **accuracy(against[1].answers, classes),
            **drop(asked.answers, against[1].answers),
        },
    }


def _described(bundle: Bundle, facts: dict[str, str]) -> dict[str, Any]:
    return {
        "name": bundle.path.resolve().name,
        "variant": bundle.manifest.variant,
        "precision": bundle.manifest.precision,
        "model_sha256": bundle.model_sha256,
        "facts": facts,
    }
