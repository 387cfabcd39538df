"""The predictor, as an application uses it."""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import os
import pickle
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_edge import Bundle, Failure, ImageDecodeError, PredictionError, Predictor, UsageError
from vit_edge.backends import ort

requires = ("onnxruntime",)


@pytest.fixture(scope="module")
def predictor(testing_bundle: Bundle) -> Iterator[Predictor]:
    with Predictor(testing_bundle.path) as opened:
        yield opened


def test_a_prediction_ranks_classes_by_softmax(predictor: Predictor, photos: list[Path]) -> None:
    prediction = predictor.predict(photos[0], top_k=3)
    assert prediction.label == predictor.labels[prediction.index]
    assert [r.score for r in prediction.top] == sorted(r.score for r in prediction.top)[::-1]
    exact = np.exp(prediction.logits.astype(np.float64))
    exact /= exact.sum()
    assert prediction.index == int(prediction.logits.argmax())
    assert abs(prediction.score - exact.max()) < 1e-6
    assert len(prediction.top) == 3
    assert len(predictor.predict(photos[0], top_k=99).top) == 10


def test_path_bytes_file_pillow_and_array_give_one_answer(
    predictor: Predictor, photos: list[Path]
) -> None:
    path = photos[1]
    expected = predictor.predict(path).logits
    with Image.open(path) as image:
        array = np.asarray(image.convert("RGB"))
        forms: list[Any] = [str(path), path.read_bytes(), array, image]
        for form in forms:
            assert np.array_equal(predictor.predict(form).logits, expected)
    with path.open("rb") as file:
        assert np.array_equal(predictor.predict(file).logits, expected)


def test_a_batch_answers_each_image_as_if_alone(predictor: Predictor, photos: list[Path]) -> None:
    alone = np.stack([predictor.predict(photo).logits for photo in photos])
    batch = predictor.predict_batch(photos)
    together = np.stack([p.logits for p in batch if not isinstance(p, Failure)])
    assert together.shape == alone.shape
    assert np.abs(together - alone).max() <= 2e-6 * np.abs(alone).max()


def test_an_empty_batch_is_an_empty_answer(predictor: Predictor) -> None:
    assert predictor.predict_batch([]) == []
    assert predictor.features([]).shape == (0, 64)
    assert list(predictor.stream(iter([]))) == []


def test_one_bad_file_never_ends_a_batch(
    predictor: Predictor, photos: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(photos[0].read_bytes()[:500])
    images = [photos[0], bad, photos[1], bad]
    recorded = predictor.predict_batch(images, on_error="record")
    assert [isinstance(outcome, Failure) for outcome in recorded] == [False, True, False, True]
    failure = recorded[1]
    assert isinstance(failure, Failure)
    assert "bad.jpg" in failure.source
    assert isinstance(failure.error, ImageDecodeError)
    assert len(predictor.predict_batch(images, on_error="skip")) == 2
    assert len(predictor.features(images, on_error="skip")) == 2
    with pytest.raises(ImageDecodeError):
        predictor.predict_batch(images)


def test_features_are_the_rows_of_the_features_output(
    predictor: Predictor, photos: list[Path]
) -> None:
    features = predictor.features(photos)
    assert features.shape == (len(photos), 64)
    assert features.dtype == np.float32
    assert np.abs(features[0] - features[1]).max() > 1e-2


def test_a_stream_reads_ahead_but_not_without_bound(
    predictor: Predictor, photos: list[Path]
) -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield photos[taken % len(photos)]

    stream = predictor.stream(endless(), batch_size=2)
    for _ in range(20):
        next(stream)
    assert 20 <= taken <= 20 + 3 * 2
    stream.close()  # type: ignore[attr-defined]


def test_a_stream_keeps_the_order(predictor: Predictor, photos: list[Path]) -> None:
    images = [photos[i % len(photos)] for i in range(37)]
    expected = [predictor.predict(photo).index for photo in photos]
    for batch_size in (1, 3, 4):
        found = predictor.stream(images, batch_size=batch_size)
        indices = [p.index for p in found if not isinstance(p, Failure)]
        assert indices == [expected[i % len(photos)] for i in range(37)]


def test_an_error_of_the_source_reaches_the_caller(
    predictor: Predictor, photos: list[Path]
) -> None:
    def failing() -> Iterator[Path]:
        yield photos[0]
        raise RuntimeError("camera unplugged")

    with pytest.raises(RuntimeError, match="camera unplugged"):
        list(predictor.stream(failing()))


def test_many_threads_may_share_a_predictor(predictor: Predictor, photos: list[Path]) -> None:
    expected = {photo: predictor.predict(photo).logits for photo in photos}
    work = photos * 10
    with ThreadPoolExecutor(8) as pool:
        for photo, found in zip(work, pool.map(predictor.predict, work), strict=True):
            assert np.abs(found.logits - expected[photo]).max() <= 1e-5


def test_a_pickled_predictor_reopens_its_bundle(predictor: Predictor, photos: list[Path]) -> None:
    expected = predictor.predict(photos[0]).logits
    with pickle.loads(pickle.dumps(predictor)) as copy:
        assert np.array_equal(copy.predict(photos[0]).logits, expected)


def test_a_predictor_with_a_backend_of_its_own_is_picklable_too(
    testing_bundle: Bundle, photos: list[Path]
) -> None:
    with Predictor(testing_bundle, ort.load(testing_bundle, threads=1)) as one:
        copy = pickle.loads(pickle.dumps(one))
        assert copy.facts["threads"] == "1"
        assert copy.predict(photos[0]).index == one.predict(photos[0]).index


def _predict_in_child(predictor: Predictor, photo: Path, queue: Any) -> None:
    queue.put(predictor.predict(photo).index)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_may_use_it(method: str, predictor: Predictor, photos: list[Path]) -> None:
    expected = predictor.predict(photos[0]).index
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_predict_in_child, args=(predictor, photos[0], queue))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join()
    assert child.exitcode == 0


def test_a_closed_predictor_says_so(testing_bundle: Bundle, photos: list[Path]) -> None:
    predictor = Predictor(testing_bundle)
    predictor.close()
    predictor.close()
    with pytest.raises(UsageError, match="closed"):
        predictor.predict(photos[0])


def test_closing_gives_the_runtime_back(testing_bundle: Bundle) -> None:
    predictor = Predictor(testing_bundle)
    backend = weakref.ref(predictor._opened())
    predictor.close()
    gc.collect()
    assert backend() is None


class AnswersNaN:
    facts: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, bundle: Bundle) -> None:
        self.outputs = bundle.manifest.outputs

    def run(self, pixels: Any) -> Any:
        return {t.name: np.full((len(pixels), *t.shape[1:]), np.nan, "f4") for t in self.outputs}

    def close(self) -> None:
        pass


def test_nan_is_no_answer(testing_bundle: Bundle, photos: list[Path]) -> None:
    predictor = Predictor(testing_bundle, AnswersNaN(testing_bundle))
    with pytest.raises(PredictionError, match="vit_edge.parity"):
        predictor.predict(photos[0])


def test_logits_that_were_not_exported_are_explained(
    testing_bundle: Bundle, photos: list[Path]
) -> None:
    manifest = testing_bundle.manifest
    only = dataclasses.replace(manifest, outputs=manifest.outputs[1:])
    bundle = dataclasses.replace(testing_bundle, manifest=only)
    predictor = Predictor(bundle, AnswersNaN(bundle))
    with pytest.raises(UsageError, match="--outputs logits"):
        predictor.predict(photos[0])


@pytest.mark.parametrize("batch_size", [0, 5, -1])
def test_a_batch_size_beyond_the_bundle_is_refused(predictor: Predictor, batch_size: int) -> None:
    with pytest.raises(UsageError, match="between 1 and 4"):
        list(predictor.stream([], batch_size=batch_size))


def test_facts_say_what_really_runs(predictor: Predictor) -> None:
    assert predictor.facts["provider"] == "CPUExecutionProvider"
    assert predictor.facts["threads"] == str(len(os.sched_getaffinity(0)))
    assert predictor.facts["precision"] == "fp32"


def test_no_thread_is_left_behind(predictor: Predictor, photos: list[Path]) -> None:
    before = threading.active_count()
    list(predictor.stream(photos))
    assert threading.active_count() == before
