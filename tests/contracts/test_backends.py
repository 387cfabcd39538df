"""The contract runs over every backend found on disk, and over doubles it must reject."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.contracts.backend import check_contract
from vit_edge import backends, plugins
from vit_edge.backends import Backend
from vit_edge.bundle import Bundle

requires = ("torch", "onnx", "onnxscript", "onnxruntime")


@pytest.fixture
def reference(testing_bundle: Bundle) -> Iterator[Backend]:
    backend = backends.module("eager").load(testing_bundle)
    yield backend
    backend.close()


@pytest.mark.parametrize("name", backends.names())
def test_a_backend_keeps_the_contract(
    name: str, testing_bundle: Bundle, reference: Backend
) -> None:
    availability = plugins.load(backends.__name__, name).available()
    if not availability.ok:
        pytest.skip(availability.reason)
    module = backends.module(name)
    assert module.key(testing_bundle) == module.key(testing_bundle)
    check_contract(module.load(testing_bundle), testing_bundle.manifest, reference)


@pytest.mark.parametrize("name", backends.names())
def test_a_backend_says_whether_it_is_available_and_why(name: str) -> None:
    assert plugins.load(backends.__name__, name).available().reason


@pytest.mark.parametrize("name", backends.names())
def test_a_backend_declares_its_build_options_once(name: str) -> None:
    module = plugins.load(backends.__name__, name)
    declared = {field.name for field in dataclasses.fields(module.BuildOptions)}
    assert declared == {"engines_dir", *module.BUILD_OPTIONS}
    for function in (module.build, module.find):
        parameters = inspect.signature(function).parameters
        assert list(parameters)[:2] == ["bundle", "engines_dir"]
        assert set(parameters) - {"bundle"} <= declared
    assert set(inspect.signature(module.build).parameters) - {"bundle"} == declared


def test_an_option_that_is_not_declared_is_refused(testing_bundle: Bundle) -> None:
    with pytest.raises(TypeError, match="thread"):
        backends.module("ort").load(testing_bundle, thread=2)  # type: ignore[call-arg]


class Double:
    """A backend that is right; its subclasses are not."""

    def __init__(self, right: Backend) -> None:
        self.right = right
        self.facts: Mapping[str, str] = right.facts

    def run(self, pixels: Any) -> Any:
        return self.right.run(pixels)

    def close(self) -> None:
        pass


class ReusesItsBuffer(Double):
    buffers: dict[Any, Any] = {}  # noqa: RUF012 - shared on purpose: that is the bug

    def run(self, pixels: Any) -> Any:
        answers = {}
        for name, values in self.right.run(pixels).items():
            buffer = self.buffers.setdefault((name, values.shape), values)
            buffer[:] = values
            answers[name] = buffer
        return answers


class MixesRows(Double):
    def run(self, pixels: Any) -> Any:
        answers = self.right.run(pixels)
        return {n: v + 1e-3 * v.mean(axis=0, keepdims=True) for n, v in answers.items()}


class QuantizesByBatch(Double):
    """What dynamic quantization does: one scale over the whole batch."""

    def run(self, pixels: Any) -> Any:
        self.right.run(pixels)
        scale = np.abs(pixels).max() / 127
        return self.right.run((np.round(pixels / scale) * scale).astype(np.float32))


class ReturnsATuple(Double):
    def run(self, pixels: Any) -> Any:
        return tuple(self.right.run(pixels).values())


class HasAFixedBatch(Double):
    def run(self, pixels: Any) -> Any:
        if len(pixels) not in (1, 2):
            pixels = pixels[:2]
        return self.right.run(pixels)


class WritesIntoItsInput(Double):
    def run(self, pixels: Any) -> Any:
        answers = self.right.run(pixels)
        if pixels.flags.writeable:
            pixels *= 0.5
        return answers


class Drifts(Double):
    def run(self, pixels: Any) -> Any:
        return {n: v * np.float32(1 + 1e-4) for n, v in self.right.run(pixels).items()}


class ReturnsFloat64(Double):
    def run(self, pixels: Any) -> Any:
        return {n: v.astype(np.float64) for n, v in self.right.run(pixels).items()}


class TakesAnything(Double):
    def run(self, pixels: Any) -> Any:
        try:
            return self.right.run(pixels)
        except Exception:
            return {}


class ClosesOnce(Double):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("closed twice")
        self.closed = True


class SaysNothing(Double):
    def __init__(self, right: Backend) -> None:
        super().__init__(right)
        self.facts = {}


def test_the_right_double_passes(testing_bundle: Bundle, reference: Backend) -> None:
    check_contract(Double(reference), testing_bundle.manifest, reference)


@pytest.mark.parametrize(
    "double",
    [
        ReusesItsBuffer,
        MixesRows,
        QuantizesByBatch,
        ReturnsATuple,
        HasAFixedBatch,
        WritesIntoItsInput,
        Drifts,
        ReturnsFloat64,
        TakesAnything,
        ClosesOnce,
        SaysNothing,
    ],
)
def test_a_broken_double_is_rejected(
    double: Callable[[Backend], Backend], testing_bundle: Bundle, reference: Backend
) -> None:
    ReusesItsBuffer.buffers.clear()
    with pytest.raises((AssertionError, RuntimeError, AttributeError)):
        check_contract(double(reference), testing_bundle.manifest, reference)


def test_eager_in_float64_may_be_shared_by_threads(testing_bundle: Bundle) -> None:
    from vit_edge.backends import eager

    backend = eager.load(testing_bundle, dtype="float64")
    shape = testing_bundle.manifest.input.shape[1:]
    pixels = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    expected = backend.run(pixels)["logits"]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: backend.run(pixels)["logits"], range(12)):
            assert np.array_equal(found, expected)
