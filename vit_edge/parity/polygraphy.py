"""A golden file as a run of Polygraphy, NVIDIA's tool for comparing runtimes.

Polygraphy's command line reads what is written here:

    polygraphy run model.onnx --trt --load-inputs run-inputs.json --load-outputs run.json

One iteration is one image, with a batch axis of 1. Polygraphy itself writes the files
(pip install "vit-edge[polygraphy]"). It keeps them whole in memory, and so does this module.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from vit_edge.bundle.golden import Golden
from vit_edge.bundle.manifest import Manifest
from vit_edge.errors import MissingExtraError
from vit_edge.images.preprocess import input_from_resized
from vit_edge.report.write import write_report

REFERENCE = "vit_edge-reference"  # the runner's name in files that hold a golden file's answers


def save_golden(path: Path, golden: Golden, manifest: Manifest) -> None:
    """Write the reference's answers, and beside them the images (`inputs_path`).

    Args:
        path: The JSON file of the answers, Polygraphy's RunResults.
        golden: Images and answers.
        manifest: How the model's input follows from the images.

    Raises:
        MissingExtraError: Polygraphy is not installed.
        ResourceError: A file cannot be written.
    """
    library, json = _polygraphy("comparator"), _polygraphy("json")
    logger = _polygraphy("logger").G_LOGGER
    name = manifest.input.name
    places = range(len(golden))
    inputs = [{name: input_from_resized(golden.images([place]), manifest)} for place in places]
    results = library.RunResults()
    results.add([golden.answers([place]) for place in places], runner_name=REFERENCE)
    with logger.verbosity(logger.CRITICAL + 1):  # it logs to stdout, where our results are
        write_report(inputs_path(path), json.to_json(inputs))
        write_report(path, results.to_json())


def inputs_path(path: Path) -> Path:
    """Where the inputs of a run lie: run.json -> run-inputs.json."""
    return path.with_name(f"{path.stem}-inputs.json")


def _polygraphy(module: str) -> Any:
    """A part of Polygraphy, imported only now: the core has no such dependency."""
    try:
        return importlib.import_module(f"polygraphy.{module}")
    except ImportError as error:
        raise MissingExtraError(
            f'polygraphy cannot be used here ({error}): pip install "vit-edge[polygraphy]"'
        ) from None
