"""From a checkpoint to a published bundle, step by step."""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from tqdm import tqdm

import vit_edge
from vit_edge import cpus, verify
from vit_edge.backends import ort
from vit_edge.bundle import (
    GOLDEN_NAME,
    LABELS_NAME,
    PARITY_NAME,
    Bundle,
    check_destination,
    file_records,
    staged_bundle,
    write_manifest,
)
from vit_edge.checkpoints import Checkpoint, Request, load_checkpoint
from vit_edge.errors import ModelError, ParityError, UsageError
from vit_edge.export import golden_set
from vit_edge.export.golden_set import GoldenSet
from vit_edge.export.graph import INPUT_NAME, model_from_vit, release_weights
from vit_edge.export.passes.readable import drop_allowzero, name_by_module
from vit_edge.export.recipe import Recipe
from vit_edge.export.serialize import SINGLE_FILE_LIMIT_BYTES, skeleton, write_model
from vit_edge.manifest import Architecture, Manifest, TensorSpec
from vit_edge.models.reference import ReferenceDtype
from vit_edge.models.vit import ViT, vit_from_weights
from vit_edge.parity.compare import as_json, compare_answers, gate_batches
from vit_edge.parity.limits import limit_for

_LOG = logging.getLogger(__name__)

OUTPUTS = ("logits", "features", "tokens", "pre_logits")
DEFAULT_OUTPUTS = OUTPUTS[:2]
# float64 costs huge about 15 s an image on two cores, so it is compared with float32 instead
FLOAT64_LIMIT_BYTES = SINGLE_FILE_LIMIT_BYTES


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and where to."""

    recipe: Recipe
    checkpoint: str | None = None  # SOURCE; None: the variant's published one
    request: Request = field(default_factory=Request)
    outputs: tuple[str, ...] = DEFAULT_OUTPUTS
    golden_images: Path | None = None  # None: the package's own photos
    out: Path | None = None  # None: bundles/<variant>-<precision>
    force: bool = False


def export_bundle(options: ExportOptions) -> Bundle:
    """Load, trace, write, prove and publish.

    Args:
        options: What to make.

    Returns:
        The published bundle.

    Raises:
        ParityError: The exported graph does not compute the reference's answers; nothing was
            published.
        VitEdgeError: Whatever else is wrong with the input; nothing was published either.
    """
    if options.out is not None:
        check_destination(options.out, force=options.force)
    _check_names(options.outputs, OUTPUTS)
    golden_set.image_files(options.golden_images or golden_set.PHOTOS)
    _LOG.info("loading the checkpoint")
    checkpoint = load_checkpoint(options.checkpoint, options.request)
    architecture = checkpoint.architecture
    specs = output_specs(options.outputs, architecture, checkpoint.record.source)
    out = options.out or Path("bundles") / f"{checkpoint.variant}-{options.recipe.precision}"
    check_destination(out, force=options.force)
    weights_bytes = sum(tensor.nbytes for tensor in checkpoint.weights.values())
    dtype: ReferenceDtype = "float64" if weights_bytes < FLOAT64_LIMIT_BYTES else "float32"
    _LOG.info(
        "%s: %.1f M parameters from %s",
        checkpoint.variant,
        weights_bytes / 4e6,
        checkpoint.record.source,
    )
    torch.set_num_threads(cpus.usable_cpus())
    with staged_bundle(
        out, force=options.force, needed_bytes=int(weights_bytes * 1.1) + 2**26
    ) as stage:
        vit = vit_from_weights(architecture, dict(checkpoint.weights))
        checkpoint = dataclasses.replace(checkpoint, weights={})  # the model holds them now
        golden = _fix_reference(vit, checkpoint, options, dtype, stage)
        _LOG.info("tracing the graph")
        model = model_from_vit(
            vit, options.outputs, opset=options.recipe.opset, attention=options.recipe.attention
        )
        del vit
        _finish_graph(model, checkpoint, options.recipe)
        write_model(model, stage)
        release_weights(model)
        del model
        manifest = _manifest(checkpoint, options.recipe, specs, dtype)
        labels = "".join(f"{label}\n" for label in checkpoint.labels)
        (stage / LABELS_NAME).write_text(labels, encoding="utf-8")
        golden_set.write_golden_set(stage / GOLDEN_NAME, golden, checkpoint.preprocessing, dtype)
        complete = dataclasses.replace(manifest, files=file_records(stage))
        bundle = Bundle(stage, complete, checkpoint.labels)
        (stage / PARITY_NAME).write_text(json.dumps(_gate(bundle, golden), indent=2) + "\n")
        write_manifest(stage, manifest)
        Bundle.read(stage)  # what cannot be read is not published
    _LOG.info("published %s", out)
    return Bundle.read(out)


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
    _check_names(outputs, shapes)
    return tuple(TensorSpec(name, "float32", *shapes[name]) for name in outputs)


def _check_names(outputs: Sequence[str], known: Iterable[str]) -> None:
    if set(outputs) - set(known) or not outputs or len(set(outputs)) != len(outputs):
        raise UsageError(
            f"--outputs must name some of {', '.join(sorted(known))}, each once, "
            f"not {','.join(outputs)!r}"
        )


def _fix_reference(
    vit: ViT,
    checkpoint: Checkpoint,
    options: ExportOptions,
    dtype: ReferenceDtype,
    scratch: Path,
) -> GoldenSet:
    files = golden_set.image_files(options.golden_images or golden_set.PHOTOS)
    with _progress("golden images", len(files)) as bar:
        names, resized = golden_set.golden_images(
            options.golden_images, checkpoint.preprocessing, scratch, bar.update
        )
    with _progress(f"reference in {dtype}", len(names)) as bar:
        expected = golden_set.reference_answers(
            vit, resized, checkpoint.preprocessing, options.outputs, dtype, scratch, bar.update
        )
    return GoldenSet(names, resized, expected)


def _finish_graph(model: onnx_ir.Model, checkpoint: Checkpoint, recipe: Recipe) -> None:
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
    foreign = sorted(set(model.opset_imports) - {""}) + [str(f) for f in model.functions]
    if foreign:
        raise ModelError(f"the traced graph needs more than standard operators: {foreign}")
    try:
        onnx.checker.check_model(skeleton(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the traced graph is not valid ONNX: {error}") from error


def _manifest(
    checkpoint: Checkpoint, recipe: Recipe, outputs: tuple[TensorSpec, ...], dtype: ReferenceDtype
) -> Manifest:
    architecture = checkpoint.architecture
    shape = (None, architecture.channels, *architecture.image_hw)
    packages = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy", "pillow")
    producer = {"vit_edge": vit_edge.__version__, "python": platform.python_version()}
    return Manifest(
        variant=checkpoint.variant,
        architecture=architecture,
        input=TensorSpec(INPUT_NAME, "float32", "NCHW", shape),
        outputs=outputs,
        max_batch=recipe.max_batch,
        preprocessing=checkpoint.preprocessing,
        precision=recipe.precision,
        opset=recipe.opset,
        ir_version=recipe.ir_version,
        recipe=dataclasses.asdict(recipe),
        checkpoint=checkpoint.record,
        reference_dtype=dtype,
        producer=producer | {name: _version(name) for name in packages},
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _gate(bundle: Bundle, golden: GoldenSet) -> Mapping[str, Any]:
    """Compare ONNX Runtime with the reference on every golden image.

    Raises:
        ParityError: They differ by more than the precision's limit.
    """
    manifest = bundle.manifest
    verify.check_model(bundle)
    backend = ort.OrtBackend(bundle, None, "export gate", cpus.usable_cpus(), "cpu")
    batches = gate_batches(manifest.max_batch)
    with _progress("parity", sum(-(-len(golden) // b) * b for b in batches)) as bar:
        comparison = compare_answers(
            backend,
            golden,
            manifest.preprocessing,
            batches=batches,
            limit=limit_for(manifest.precision),
            progress=bar.update,
        )
    backend.close()
    if comparison.problems:
        raise ParityError(
            "the exported graph does not compute the reference's answers; nothing was published:"
            "\n  " + "\n  ".join(comparison.problems)
        )
    return as_json(comparison, backend.facts)


@contextmanager
def _progress(what: str, total: int) -> Iterator[tqdm[Any]]:
    """A bar on a terminal, one line in a log; both on stderr."""
    _LOG.info("%s: %d images", what, total)
    with tqdm(total=total, desc=what, unit="image", leave=False, disable=None) as bar:
        yield bar
