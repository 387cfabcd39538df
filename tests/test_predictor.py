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
from vit_edge.machine import cpus
from vit_edge.predictor import Answer

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
    together = np.stack([p.logits for p in batch])
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
        indices = [p.index for p in found]
        assert indices == [expected[i % len(photos)] for i in range(37)]


def test_an_error_of_the_source_reaches_the_caller(
    predictor: Predictor, photos: list[Path]
) -> None:
    def failing() -> Iterator[Path]:
        yield photos[0]
        raise RuntimeError("camera unplugged")

    stream = predictor.stream(failing())
    assert next(stream).source == str(photos[0])
    with pytest.raises(RuntimeError, match="camera unplugged"):
        next(stream)


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


@pytest.mark.slow
def test_closing_gives_the_runtime_back(testing_bundle: Bundle) -> None:
    predictor = Predictor(testing_bundle)
    backend = weakref.ref(predictor._opened())
    predictor.close()
    gc.collect()
    assert backend() is None


def test_a_fork_while_another_thread_holds_the_lock_does_not_hang(
    testing_bundle: Bundle, photos: list[Path]
) -> None:
    predictor = Predictor(testing_bundle)
    expected = predictor.predict(photos[0]).index
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with predictor._lock:
        child = context.Process(target=_predict_in_child, args=(predictor, photos[0], queue))
        child.start()
    assert queue.get(timeout=60) == expected
    child.join()


def test_a_skipped_image_can_be_told_by_the_sources_of_the_others(
    predictor: Predictor, photos: list[Path]
) -> None:
    images = [photos[0], b"no image", photos[1]]
    answered = predictor.predict_batch(images, on_error="skip")
    assert [prediction.source for prediction in answered] == [str(photos[0]), str(photos[1])]


def test_good_images_before_a_bad_one_are_answered_before_the_error(
    predictor: Predictor, photos: list[Path]
) -> None:
    found = []
    with pytest.raises(ImageDecodeError):
        for prediction in predictor.stream([*photos[:6], b"bad", photos[7]], batch_size=4):
            found.append(prediction)
    assert len(found) == 6


@pytest.mark.parametrize("single", ["cat.jpg", Path("cat.jpg"), b"\xff\xd8", np.zeros((2, 2, 3))])
def test_a_single_image_is_no_sequence_of_images(predictor: Predictor, single: Any) -> None:
    for call in (predictor.predict_batch, predictor.stream, predictor.features):
        with pytest.raises(UsageError, match="put a single one into a list"):
            call(single)


@pytest.mark.parametrize("top_k", [0, -1, 2.5, "3", None])
def test_top_k_must_be_a_whole_number_from_1_on(predictor: Predictor, top_k: Any) -> None:
    with pytest.raises(UsageError, match="top_k"):
        predictor.stream([], top_k)


def test_an_iterator_of_images_is_a_batch_too(predictor: Predictor, photos: list[Path]) -> None:
    assert len(predictor.predict_batch(iter(photos))) == len(photos)


def test_features_refuse_to_record(predictor: Predictor, photos: list[Path]) -> None:
    with pytest.raises(UsageError, match="here, not 'record'"):
        predictor.features(photos, on_error="record")  # type: ignore[arg-type]


def test_one_run_gives_the_ranking_and_the_features_of_each_image(
    predictor: Predictor, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    backend = predictor._opened()
    run = backend.run
    monkeypatch.setattr(backend, "run", lambda pixels: runs.append(len(pixels)) or run(pixels))
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    images = [photos[0], bad, *photos[1:3]]
    answers = list(predictor.run(images, ("top", "features"), top_k=2, batch_size=4))
    assert runs == [3]
    assert [a.source for a in answers] == [str(image) for image in images]
    assert isinstance(answers[1], Failure)
    features, predictions = predictor.features(photos[:3]), predictor.predict_batch(photos[:3], 2)
    good = [a for a in answers if isinstance(a, Answer)]
    for answer, row, prediction in zip(good, features, predictions, strict=True):
        assert set(answer.outputs) == {"features"}
        np.testing.assert_allclose(answer.outputs["features"], row, atol=2e-6 * np.abs(row).max())
        assert answer.prediction is not None
        assert answer.prediction.as_dict()["label"] == prediction.label
        assert answer.outputs["features"].base is None  # no view of the whole batch


def test_a_run_without_top_ranks_nothing_and_one_with_it_hides_the_logits(
    predictor: Predictor, photos: list[Path]
) -> None:
    (values,) = predictor.run(photos[:1], ["logits"])
    assert isinstance(values, Answer)
    assert values.prediction is None
    (ranked,) = predictor.run(photos[:1])
    assert isinstance(ranked, Answer)
    assert ranked.outputs == {}
    assert ranked.prediction is not None
    assert np.array_equal(ranked.prediction.logits, values.outputs["logits"])
    (both,) = predictor.run(photos[:1], (name for name in ("top", "features")))
    assert isinstance(both, Answer)
    assert both.prediction is not None
    assert set(both.outputs) == {"features"}
    with pytest.raises(ImageDecodeError):
        list(predictor.run([b"no image"], ("features",), on_error="raise"))
    assert list(predictor.run([b"no image"], ("features",), on_error="skip")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"outputs": "top"}, "must be a list of names"),
        ({"outputs": ()}, "must be a list of names"),
        ({"outputs": None}, "must be a list of names"),
        ({"outputs": iter(())}, "must be a list of names"),
        ({"outputs": ("top", "tokens")}, "has no tokens"),
        ({"images": None}, "a sequence of images, not NoneType"),
        ({"images": 3}, "a sequence of images, not int"),
        ({"batch_size": "4"}, "between 1 and 4, not '4'"),
        ({"batch_size": 2.0}, "between 1 and 4, not 2.0"),
        ({"top_k": 0}, "top_k"),
        ({"on_error": "ignore"}, "on_error"),
    ],
)
def test_a_run_is_checked_before_it_starts(
    predictor: Predictor, photos: list[Path], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        predictor.run(**{"images": photos, **arguments})


def test_threads_reach_the_decoder_and_the_runtime(
    testing_bundle: Bundle, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpus, "usable_cpus", lambda root=None: 7)
    pools = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int, name: str) -> None:
            pools.append(workers)
            super().__init__(workers, name)

    monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor", Pool)
    for backend in ("auto", "ort"):
        with Predictor(testing_bundle, backend, threads=3) as three:
            assert three.facts["threads"] == "3"
            three.predict_batch(photos)
            with pickle.loads(pickle.dumps(three)) as copied:
                assert copied.facts["threads"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with Predictor(testing_bundle) as two:
        assert two.facts["threads"] == "2"
        two.predict_batch(photos)
    assert pools == [3, 3, 2]


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_threads_that_are_none_are_refused(testing_bundle: Bundle, threads: Any) -> None:
    with pytest.raises(UsageError, match="threads must be"):
        Predictor(testing_bundle, threads=threads)
    with pytest.raises(UsageError, match="by name"):
        Predictor(testing_bundle, ort.load(testing_bundle), threads=2)


def test_every_output_of_the_bundle_can_be_had(predictor: Predictor, photos: list[Path]) -> None:
    logits = predictor.output("logits", photos)
    assert logits.shape == (len(photos), 10)
    with pytest.raises(UsageError, match="--outputs logits,features,tokens"):
        predictor.output("tokens", photos)


def test_fast_decoding_changes_large_jpegs_a_little_and_small_ones_not(
    embedded_bundle: Bundle, photos: list[Path], tmp_path: Path
) -> None:
    large, small = tmp_path / "large.jpg", tmp_path / "small.jpg"
    with Image.open(photos[0]) as photo:
        photo.resize((1201, 803), Image.Resampling.BICUBIC).save(large, quality=95)
        photo.resize((127, 120), Image.Resampling.BICUBIC).save(small, quality=95)
    with Predictor(embedded_bundle) as exact, Predictor(embedded_bundle, decoding="fast") as fast:
        apart = np.abs(fast.predict(large).logits - exact.predict(large).logits).max()
        assert 0 < apart <= 0.1  # of logits that span 5 to 6; 0.04 was found
        assert np.array_equal(fast.predict(small).logits, exact.predict(small).logits)


def test_facts_and_pickles_carry_the_way_of_decoding(testing_bundle: Bundle) -> None:
    assert Predictor(testing_bundle).facts["decoding"] == "exact"
    fast = Predictor(testing_bundle, decoding="fast")
    assert pickle.loads(pickle.dumps(fast)).facts["decoding"] == "fast"


def test_an_unknown_decoding_is_refused_when_opening(testing_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="decoding must be"):
        Predictor(testing_bundle, decoding="quick")  # type: ignore[arg-type]


class AnswersWrongly:
    facts: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, change: Any) -> None:
        self.change = change

    def run(self, pixels: Any) -> Any:
        found: Any = self.change(np.zeros((len(pixels), 10), np.float32))
        return {} if found is None else {"logits": found}

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v[:-1],
        lambda v: np.concatenate([v, v]),
        lambda v: np.concatenate([v, v], axis=1),
        lambda v: None,
    ],
)
def test_answers_of_another_shape_are_no_answers(
    testing_bundle: Bundle, photos: list[Path], change: Any
) -> None:
    predictor = Predictor(testing_bundle, AnswersWrongly(change))
    with pytest.raises(PredictionError, match="should be"):
        predictor.predict_batch(photos)


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
    with pytest.raises(PredictionError, match="vit-edge parity"):
        predictor.predict(photos[0])


def test_logits_that_were_not_exported_are_explained(
    testing_bundle: Bundle, photos: list[Path]
) -> None:
    manifest = testing_bundle.manifest
    only = dataclasses.replace(manifest, outputs=manifest.outputs[1:])
    bundle = dataclasses.replace(testing_bundle, manifest=only)
    predictor = Predictor(bundle, AnswersNaN(bundle))
    with pytest.raises(UsageError, match="--outputs features,logits"):
        predictor.predict(photos[0])


@pytest.mark.parametrize("batch_size", [0, 5, -1])
def test_a_batch_size_beyond_the_bundle_is_refused(predictor: Predictor, batch_size: int) -> None:
    with pytest.raises(UsageError, match="between 1 and 4"):
        predictor.stream([], batch_size=batch_size)


def test_facts_say_what_really_runs(predictor: Predictor) -> None:
    assert predictor.facts["provider"] == "CPUExecutionProvider"
    assert predictor.facts["threads"] == str(len(os.sched_getaffinity(0)))
    assert predictor.facts["precision"] == "fp32"


def test_no_thread_is_left_behind(predictor: Predictor, photos: list[Path]) -> None:
    before = threading.active_count()
    list(predictor.stream(photos))
    assert threading.active_count() == before
