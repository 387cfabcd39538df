"""A float32 model on its way into a bundle: the graph on disk, and the reference's answers."""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import vit_edge
from vit_edge.bundle.manifest import Architecture, Manifest, Preprocessing, TensorSpec
from vit_edge.checkpoints import Checkpoint
from vit_edge.errors import ModelError, UsageError
from vit_edge.export import golden_set
from vit_edge.export.golden_set import GoldenSet
from vit_edge.export.recipe import Recipe
from vit_edge.export.trace import INPUT_NAME, model_from_vit, release_weights
from vit_edge.graphs.readable import drop_allowzero, name_by_module
from vit_edge.graphs.write import SINGLE_FILE_LIMIT_BYTES, skeleton, write_model
from vit_edge.images import folders
from vit_edge.machine import cpus
from vit_edge.models.reference import ReferenceDtype
from vit_edge.models.vit import ViT

_LOG = logging.getLogger(__name__)

# float64 costs huge about 15 s an image on two cores, so it is compared with float32 instead
FLOAT64_LIMIT_BYTES = SINGLE_FILE_LIMIT_BYTES


@dataclass(frozen=True)
class Draft:
    """What is known before precision is lowered."""

    manifest: Manifest  # of the float32 model; its files are not hashed yet
    labels: tuple[str, ...]
    golden: GoldenSet
    folder: Path  # holds model.onnx


def draft_from_checkpoint(
    vit: ViT,
    checkpoint: Checkpoint,
    recipe: Recipe,
    outputs: Sequence[str],
    golden_images: Path | None,
    folder: Path,
    *,
    single_file_limit: int = SINGLE_FILE_LIMIT_BYTES,
) -> Draft:
    """Fix the reference's answers, then trace the graph and write it.

    Args:
        vit: The reference. Its weights are gone afterwards, and so is their memory.
        checkpoint: Where it came from; without the weights.
        recipe: The form of the graph.
        outputs: Names of models.vit.Outputs.
        golden_images: A folder; None takes the package's photos.
        folder: Where model.onnx goes.
        single_file_limit: See `write_model`.

    Raises:
        VitEdgeError: Whatever is wrong with the input.
    """
    architecture = checkpoint.architecture
    specs = output_specs(outputs, architecture, checkpoint.record.source)
    dtype = reference_dtype(vit)
    torch.set_num_threads(cpus.usable_cpus())
    spec, labels = checkpoint.preprocessing, checkpoint.labels
    names, resized, truth = load_golden_images(golden_images, spec, labels, folder)
    with progress(f"reference in {dtype}", len(names)) as bar:
        expected = golden_set.reference_answers(
            vit, resized, spec, outputs, dtype, folder, bar.update
        )
    _LOG.info("tracing the graph")
    model = model_from_vit(vit, outputs, opset=recipe.opset, attention=recipe.attention)
    finish_graph(model, checkpoint, recipe)
    write_model(model, folder, single_file_limit=single_file_limit)
    release_weights(model)
    for parameter in vit.parameters():  # those that the graph holds in another form
        parameter.data = parameter.new_empty(0)
    shape = (None, architecture.channels, *architecture.image_hw)
    manifest = Manifest(
        variant=checkpoint.variant,
        architecture=architecture,
        input=TensorSpec(INPUT_NAME, "float32", "NCHW", shape),
        outputs=specs,
        max_batch=recipe.max_batch,
        preprocessing=spec,
        precision="fp32",
        opset=recipe.opset,
        ir_version=recipe.ir_version,
        recipe=dataclasses.asdict(recipe),
        checkpoint=checkpoint.record,
        reference_dtype=dtype,
        producer=producer(),
    )
    return Draft(manifest, labels, GoldenSet(names, resized, expected, truth), folder)


def reference_dtype(vit: ViT) -> ReferenceDtype:
    """What the reference is computed in."""
    weights_bytes = sum(parameter.nbytes for parameter in vit.parameters())
    return "float64" if weights_bytes < FLOAT64_LIMIT_BYTES else "float32"


def load_golden_images(
    folder: Path | None, spec: Preprocessing, labels: Sequence[str], scratch: Path
) -> tuple[tuple[str, ...], NDArray[np.uint8], NDArray[np.int64] | None]:
    """The golden images, resized, and the classes that their folders tell."""
    files = folders.image_files(folder or folders.PHOTOS)
    with progress("golden images", len(files)) as bar:
        names, resized = golden_set.golden_images(folder, spec, scratch, bar.update)
    return names, resized, folders.classes_from_folders(folder, labels)


def output_specs(
    outputs: Sequence[str], architecture: Architecture, source: str
) -> tuple[TensorSpec, ...]:
    """Describe the outputs asked for.

    Raises:
        UsageError: An output that this model does not have, or named twice.
    """
    shapes: dict[str, tuple[str, tuple[int | None, ...]]] = {
        "features": ("NC", (None, architecture.width)),
        "tokens": ("NLC", (None, architecture.tokens, architecture.width)),
    }
    if architecture.num_classes:
        shapes["logits"] = ("NC", (None, architecture.num_classes))
    if architecture.pre_logits_dim is not None:
        shapes["pre_logits"] = ("NC", (None, architecture.pre_logits_dim))
    if "logits" in outputs and not architecture.num_classes:
        raise UsageError(
            f"{source} has no classification head (or a zeroed one), so there are no logits to "
            "export: ask for what it has, --outputs features"
        )
    check_names(outputs, shapes)
    return tuple(TensorSpec(name, "float32", *shapes[name]) for name in outputs)


def check_names(outputs: Sequence[str], known: Iterable[str]) -> None:
    """Refuse outputs that are not among the known ones, repeated, or none at all."""
    if set(outputs) - set(known) or not outputs or len(set(outputs)) != len(outputs):
        raise UsageError(
            f"--outputs must name some of {', '.join(sorted(known))}, each once, "
            f"not {','.join(outputs)!r}"
        )


def finish_graph(model: onnx_ir.Model, checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Clean the traced graph up, describe it, and check it as far as that needs no weights."""
    name_by_module(model)
    drop_allowzero(model)
    model.ir_version = recipe.ir_version
    model.producer_name, model.producer_version = "vit_edge", vit_edge.__version__
    model.doc_string = ""
    model.metadata_props.clear()
    model.metadata_props["vit_edge.variant"] = checkpoint.variant
    model.metadata_props["vit_edge.labels"] = json.dumps(checkpoint.labels)
    model.metadata_props["vit_edge.preprocessing"] = json.dumps(
        dataclasses.asdict(checkpoint.preprocessing)
    )
    check_standard(model)


def check_standard(model: onnx_ir.Model) -> None:
    """Insist on a valid graph of standard operators.

    Raises:
        ModelError: It is not.
    """
    foreign = sorted(set(model.opset_imports) - {""}) + [str(f) for f in model.functions]
    if foreign:
        raise ModelError(f"the graph needs more than standard operators: {foreign}")
    try:
        onnx.checker.check_model(skeleton(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the graph is not valid ONNX: {error}") from error


def producer() -> dict[str, str]:
    """The versions of everything that had a hand in the bundle."""
    packages = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy", "pillow")
    versions = {"vit_edge": vit_edge.__version__, "python": platform.python_version()}
    return versions | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


@contextmanager
def progress(what: str, total: int, unit: str = "image") -> Iterator[tqdm[Any]]:
    """A bar on a terminal, one line in a log; both on stderr."""
    _LOG.info("%s: %d %ss", what, total, unit)
    with tqdm(total=total, desc=what, unit=unit, leave=False, disable=None) as bar:
        yield bar
