"""What a model answers to labelled images, asked in one go or, with a journal, in several."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_edge.bundle import Bundle
from vit_edge.cli.progress import Progress
from vit_edge.evaluate.journal import Journal, Stamp
from vit_edge.images.classnames import no_and_yes
from vit_edge.images.folders import Labelled, LabelledImage, Unreadable, as_counted
from vit_edge.predictor import Failure, Predictor

TOP = 5  # the second accuracy of ImageNet papers
UNREAD = -1  # stands for the class of an image that could not be read


class Answers(NamedTuple):
    """What a model answered to N images: 9 bytes each."""

    labels: NDArray[np.int32]  # [N], the true classes
    chosen: NDArray[np.int32]  # [N], the best classes, UNREAD where there is no answer
    in_top: NDArray[np.bool_]  # [N], whether the true class is among the best TOP

    @classmethod
    def empty(cls, images: int) -> Answers:
        """No answers yet."""
        unread = np.full(images, UNREAD, np.int32)
        return cls(unread.copy(), unread, np.zeros(images, np.bool_))

    @property
    def read(self) -> NDArray[np.bool_]:
        """bool[N]: whether there is an answer."""
        read: NDArray[np.bool_] = self.chosen != UNREAD
        return read

    @property
    def right(self) -> NDArray[np.bool_]:
        """bool[N]: whether it is the true class."""
        right: NDArray[np.bool_] = self.read & (self.chosen == self.labels)
        return right


@dataclass
class Asked:
    """One model's answers to all images, and what could not be read."""

    answers: Answers
    facts: dict[str, str]
    unreadable: Unreadable = field(default_factory=Unreadable)


def class_names(bundle: Bundle) -> tuple[str, ...]:
    """Name the classes that an image is counted in: a single logit tells no from yes."""
    labels = bundle.labels
    return no_and_yes(labels[0]) if len(labels) == 1 else labels


def ask(
    bundle: Bundle,
    images: Labelled,
    backend: str,
    batch_size: int | None,
    *,
    role: str,
    journal: Journal | None = None,
) -> Asked:
    """Classify every image once. Memory grows by 9 bytes an image.

    Args:
        bundle: The model.
        images: With their classes.
        backend: See `Predictor`.
        batch_size: See `Predictor.stream`; None for its default.
        role: What the journal calls this model.
        journal: Answers that need not be asked for again, and where new ones go.

    Raises:
        BackendError: The runtime is missing or refuses the model.
        InputError: The journal is that of another run, or the images changed meanwhile.
        PredictionError: The model answered NaN or Inf.
    """
    with (
        Predictor(bundle, backend) as predictor,
        Progress(role, len(images)) as progress,
    ):
        answered = Asked(Answers.empty(len(images)), dict(predictor.facts))
        if journal is not None:
            journal.begin(role, _identity(bundle, answered.facts, batch_size))
        asked: deque[tuple[int, LabelledImage, Stamp]] = deque()

        def unanswered() -> Iterator[Path]:
            for index, image in enumerate(as_counted(images)):
                answered.answers.labels[index] = image.label
                stamp = Stamp.of(image.path)
                known = None if journal is None else journal.find(role, image, stamp)
                if known is None:
                    asked.append((index, image, stamp))
                    yield image.path
                else:
                    _take(answered.answers, index, image, known)
                    progress(1, free=True)

        top_k = min(TOP, len(bundle.labels))
        stream = predictor.stream(unanswered(), top_k, batch_size=batch_size, on_error="record")
        for outcome in stream:
            index, image, stamp = asked.popleft()
            progress(1)
            if isinstance(outcome, Failure):
                answered.unreadable.add(outcome.error)
                continue
            classes = tuple(ranked.index for ranked in outcome.top)
            if len(bundle.labels) == 1:
                classes = (int(outcome.logits[0] >= 0),)
            _take(answered.answers, index, image, classes)
            if journal is not None:
                journal.add(role, image, stamp, classes)
    return answered


def _take(answers: Answers, index: int, image: LabelledImage, classes: tuple[int, ...]) -> None:
    answers.chosen[index] = classes[0]
    answers.in_top[index] = image.label in classes


def _identity(bundle: Bundle, facts: dict[str, str], batch_size: int | None) -> dict[str, Any]:
    """What must be equal for answers to be those of the same run."""
    kept = (
        "backend", "runtime", "provider", "precision", "simulated", "decoding", "chosen",
        "execution_precision", "accuracy_level", "mode", "split_tokens",
    )  # fmt: skip
    return {
        "model_sha256": bundle.model_sha256,
        "preprocessing": dataclasses.asdict(bundle.manifest.preprocessing),
        **{name: facts[name] for name in kept if name in facts},
        "batch_size": batch_size,
    }
