"""Predict with a bundle: images in, ranked labels out, whatever the runtime."""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from vit_edge import backends, cpus
from vit_edge.backends import Backend
from vit_edge.bundle import Bundle
from vit_edge.errors import ImageError, PredictionError, UsageError
from vit_edge.images import ImageLike, ImageLimits, describe
from vit_edge.preprocess import preprocess

OnError = Literal["raise", "skip", "record"]

DEFAULT_TOP_K = 5
STREAM_BATCH = 8  # keeps a stream's memory small; ONNX Runtime's arena only ever grows (FACTS)


@dataclass(frozen=True)
class Ranked:
    """One class of a ranking."""

    label: str
    index: int
    score: float  # softmax probability, 0..1


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says of one image."""

    top: tuple[Ranked, ...]  # best first
    logits: NDArray[np.float32]  # float32[classes]

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
        """The best class's softmax probability."""
        return self.top[0].score


@dataclass(frozen=True)
class Failure:
    """An image of a batch that could not be used (`on_error="record"`)."""

    source: str
    error: ImageError


class Predictor:
    """A bundle, opened in one runtime. Thread-safe, picklable, a context manager.

    >>> Predictor("bundles/base-patch16-224").predict("cat.jpg").label  # doctest: +SKIP
    'Egyptian cat'
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        backend: str | Backend = "ort",
        *,
        image_limits: ImageLimits | None = None,
    ) -> None:
        """Open a bundle.

        Args:
            bundle: Its directory, or a Bundle that was read.
            backend: A backend's name for its defaults, or one that was loaded with options:
                `ort.load(Bundle.read(path), threads=2)`.
            image_limits: What images are refused for; see images.ImageLimits.

        Raises:
            BundleError: The bundle is incomplete, inconsistent or changed.
            BackendError: The runtime is missing or refuses the model.
        """
        self._bundle = bundle if isinstance(bundle, Bundle) else Bundle.read(bundle)
        self._backend_name = backend if isinstance(backend, str) else None
        self._limits = image_limits or ImageLimits()
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._backend: Backend | None = (
            backends.module(backend).load(self._bundle) if isinstance(backend, str) else backend
        )

    @property
    def bundle(self) -> Bundle:
        """The bundle this predictor answers from."""
        return self._bundle

    @property
    def labels(self) -> tuple[str, ...]:
        """One per class."""
        return self._bundle.labels

    @property
    def facts(self) -> Mapping[str, str]:
        """What really runs: runtime, version, device, provider, precision, threads, engine."""
        return self._opened().facts

    def predict(self, image: ImageLike, top_k: int = DEFAULT_TOP_K) -> Prediction:
        """Classify one image.

        Args:
            image: A path, encoded bytes, a binary file, a PIL image, or uint8[H, W, 3] RGB.
            top_k: How many classes to rank; at most all of them.

        Raises:
            ImageError: The image cannot be used.
            PredictionError: The model answered NaN or Inf.
        """
        return self.predict_batch([image], top_k)[0]

    @overload
    def predict_batch(
        self,
        images: Sequence[ImageLike],
        top_k: int = ...,
        *,
        on_error: Literal["raise", "skip"] = ...,
    ) -> list[Prediction]: ...

    @overload
    def predict_batch(
        self, images: Sequence[ImageLike], top_k: int = ..., *, on_error: OnError
    ) -> list[Prediction | Failure]: ...

    def predict_batch(
        self,
        images: Sequence[ImageLike],
        top_k: int = DEFAULT_TOP_K,
        *,
        on_error: OnError = "raise",
    ) -> list[Prediction] | list[Prediction | Failure]:
        """Classify images, as many at once as the bundle's max batch allows.

        Args:
            images: Any number, also none.
            top_k: How many classes to rank.
            on_error: What a bad image does: end the batch, be left out, or leave a Failure in
                its place.
        """
        batch = min(self._bundle.manifest.max_batch, max(len(images), 1))
        return list(self.stream(images, top_k, batch_size=batch, on_error=on_error))

    @overload
    def stream(
        self,
        images: Iterable[ImageLike],
        top_k: int = ...,
        *,
        batch_size: int | None = ...,
        on_error: Literal["raise", "skip"] = ...,
    ) -> Iterator[Prediction]: ...

    @overload
    def stream(
        self,
        images: Iterable[ImageLike],
        top_k: int = ...,
        *,
        batch_size: int | None = ...,
        on_error: OnError,
    ) -> Iterator[Prediction | Failure]: ...

    def stream(
        self,
        images: Iterable[ImageLike],
        top_k: int = DEFAULT_TOP_K,
        *,
        batch_size: int | None = None,
        on_error: OnError = "raise",
    ) -> Iterator[Prediction | Failure]:
        """Classify any number of images in order, decoding the next ones while the model runs.

        Memory stays bounded: at most three batches of images are decoded or waiting.

        Args:
            images: Read as the answers are consumed.
            top_k: How many classes to rank.
            batch_size: At most the bundle's max batch; by default 8 or that.
            on_error: As in `predict_batch`.
        """
        self._require("logits", "python -m vit_edge.export --outputs logits,features")
        if top_k < 1:
            raise UsageError(f"top_k must be at least 1, not {top_k}")
        for outcome in self._answers(images, "logits", batch_size, on_error):
            if isinstance(outcome, Failure):
                yield outcome
            else:
                yield self._prediction(outcome, top_k)

    def features(
        self, images: Sequence[ImageLike], *, on_error: Literal["raise", "skip"] = "raise"
    ) -> NDArray[np.float32]:
        """The class token after the last LayerNorm: float32[N, D], one row per image.

        Args:
            images: Any number, also none.
            on_error: "skip" leaves bad images out.
        """
        self._require("features", "python -m vit_edge.export --outputs logits,features")
        if isinstance(images, (str, bytes, os.PathLike)):
            raise UsageError("features takes a sequence of images; put a single one into a list")
        rows = [
            row
            for row in self._answers(images, "features", None, on_error)
            if not isinstance(row, Failure)
        ]
        width = self._bundle.manifest.architecture.width
        return np.stack(rows) if rows else np.empty((0, width), np.float32)

    def close(self) -> None:
        """Give the runtime back; a second call does nothing."""
        with self._lock:
            if self._backend is not None:
                self._backend.close()
            self._backend = None

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, object]:
        """What another process needs to reopen the bundle."""
        return {
            "bundle": str(self._bundle.path.resolve()),
            "backend": self._backend_name or self._backend,
            "image_limits": self._limits,
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _opened(self) -> Backend:
        """The backend, reopened where this process was forked off: threads do not survive that."""
        with self._lock:
            if self._backend is None:
                raise UsageError("this predictor is closed")
            if self._pid != os.getpid():
                if self._backend_name is None:
                    raise UsageError(
                        "this predictor was opened before a fork, with a backend made by hand: "
                        "open it in the child, or pass the backend by name"
                    )
                # The parent's runtime is never destroyed here: it would wait for its threads.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._backend))
                self._backend = backends.module(self._backend_name).load(self._bundle)
                self._pid = os.getpid()
            return self._backend

    def _require(self, output: str, remedy: str) -> None:
        if self._bundle.manifest.output(output) is None:
            names = [tensor.name for tensor in self._bundle.manifest.outputs]
            raise UsageError(
                f"{self._bundle.path} has no {output}, only {', '.join(names)}; "
                f"export it again: {remedy}"
            )

    def _answers(
        self,
        images: Iterable[ImageLike],
        output: str,
        batch_size: int | None,
        on_error: OnError,
    ) -> Iterator[NDArray[np.float32] | Failure]:
        """One answer per image, in order; decoding runs ahead of the model by two batches."""
        if on_error not in ("raise", "skip", "record"):
            raise UsageError(f'on_error must be "raise", "skip" or "record", not {on_error!r}')
        max_batch = self._bundle.manifest.max_batch
        size = min(STREAM_BATCH, max_batch) if batch_size is None else batch_size
        if not 1 <= size <= max_batch:
            raise UsageError(f"batch_size must lie between 1 and {max_batch}, not {batch_size}")
        if isinstance(images, Sequence) and len(images) < 2:  # no thread for a single image
            yield from self._run([self._pixels(image) for image in images], output, on_error)
            return
        waiting: deque[Future[NDArray[np.float32] | Failure]] = deque()
        with ThreadPoolExecutor(cpus.usable_cpus(), "vit_edge-decode") as pool:
            try:
                for image in images:
                    waiting.append(pool.submit(self._pixels, image))
                    if len(waiting) >= 3 * size:
                        batch = [waiting.popleft().result() for _ in range(size)]
                        yield from self._run(batch, output, on_error)
                while waiting:
                    count = min(size, len(waiting))
                    batch = [waiting.popleft().result() for _ in range(count)]
                    yield from self._run(batch, output, on_error)
            finally:
                for future in waiting:
                    future.cancel()

    def _pixels(self, image: ImageLike) -> NDArray[np.float32] | Failure:
        try:
            return preprocess(image, self._bundle.manifest.preprocessing, self._limits)
        except ImageError as error:
            return Failure(describe(image), error)

    def _run(
        self,
        batch: Sequence[NDArray[np.float32] | Failure],
        output: str,
        on_error: OnError,
    ) -> Iterator[NDArray[np.float32] | Failure]:
        """Run the good images of a batch and put the bad ones where they belong."""
        for item in batch:
            if isinstance(item, Failure) and on_error == "raise":
                raise item.error
        good = [item for item in batch if not isinstance(item, Failure)]
        rows: Iterator[NDArray[np.float32]] = iter(())
        if good:
            answers = self._opened().run(np.stack(good))[output]
            if not np.isfinite(answers).all():
                raise PredictionError(
                    f"{self._bundle.path}: the model answered NaN or Inf; check the bundle with "
                    f"python -m vit_edge.parity {self._bundle.path}"
                )
            rows = iter(answers)
        for item in batch:
            if not isinstance(item, Failure):
                yield next(rows)
            elif on_error == "record":
                yield item

    def _prediction(self, logits: NDArray[np.float32], top_k: int) -> Prediction:
        scores = np.exp(logits.astype(np.float64) - logits.max())
        scores /= scores.sum()
        order = np.argsort(-logits, kind="stable")[:top_k]
        top = tuple(Ranked(self.labels[i], int(i), float(scores[i])) for i in order)
        return Prediction(top, logits)
