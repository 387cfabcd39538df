"""What every backend must do, as checks that raise; see vit_edge.backends.Backend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vit_edge.backends import Backend
from vit_edge.bundle.manifest import Manifest
from vit_edge.errors import UsageError

# Two runs of the same row in another batch may round differently, by a few float32 steps of the
# largest logit; a leak between rows is larger by orders of magnitude.
ROUNDING = 2e-6

FACTS = {"backend", "runtime", "device", "provider", "precision", "threads", "engine"}


def check_contract(backend: Backend, manifest: Manifest, reference: Backend) -> None:
    """Run every check.

    Args:
        backend: The one to judge.
        manifest: What it was loaded from.
        reference: One that is right.

    Raises:
        AssertionError: The contract is broken.
    """
    rng = np.random.default_rng(0)
    shape = manifest.input.shape[1:]
    pixels = rng.standard_normal((manifest.max_batch, *shape)).astype(np.float32)
    expected = reference.run(pixels)
    checks: list[
        Callable[[Backend, Manifest, NDArray[np.float32], dict[str, NDArray[np.float32]]], None]
    ] = [
        check_outputs,
        check_answers,
        check_every_batch_size,
        check_rows_are_independent,
        check_arrays_belong_to_the_caller,
        check_input_is_left_alone,
        check_wrong_pixels_are_refused,
    ]
    for check in checks:
        check(backend, manifest, pixels.copy(), expected)
    assert set(backend.facts) >= FACTS, f"facts lack {FACTS - set(backend.facts)}"
    backend.close()
    backend.close()


def close(found: NDArray[np.float32], expected: NDArray[np.float32], factor: float = 1) -> bool:
    """Equal up to rounding, against the largest value."""
    worst = float(np.abs(found - expected).max(initial=0))
    return worst <= factor * ROUNDING * float(np.abs(expected).max())


def check_outputs(
    backend: Backend,
    manifest: Manifest,
    pixels: NDArray[np.float32],
    expected: dict[str, NDArray[np.float32]],
) -> None:
    answers = backend.run(pixels[:1])
    assert isinstance(answers, dict), f"run returned {type(answers).__name__}, not a dict"
    assert list(answers) == [tensor.name for tensor in manifest.outputs]
    for tensor in manifest.outputs:
        assert answers[tensor.name].dtype == tensor.dtype
        assert answers[tensor.name].shape == (1, *tensor.shape[1:])


def check_answers(
    backend: Backend,
    manifest: Manifest,
    pixels: NDArray[np.float32],
    expected: dict[str, NDArray[np.float32]],
) -> None:
    for name, values in backend.run(pixels).items():
        assert values.shape == expected[name].shape, f"{values.shape} for {len(pixels)} images"
        assert close(values, expected[name], factor=5), f"{name} drifts from the reference"


def check_every_batch_size(
    backend: Backend,
    manifest: Manifest,
    pixels: NDArray[np.float32],
    expected: dict[str, NDArray[np.float32]],
) -> None:
    for size in range(1, manifest.max_batch + 1):
        for name, values in backend.run(pixels[:size]).items():
            assert len(values) == size, f"{len(values)} answers to {size} images"
            assert close(values, expected[name][:size], factor=5)


def check_rows_are_independent(
    backend: Backend,
    manifest: Manifest,
    pixels: NDArray[np.float32],
    expected: dict[str, NDArray[np.float32]],
) -> None:
    others = pixels.copy()
    others[1:] *= -3
    for name, values in backend.run(others).items():
        assert close(values[:1], expected[name][:1], factor=5), "row 0 depends on its neighbours"
    for name, values in backend.run(pixels[::-1].copy()).items():
        assert close(values[::-1], expected[name], factor=5), "answers depend on the position"


def check_arrays_belong_to_the_caller(
    backend: Backend,
    manifest: Manifest,
    pixels: NDArray[np.float32],
    expected: dict[str, NDArray[np.float32]],
) -> None:
    first = backend.run(pixels[:1])
    kept = {name: values.copy() for name, values in first.items()}
    backend.run(pixels[1:2])
    for name, values in first.items():
        assert np.array_equal(values, kept[name]), "a later run changed an earlier answer"
        assert values.flags.writeable, "the caller cannot write into its own array"
        values[:] = 0
    for name, values in backend.run(pixels[:1]).items():
        assert close(values, kept[name]), "writing into an answer changed the next one"


def check_input_is_left_alone(
    backend: Backend,
    manifest: Manifest,
    pixels: NDArray[np.float32],
    expected: dict[str, NDArray[np.float32]],
) -> None:
    before = pixels.copy()
    backend.run(pixels)
    assert np.array_equal(before, pixels), "run wrote into its input"
    strided = np.repeat(pixels, 2, axis=-1)[..., ::2]
    for name, values in backend.run(strided).items():
        assert close(values, expected[name], factor=5), "a strided input is read wrongly"


def check_wrong_pixels_are_refused(
    backend: Backend,
    manifest: Manifest,
    pixels: NDArray[np.float32],
    expected: dict[str, NDArray[np.float32]],
) -> None:
    too_many = np.concatenate([pixels, pixels[:1]])
    for wrong in (pixels[:0], too_many, pixels.astype(np.float64), pixels[0], pixels[..., 1:]):
        try:
            backend.run(wrong)
        except UsageError:
            continue
        raise AssertionError(f"{wrong.dtype}{wrong.shape} was not refused")
