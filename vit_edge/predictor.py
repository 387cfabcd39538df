"""Predict with a bundle: images in, ranked labels out, whatever the runtime."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any, Literal, NamedTuple, get_args, overload

import numpy as np
from numpy.typing import NDArray

from vit_edge import backends
from vit_edge.answers import Answer as Answer
from vit_edge.answers import Failure as Failure
from vit_edge.answers import Prediction as Prediction
from vit_edge.answers import Ranked as Ranked
from vit_edge.backends import Backend
from vit_edge.bundle import Bundle, engines, integrity
from vit_edge.bundle.scores import scores_from_logits
from vit_edge.errors import ImageError, PredictionError, UsageError
from vit_edge.images.ahead import decoded_batches
from vit_edge.images.files import ImageLike, ImageLimits, describe
from vit_edge.images.preprocess import (
    Decoding,
    check_decoding,
    input_from_resized,
    resized_from_source,
)
from vit_edge.machine import cpus

OnError = Literal["raise", "skip", "record"]
Verify = Literal["changed", "always"]
_Unrecorded = Literal["raise", "skip"]
_Images = Iterable[ImageLike]

DEFAULT_TOP_K = 5
TOP = "top"  # what `run` calls the ranking, beside the model's outputs
STREAM_BATCH = 8  # keeps a stream's memory small; ONNX Runtime's arena only ever grows


class _Pixels(NamedTuple):
    """An image as the model takes it."""

    source: str
    values: NDArray[np.generic]


class _Row(NamedTuple):
    """What the model says of one image."""

    source: str
    outputs: Mapping[str, NDArray[np.float32]]


class _Call(NamedTuple):
    """What a caller wants."""

    shapes: Mapping[str, tuple[int, ...]]  # output -> of one row
    on_error: OnError


_OPEN: weakref.WeakSet[Predictor] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a forked child, a lock that another thread of the parent held would never open."""
    for predictor in list(_OPEN):
        predictor._lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_locks)


class Predictor:
    """A bundle, opened in one runtime. Thread-safe, picklable, a context manager.

    Examples:
        >>> Predictor("bundles/base-patch16-224").predict("cat.jpg").label  # doctest: +SKIP
        'Egyptian cat'
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        backend: str | Backend = backends.AUTO,
        *,
        threads: int | None = None,
        image_limits: ImageLimits | None = None,
        decoding: Decoding = "exact",
        verify: Verify = "changed",
    ) -> None:
        """Open a bundle.

        Args:
            bundle: Its directory, or a Bundle that was read.
            backend: "auto" takes what `vit-edge build BUNDLE --tune` found to be best
                here, and ort where that was not tried; or a backend's name, for its defaults; or
                one that was loaded with options: `ort.load(Bundle.read(path), threads=2)`.
            threads: How many decode, and how many the runtime computes with; by default as many as
                there are CPUs for this process, or OMP_NUM_THREADS where that is less.
            image_limits: What images are refused for; see images.ImageLimits.
            decoding: "fast" decodes large JPEG files at a fraction of their size: a quarter to half
                of the time, and pixels that differ by up to 3 levels; see docs/images.md.
            verify: "changed" hashes files once, and again where size, times or inode changed.
                "always" hashes the bundle and its engines each time, at 2 GB/s; see SECURITY.md.

        Raises:
            BundleError: The bundle is incomplete, inconsistent or changed.
            BackendError: The runtime is missing or refuses the model.
            UsageError: An option that is none.
        """
        self._bundle = Bundle.read(bundle)
        self._backend_name = backend if isinstance(backend, str) else None
        if verify not in get_args(Verify):
            raise UsageError(f'verify must be "changed" or "always", not {verify!r}')
        if verify == "always" and not isinstance(backend, str):
            raise UsageError('verify="always" needs the backend by name: this one is open')
        if threads is not None and (type(threads) is not int or threads < 1):
            raise UsageError(f"threads must be a whole number from 1 on, not {threads!r}")
        if threads is not None and not isinstance(backend, str):
            raise UsageError("threads needs the backend by name: this one is open")
        self._threads = threads
        self._verify: Verify = verify
        self._limits = image_limits or ImageLimits()
        check_decoding(decoding)
        self._decoding: Decoding = decoding
        self._lock = threading.Lock()
        self._pid = os.getpid()
        _OPEN.add(self)
        self._backend: Backend | None = self._load(backend) if isinstance(backend, str) else backend

    def __repr__(self) -> str:
        state = "closed" if self._backend is None else self._backend.facts.get("runtime", "open")
        return f"Predictor({str(self._bundle.path)!r}, {state})"

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
        """What really runs: runtime, version, device, precision, threads, engine, decoding."""
        return {**self._opened().facts, "decoding": self._decoding}

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
        self, images: _Images, top_k: int = ..., *, on_error: _Unrecorded = ...
    ) -> list[Prediction]: ...

    @overload
    def predict_batch(
        self, images: _Images, top_k: int = ..., *, on_error: OnError
    ) -> list[Prediction | Failure]: ...

    def predict_batch(
        self, images: _Images, top_k: int = DEFAULT_TOP_K, *, on_error: OnError = "raise"
    ) -> list[Prediction] | list[Prediction | Failure]:
        """Classify images, as many at once as the bundle's max batch allows.

        Args:
            images: Any number, also none.
            top_k: How many classes to rank.
            on_error: What a bad image does: end the batch, be left out, or leave a Failure in
                its place.
        """
        _refuse_single(images)
        listed = list(images)
        batch = min(self._bundle.manifest.max_batch, max(len(listed), 1))
        return list(self.stream(listed, top_k, batch_size=batch, on_error=on_error))

    @overload
    def stream(
        self,
        images: _Images,
        top_k: int = ...,
        *,
        batch_size: int | None = ...,
        on_error: _Unrecorded = ...,
    ) -> Iterator[Prediction]: ...

    @overload
    def stream(
        self, images: _Images, top_k: int = ..., *, batch_size: int | None = ..., on_error: OnError
    ) -> Iterator[Prediction | Failure]: ...

    def stream(
        self,
        images: _Images,
        top_k: int = DEFAULT_TOP_K,
        *,
        batch_size: int | None = None,
        on_error: OnError = "raise",
    ) -> Iterator[Prediction | Failure]:
        """Classify any number of images in order, decoding the next ones while the model runs.

        Memory stays bounded: three batches are decoded or waiting, so the first answer comes when
        that many images were given, or all.

        Args:
            images: Read as the answers are consumed.
            top_k: How many classes to rank.
            batch_size: At most the bundle's max batch; by default 8 or that.
            on_error: As in `predict_batch`.
        """
        _check_top_k(top_k)
        rows = self._answers(images, ("logits",), batch_size, on_error)
        return (r if isinstance(r, Failure) else self._prediction(r, top_k) for r in rows)

    def run(
        self,
        images: _Images,
        outputs: Sequence[str] = (TOP,),
        *,
        top_k: int = DEFAULT_TOP_K,
        batch_size: int | None = None,
        on_error: OnError = "record",
    ) -> Iterator[Answer | Failure]:
        """Answer any number of images in order, with several outputs of one run.

        >>> for answer in predictor.run(paths, ("top", "features")):  # doctest: +SKIP
        ...     answer.prediction.label, answer.outputs["features"]

        Args:
            images: Read as the answers are consumed; memory stays bounded, as in `stream`.
            outputs: "top" for a Prediction, and names of the bundle's outputs.
            top_k: How many classes "top" ranks.
            batch_size: As in `stream`.
            on_error: "record" leaves a Failure in a bad image's place, so that answer i is of
                image i; "raise" and "skip" as in `predict_batch`.
        """
        given: object = outputs
        listed = list(outputs) if isinstance(given, Iterable) and not isinstance(given, str) else []
        if not listed:
            raise UsageError(f'outputs must be a list of names, such as ["top"], not {outputs!r}')
        _check_top_k(top_k)
        names = [name for name in listed if name != TOP]
        asked = dict.fromkeys([*names, *(["logits"] if TOP in listed else [])])
        rows = self._answers(images, tuple(asked), batch_size, on_error)

        def answer(row: _Row) -> Answer:
            ranked = self._prediction(row, top_k) if TOP in listed else None
            return Answer(row.source, {name: row.outputs[name] for name in names}, ranked)

        return (row if isinstance(row, Failure) else answer(row) for row in rows)

    def features(self, images: _Images, *, on_error: _Unrecorded = "raise") -> NDArray[np.float32]:
        """The class token after the last LayerNorm: float32[N, D]; arguments as in `output`."""
        return self.output("features", images, on_error=on_error)

    def output(
        self, name: str, images: _Images, *, on_error: _Unrecorded = "raise"
    ) -> NDArray[np.float32]:
        """One output of the model as it is: float32[N, ...], one row per image.

        Args:
            name: As in the bundle's manifest: logits, features, tokens, pre_logits, reconstruction.
            images: Any number, also none.
            on_error: "skip" leaves bad images out.
        """
        if on_error not in ("raise", "skip"):
            raise UsageError(
                f'on_error must be "raise" or "skip" here, not {on_error!r}: an array has no row '
                f'for a bad image; Predictor.run(images, ["{name}"], on_error="record") has'
            )
        answers = self._answers(images, (name,), None, on_error)
        rows = [answer.outputs[name] for answer in answers if not isinstance(answer, Failure)]
        return np.stack(rows) if rows else np.empty((0, *self._shape(name)), np.float32)

    def close(self) -> None:
        """Give the runtime back; a second call does nothing."""
        with self._lock:
            if self._backend is not None:
                self._backend.close()
            self._backend = None

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process reopens the bundle."""
        bundle = str(self._bundle.path.resolve())
        backend: Any = self._backend_name or self._backend
        options: dict[str, Any] = {"image_limits": self._limits, "decoding": self._decoding}
        options |= {"verify": self._verify, "threads": self._threads}
        return partial(type(self), bundle, backend=backend, **options), ()

    def _load(self, backend: str) -> Backend:
        if self._verify == "always":
            integrity.ensure_verified(self._bundle, full=True)
            engines.verify_recorded(self._bundle)
        return backends.load(self._bundle, backend, {}, self._threads)

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
                self._backend = self._load(self._backend_name)
                self._pid = os.getpid()
            return self._backend

    def _shape(self, output: str) -> tuple[int, ...]:
        """The shape of one row of an output."""
        manifest = self._bundle.manifest
        tensor = manifest.output(output)
        if tensor is not None:
            return tuple(size for size in tensor.shape if size is not None)
        there = ",".join(tensor.name for tensor in manifest.outputs)
        embeds = manifest.output("features") is not None
        if output == "logits" and not manifest.num_classes and embeds:
            remedy = "the model has no head; Predictor.features gives embeddings"
        elif output == "logits" and not manifest.num_classes:
            remedy = f"the model has no head: vit-edge export --outputs {there},features"
        elif manifest.architecture is None:
            remedy = f"its graph comes from another exporter, of which only the {there} are kept"
        else:
            remedy = f"export it again: vit-edge export --outputs {there},{output}"
        raise UsageError(f"{self._bundle.path} has no {output}, only {there}; {remedy}")

    def _answers(
        self,
        images: _Images,
        outputs: Sequence[str],
        batch_size: int | None,
        on_error: OnError,
    ) -> Iterator[_Row | Failure]:
        """Check the call now, and answer lazily: one answer per image, in order."""
        call = _Call({name: self._shape(name) for name in outputs}, on_error)
        _refuse_single(images)
        if on_error not in get_args(OnError):
            raise UsageError(f'on_error must be "raise", "skip" or "record", not {on_error!r}')
        max_batch = self._bundle.manifest.max_batch
        size = min(STREAM_BATCH, max_batch) if batch_size is None else batch_size
        if type(size) is not int or not 1 <= size <= max_batch:
            raise UsageError(f"batch_size must lie between 1 and {max_batch}, not {batch_size!r}")
        self._opened()
        if isinstance(images, Sequence) and len(images) < 2:  # no threads for a single image
            return self._run([self._pixels(image) for image in images], call)
        return self._ahead(images, size, call)

    def _ahead(self, images: _Images, size: int, call: _Call) -> Iterator[_Row | Failure]:
        """Decode ahead of the model by two batches."""
        threads = self._threads or cpus.default_threads()
        for batch in decoded_batches(images, self._pixels, size, threads):
            yield from self._run(batch, call)

    def _pixels(self, image: ImageLike) -> _Pixels | Failure:
        manifest = self._bundle.manifest
        try:
            resized = resized_from_source(
                image, manifest.preprocessing, self._limits, self._decoding
            )
        except ImageError as error:
            return Failure(describe(image), error)
        return _Pixels(describe(image), input_from_resized(resized[None], manifest)[0])

    def _run(self, batch: Sequence[_Pixels | Failure], call: _Call) -> Iterator[_Row | Failure]:
        """Run the good images of a batch and put the bad ones where they belong."""
        used: Iterable[_Pixels | Failure] = batch
        if call.on_error == "raise":  # what comes after a bad image is not run
            used = takewhile(lambda item: isinstance(item, _Pixels), batch)
        good = [item.values for item in used if isinstance(item, _Pixels)]
        answers = self._run_pixels(np.stack(good), call) if good else {}
        index = 0
        for item in batch:
            if isinstance(item, _Pixels):
                # A row of its own: a view would keep the whole batch for one answer.
                outputs = {
                    name: np.array(values[index], np.float32) for name, values in answers.items()
                }
                yield _Row(item.source, outputs)
                index += 1
            elif call.on_error == "raise":
                raise item.error
            elif call.on_error == "record":
                yield item

    def _run_pixels(
        self, pixels: NDArray[np.generic], call: _Call
    ) -> dict[str, NDArray[np.float32]]:
        """Run one batch, and refuse what is no answer to it."""
        found = self._opened().run(pixels)
        answers = {}
        for name, shape in call.shapes.items():
            values, expected = found.get(name), [len(pixels), *shape]
            if values is None or list(values.shape) != expected:
                got = "nothing" if values is None else list(values.shape)
                raise PredictionError(f"{name} should be {expected}, the runtime gave {got}")
            if not np.isfinite(values).all():
                raise PredictionError(
                    f"{self._bundle.path}: the model answered NaN or Inf; check the bundle with "
                    f"vit-edge parity {self._bundle.path}"
                )
            answers[name] = values
        return answers

    def _prediction(self, answer: _Row, top_k: int) -> Prediction:
        logits = answer.outputs["logits"]
        scores = scores_from_logits(logits, self._bundle.manifest.scores)
        order = np.argsort(-logits, kind="stable")[:top_k]
        top = tuple(Ranked(self.labels[i], int(i), float(scores[i])) for i in order)
        return Prediction(top, logits, answer.source, self._bundle.manifest.scores)


def _check_top_k(top_k: int) -> None:
    if type(top_k) is not int or top_k < 1:
        raise UsageError(f"top_k must be a whole number from 1 on, not {top_k!r}")


def _refuse_single(images: object) -> None:
    """A string is a sequence of strings too, and an array one of arrays: surely not meant."""
    if isinstance(images, (str, bytes, os.PathLike, np.ndarray)):
        raise UsageError("expected a sequence of images; put a single one into a list")
    if not isinstance(images, Iterable):
        raise UsageError(f"expected a sequence of images, not {type(images).__name__}")
