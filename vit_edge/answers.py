"""What is said of an image: a ranking of classes, outputs of the model, or why there is nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_edge.bundle.scores import Scores
from vit_edge.errors import ImageError


@dataclass(frozen=True)
class Ranked:
    """One class of a ranking."""

    label: str
    index: int
    score: float  # a probability, 0..1; the model's value itself where Prediction.scores is none


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says of one image."""

    top: tuple[Ranked, ...]  # best first
    logits: NDArray[np.float32]  # float32[classes]
    source: str  # the image's path, or what kind of object it was
    scores: Scores = "softmax"  # what made the scores of the logits

    @property
    def label(self) -> str:
        """The best class's label."""
        return self.top[0].label

    @property
    def index(self) -> int:
        """The best class's index."""
        return self.top[0].index

    @property
    def score(self) -> float:
        """The best class's score; see Ranked."""
        return self.top[0].score

    def as_dict(self) -> dict[str, Any]:
        """Label and ranking, ready for JSON; the logits are left out."""
        return {"label": self.label, "scores": self.scores, "top": [*map(asdict, self.top)]}


@dataclass(frozen=True)
class Failure:
    """An image of a batch that could not be used (`on_error="record"`)."""

    source: str
    error: ImageError

    def as_dict(self) -> dict[str, Any]:
        """The error's type and message, ready for JSON."""
        return {"error": type(self.error).__name__, "message": str(self.error)}


@dataclass(frozen=True, eq=False)
class Answer:
    """What one run says of one image (`Predictor.run`)."""

    source: str  # the image's path, or what kind of object it was
    outputs: Mapping[str, NDArray[np.float32]]  # those asked for, without the batch's axis
    prediction: Prediction | None = None  # where "top" was asked for
