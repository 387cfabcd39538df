"""From a checkpoint, or another exporter's graph, to a published bundle, step by step."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir

from vit_edge import quantize
from vit_edge.backends import ort
from vit_edge.bundle import Bundle, integrity
from vit_edge.bundle.bundle import (
    GOLDEN_NAME,
    LABELS_NAME,
    MODEL_NAME,
    PARITY_NAME,
    file_records,
    sha256_of,
    write_manifest,
)
from vit_edge.bundle.manifest import Manifest, Preprocessing
from vit_edge.bundle.staging import check_destination, staged_bundle
from vit_edge.checkpoints import Request, load_checkpoint
from vit_edge.errors import ParityError, UsageError
from vit_edge.export import golden_set
from vit_edge.export.draft import (
    Draft,
    check_names,
    check_standard,
    draft_from_checkpoint,
    output_specs,
    progress,
)
from vit_edge.export.foreign.interface import OLDEST_OPSET
from vit_edge.export.foreign.source import draft_from_foreign, foreign_source
from vit_edge.export.golden_set import GoldenSet
from vit_edge.export.recipe import Recipe
from vit_edge.graphs.uint8_input import take_uint8, uint8_images
from vit_edge.graphs.write import SINGLE_FILE_LIMIT_BYTES, write_model
from vit_edge.images import folders
from vit_edge.machine import cpus, userdirs
from vit_edge.models.vit import vit_from_weights
from vit_edge.parity.compare import as_json, compare_answers, compared_images, gate_batches
from vit_edge.parity.limits import limit_for
from vit_edge.parity.targets import Target
from vit_edge.quantize import FLOAT, Quantized, Task
from vit_edge.quantize.calibration import (
    RANDOM,
    Calibration,
    CalibrationRequest,
    chosen_files,
    load_calibration,
)

_LOG = logging.getLogger(__name__)

OUTPUTS = ("logits", "features", "tokens", "pre_logits")
DEFAULT_OUTPUTS = OUTPUTS[:2]


@dataclass(frozen=True)
class ForeignFile:
    """Another exporter's graph, and what it does not say itself."""

    path: Path
    preprocess: str  # see conventions.preprocessing_for
    labels: Path | None = None


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and where to."""

    recipe: Recipe
    checkpoint: str | None = None  # SOURCE; None: the variant's published one
    request: Request = field(default_factory=Request)
    outputs: tuple[str, ...] = DEFAULT_OUTPUTS
    golden_images: Path | None = None  # None: the package's own photos
    calibration: CalibrationRequest | None = None
    foreign: ForeignFile | None = None  # instead of a checkpoint
    out: Path | None = None  # None: bundles/<variant>-<precision>
    force: bool = False


def export_bundle(options: ExportOptions) -> Bundle:
    """Load, trace, write, lower the precision, prove and publish.

    Args:
        options: What to make.

    Returns:
        The published bundle.

    Raises:
        ParityError: The graph does not compute the reference's answers, in float32 or in the
            recipe's precision; nothing was published.
        VitEdgeError: Whatever else is wrong with the input; nothing was published either.
    """
    if options.out is not None:
        check_destination(options.out, force=options.force)
    check_images(options)
    if options.foreign is None:
        out = _export_checkpoint(options)
    else:
        out = _export_foreign(options.foreign, options)
    _LOG.info("published %s", out)
    return Bundle.read(out)


def _export_checkpoint(options: ExportOptions) -> Path:
    check_names(options.outputs, OUTPUTS)
    _LOG.info("loading the checkpoint")
    checkpoint = load_checkpoint(options.checkpoint, options.request)
    source = checkpoint.record.source
    output_specs(options.outputs, checkpoint.architecture, source)  # refused before any work
    weights_bytes = sum(tensor.nbytes for tensor in checkpoint.weights.values())
    _LOG.info("%s: %.1f M parameters from %s", checkpoint.variant, weights_bytes / 4e6, source)
    with _stages(options, checkpoint.variant, weights_bytes) as stages:
        vit = vit_from_weights(checkpoint.architecture, dict(checkpoint.weights))
        checkpoint = dataclasses.replace(checkpoint, weights={})  # the model holds them now
        draft = draft_from_checkpoint(
            vit,
            checkpoint,
            options.recipe,
            options.outputs,
            options.golden_images,
            stages.draft,
            single_file_limit=stages.single_file_limit,
        )
        finish_bundle(draft, options, stages.bundle, stages.scratch)
    return stages.out


def _export_foreign(foreign: ForeignFile, options: ExportOptions) -> Path:
    recipe = options.recipe
    _LOG.info("reading %s", foreign.path)
    with tempfile.TemporaryDirectory() as weights:
        source = foreign_source(foreign.path, foreign.preprocess, foreign.labels, Path(weights))
        size = sum(file.stat().st_size for file in Path(weights).rglob("*") if file.is_file())
        with _stages(options, source.variant, size) as stages:
            least = (
                {} if recipe.precision == FLOAT else quantize.module(recipe.precision).LEAST_OPSET
            )
            draft = draft_from_foreign(
                source,
                recipe,
                options.golden_images,
                stages.draft,
                least_opset=least.get(recipe.target, OLDEST_OPSET),
                single_file_limit=stages.single_file_limit,
            )
            finish_bundle(draft, options, stages.bundle, stages.scratch)
    return stages.out


class _Stages(NamedTuple):
    """Where an export works."""

    out: Path  # where the bundle will be
    bundle: Path  # what becomes it
    scratch: Path  # removed in the end
    draft: Path  # where the float32 graph is written
    single_file_limit: int


@contextmanager
def _stages(options: ExportOptions, variant: str, weights_bytes: int) -> Iterator[_Stages]:
    """Give the folders of an export; the bundle is published when the block ends well."""
    recipe = options.recipe
    out = options.out or Path("bundles") / f"{variant}-{recipe.precision}"
    needed = needed_bytes(weights_bytes, recipe)
    with (
        staged_bundle(out, force=options.force, needed_bytes=needed) as stage,
        tempfile.TemporaryDirectory(dir=stage) as scratch,
    ):
        # a float32 graph is the bundle's own; whatever becomes of one starts with its weights in
        # a file beside it, so that they are mapped while they are worked on
        if _publishes_draft(recipe):
            yield _Stages(out, stage, Path(scratch), stage, SINGLE_FILE_LIMIT_BYTES)
        else:
            yield _Stages(out, stage, Path(scratch), Path(scratch), 0)


def _publishes_draft(recipe: Recipe) -> bool:
    """Whether the float32 graph of float32 pixels is what is asked for."""
    return recipe.precision == FLOAT and recipe.input == "float32"


def needed_bytes(weights_bytes: int, recipe: Recipe) -> int:
    """Free space to insist on: the graph, and copies of it while the precision is lowered."""
    copies = 1.1 if _publishes_draft(recipe) else 3.3
    return int(weights_bytes * copies) + 2**26


def finish_bundle(draft: Draft, options: ExportOptions, stage: Path, scratch: Path) -> None:
    """From the float32 graph to everything a bundle holds, in `stage`.

    Raises:
        ParityError: The float32 graph or the lowered one does not hold its limit.
    """
    labels = "".join(f"{label}\n" for label in draft.labels)
    (stage / LABELS_NAME).write_text(labels, encoding="utf-8")
    golden_set.write_golden_set(
        stage / GOLDEN_NAME,
        draft.golden,
        draft.manifest.preprocessing,
        draft.manifest.reference_dtype,
    )
    recipe, manifest = options.recipe, draft.manifest
    parity = gate(draft.folder, draft, manifest)
    if not _publishes_draft(recipe):
        if recipe.precision == FLOAT:
            lowered = Quantized(onnx_ir.load(draft.folder / MODEL_NAME), {})
        else:
            lowered = lower(draft, options, scratch)
            manifest = _lowered_manifest(manifest, recipe, lowered)
        if recipe.input == "uint8":
            take_uint8_images(lowered, manifest.preprocessing, recipe)
            manifest = dataclasses.replace(manifest, input=uint8_images(manifest.input))
        write_model(lowered.model, stage)
        parity = gate_lowered(stage, draft, manifest, lowered, recipe.target_bounds, scratch)
    (stage / PARITY_NAME).write_text(json.dumps(parity, indent=2) + "\n")
    write_manifest(stage, manifest)
    Bundle.read(stage)  # what cannot be read is not published


def take_uint8_images(lowered: Quantized, preprocessing: Preprocessing, recipe: Recipe) -> None:
    """Fold the normalisation into a finished graph, and into what simulates it.

    Raises:
        ModelError: The graph does not begin like a ViT.
    """
    for model in (lowered.model, lowered.simulation):
        if model is not None:
            take_uint8(model, preprocessing, recipe.target)
            check_standard(model)


def _lowered_manifest(manifest: Manifest, recipe: Recipe, lowered: Quantized) -> Manifest:
    return dataclasses.replace(
        manifest,
        precision=recipe.precision,
        opset=lowered.model.graph.opset_imports[""],
        ir_version=lowered.model.ir_version,
        quantization={
            **lowered.record,
            "gate": lowered.simulated or "the graph itself, on onnxruntime",
            "table": [list(row) for row in lowered.table],
        },
    )


def lower(draft: Draft, options: ExportOptions, scratch: Path) -> Quantized:
    """Run the recipe's quantizer on the float32 graph.

    Raises:
        VitEdgeError: As the quantizer says.
    """
    recipe = options.recipe
    quantizer = quantize.module(recipe.precision)
    calibration = None
    if options.calibration is not None and quantizer.CALIBRATION != "unused":
        request = options.calibration
        count = request.count if request.source == RANDOM else len(chosen_files(request))
        with progress("calibration images", count) as bar:
            calibration = load_calibration(
                options.calibration, draft.manifest.preprocessing, scratch, bar.update
            )
    settings = quantize.settings_from_table(recipe.precision, recipe.quantization, recipe.name)
    task = Task(
        model=onnx_ir.load(draft.folder / MODEL_NAME),
        target=recipe.target,
        calibration=calibration,
        parity_target=recipe.target_bounds,
        scratch=scratch,
        journal=_journal(draft, recipe, calibration),
        progress=progress,
    )
    _LOG.info("lowering the precision to %s", recipe.precision)
    lowered = quantizer.quantize(task, settings)
    check_standard(lowered.model)
    return lowered


def _journal(draft: Draft, recipe: Recipe, calibration: Calibration | None) -> Path | None:
    """Where a search keeps what it found: the same for the same model, recipe and images."""
    cache = userdirs.cache_dir()
    if cache is None:
        return None
    parts = {
        "files": {name: sha256_of(draft.folder / name) for name in _model_files(draft.folder)},
        "recipe": {
            name: value
            for name, value in dataclasses.asdict(recipe).items()
            if name not in ("name", "input", "also", "build")  # none of them moves a scale
        },
        "calibration": None if calibration is None else calibration.as_dict(),
        "producer": draft.manifest.producer,
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return cache / "searches" / f"{key[:24]}.jsonl"


def _model_files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob(f"{MODEL_NAME}*"))


def gate_lowered(
    stage: Path,
    draft: Draft,
    manifest: Manifest,
    lowered: Quantized,
    target: Target | None,
    scratch: Path,
) -> Mapping[str, Any]:
    """Hold the lowered graph, or its simulation, against the reference.

    Raises:
        ParityError: It does not keep the precision's limit, or misses the target.
    """
    if lowered.simulation is None:
        return gate(stage, draft, manifest, target)
    folder = scratch / "simulation"
    folder.mkdir()
    write_model(lowered.simulation, folder)
    return gate(folder, draft, manifest, target, lowered.simulated)


def gate(
    folder: Path,
    draft: Draft,
    manifest: Manifest,
    target: Target | None = None,
    simulated: str | None = None,
) -> Mapping[str, Any]:
    """Compare ONNX Runtime with the reference on every golden image.

    Returns:
        The content of parity.json.

    Raises:
        ParityError: They differ by more than the precision's limit.
    """
    bundle = Bundle(folder, dataclasses.replace(manifest, files=file_records(folder)), draft.labels)
    integrity.check_model(bundle)
    backend = ort.OrtBackend(bundle, None, "export gate", ort.Use(cpus.usable_cpus()))
    batches = gate_batches(manifest.max_batch)
    golden: GoldenSet = draft.golden
    what = f"parity of {manifest.precision}"
    images = compared_images(len(golden), batches)
    with progress(what, sum(-(-n // batch) * batch for batch, n in images.items())) as bar:
        comparison = compare_answers(
            backend,
            golden,
            manifest,
            batches=batches,
            limit=limit_for(manifest.precision),
            target=target,
            progress=bar.update,
        )
    backend.close()
    if comparison.problems:
        raise ParityError(
            f"the {manifest.precision} graph does not compute the reference's answers; nothing was "
            "published:\n  " + "\n  ".join(comparison.problems)
        )
    facts = dict(backend.facts)
    if simulated is not None:
        facts["simulated"] = simulated
    return as_json(comparison, facts)


def check_images(options: ExportOptions) -> None:
    """Refuse what is wrong with the images before anything expensive starts.

    Raises:
        UsageError: No images, none to calibrate on where they are needed, or the same images to
            calibrate on and to be judged by.
    """
    golden = folders.image_files(options.golden_images or folders.PHOTOS)
    precision = options.recipe.precision
    if precision == FLOAT:
        return
    need = quantize.module(precision).CALIBRATION
    request = options.calibration
    if request is None:
        if need == "required":
            raise UsageError(
                f"{precision} needs to see what the model sees: give a folder with 100 images or "
                "more of the kind that it will meet, --calibration DIR (--calibration "
                f"{RANDOM} takes noise instead, which fits no real image)"
            )
        return
    if problems := request.problems():
        raise UsageError("; ".join(problems))
    if request.source == RANDOM:
        _LOG.warning("calibrating on random noise, as asked for: expect the ranges to be wrong")
        return
    _refuse_overlap(golden, chosen_files(request), explicit=options.golden_images is not None)


def _refuse_overlap(golden: list[Path], calibration: list[Path], *, explicit: bool) -> None:
    judged = {sha256_of(file) for file in golden}
    both = [file for file in calibration if sha256_of(file) in judged]
    if not both:
        return
    found = f"{len(both)} of {len(calibration)} calibration images, such as {both[0]}, are golden "
    if explicit:
        raise UsageError(
            f"{found}images too: a model must not be judged by what it was fitted to. Give "
            "--calibration and --golden-images different images"
        )
    _LOG.warning("%simages too: name others with --golden-images for an honest verdict", found)
