"""Interchange with Polygraphy, NVIDIA's tool for comparing runtimes.

What is written here, Polygraphy's command line reads, and the other way round:

    polygraphy run model.onnx --trt --load-inputs run-inputs.json --load-outputs run.json
    polygraphy run model.onnx --trt --load-inputs run-inputs.json --save-outputs trt.json

One iteration is one image, with a batch axis of 1. Polygraphy itself reads and writes the files
(pip install "vit-edge[polygraphy]"); it keeps them whole in memory, and so does this module.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vit_edge.bundle.golden import Golden
from vit_edge.bundle.manifest import Manifest
from vit_edge.errors import InputError, MissingExtraError
from vit_edge.images.preprocess import input_from_resized
from vit_edge.report.write import write_report

REFERENCE = "vit_edge-reference"  # the runner's name in files that hold a golden file's answers

Arrays: TypeAlias = Mapping[str, NDArray[Any]]  # tensor name -> [1, ...]


def save(path: Path, runner: str, inputs: Sequence[Arrays], outputs: Sequence[Arrays]) -> None:
    """Write a run's answers, and beside them its inputs (`inputs_path`).

    Args:
        path: The JSON file of the answers, Polygraphy's RunResults.
        runner: Who answered, such as "ort".
        inputs: Of each iteration: tensor name -> [1, ...].
        outputs: Of each iteration: output name -> [1, ...].

    Raises:
        MissingExtraError: Polygraphy is not installed.
        ResourceError: A file cannot be written.
    """
    library, json = _library("comparator"), _library("json")
    results = library.RunResults()
    results.add([dict(arrays) for arrays in outputs], runner_name=runner)
    with _quiet():
        write_report(inputs_path(path), json.to_json([dict(arrays) for arrays in inputs]))
        write_report(path, results.to_json())


def save_golden(path: Path, golden: Golden, manifest: Manifest) -> None:
    """Write a golden file's images and the reference's answers to them; see `save`."""
    name, inputs, outputs = manifest.input.name, [], []
    for index in range(len(golden)):
        inputs.append({name: input_from_resized(golden.images([index]), manifest)})
        outputs.append(golden.answers([index]))
    save(path, REFERENCE, inputs, outputs)


def inputs_path(path: Path) -> Path:
    """Where the inputs of a run lie: run.json -> run-inputs.json."""
    return path.with_name(f"{path.stem}-inputs.json")


def load(path: Path) -> dict[str, list[dict[str, NDArray[Any]]]]:
    """Read RunResults, as `polygraphy run --save-outputs` writes them.

    Returns:
        Runner -> of each iteration: output name -> [1, ...].

    Raises:
        MissingExtraError: Polygraphy is not installed.
        InputError: No such file, damaged, or something else.
    """
    kind = _library("comparator").RunResults
    results = _decoded(path, kind, "the answers of polygraphy run --save-outputs")
    with _damage(path):
        return {
            str(runner): [_arrays(path, iteration.items()) for iteration in iterations]
            for runner, iterations in results.items()
        }


def load_inputs(path: Path) -> list[dict[str, NDArray[Any]]]:
    """Read inputs, as `polygraphy run --save-inputs` writes them.

    Returns:
        Of each iteration: tensor name -> [1, ...].

    Raises:
        MissingExtraError: Polygraphy is not installed.
        InputError: No such file, damaged, or something else.
    """
    found = _decoded(path, list, "the inputs of polygraphy run --save-inputs")
    with _damage(path):
        return [_arrays(path, iteration.items()) for iteration in found]


class Replay:
    """A run of Polygraphy as a candidate: it answers what it was asked, whatever the batch.

    >>> answers = Replay(load_inputs(inputs), load(outputs)["trt-runner"])  # doctest: +SKIP
    >>> compare_answers(answers, golden, manifest, batches=[1], limit=limit)  # doctest: +SKIP
    """

    def __init__(self, inputs: Sequence[Arrays], outputs: Sequence[Arrays]) -> None:
        """Remember which input got which answer.

        Args:
            inputs: Of each iteration, one tensor: name -> [1, ...].
            outputs: Of each iteration: output name -> [1, ...].

        Raises:
            InputError: Not one answer per input, or several tensors or images in an iteration.
        """
        if len(inputs) != len(outputs):
            raise InputError(
                f"{len(inputs)} iterations of inputs, but {len(outputs)} of outputs: they are of "
                "different runs"
            )
        self._answers: dict[bytes, Arrays] = {}
        for index, (given, answers) in enumerate(zip(inputs, outputs, strict=True)):
            if {len(array) for arrays in (given, answers) for array in arrays.values()} != {1} or (
                len(given) != 1
            ):
                raise InputError(f"iteration {index}: expected one tensor with one image")
            (pixels,) = given.values()
            self._answers[pixels[0].tobytes()] = answers

    def run(self, pixels: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """See vit_edge.backends.Backend.

        Raises:
            InputError: An image that was not in the run.
        """
        rows = [self._answers.get(row.tobytes()) for row in pixels]
        known = [row for row in rows if row is not None]
        if len(known) != len(rows):
            raise InputError(
                "an image of the golden file was not in this run; give its inputs to polygraphy "
                "with --load-inputs"
            )
        return {
            name: np.concatenate([row[name] for row in known]).astype(np.float32)
            for name in known[0]
        }


def _library(module: str) -> Any:
    """A part of Polygraphy, imported only now: the core has no such dependency."""
    try:
        found: ModuleType = importlib.import_module(f"polygraphy.{module}")
    except ImportError as error:
        raise MissingExtraError(
            f'polygraphy cannot be used here ({error}): pip install "vit-edge[polygraphy]"'
        ) from None
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Polygraphy logs to stdout, where our results are."""
    logger = _library("logger").G_LOGGER
    with logger.verbosity(logger.CRITICAL + 1):
        yield


def _decoded(path: Path, kind: type[Any], words: str) -> Any:
    with _damage(path), _quiet():
        found = _library("json").from_json(path.read_text(encoding="utf-8"))
    if not isinstance(found, kind):
        raise InputError(f"{path}: holds {type(found).__name__}; expected {words}")
    return found


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever Polygraphy and NumPy raise over a damaged file, as our error."""
    try:
        yield
    except (InputError, MissingExtraError):
        raise
    except Exception as error:  # polygraphy raises KeyError, AssertionError, its own, ...
        reason = str(error).strip() or type(error).__name__
        raise InputError(f"{path}: cannot be read as a file of polygraphy: {reason}") from None


def _arrays(path: Path, items: Any) -> dict[str, NDArray[Any]]:
    found = {}
    for name, array in items:
        if not isinstance(array, np.ndarray) or array.ndim < 1 or array.dtype.kind not in "fiub":
            raise InputError(f"{path}: {name} is no array of numbers with a batch axis")
        found[str(name)] = array
    return found
