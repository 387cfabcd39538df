"""From a checkpoint, or another exporter's graph, to a published bundle, step by step."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

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
from vit_edge.bundle.staging import staged_bundle
from vit_edge.errors import ParityError
from vit_edge.export.draft import (
    Draft,
    answer_golden_images,
    check_standard,
    load_images,
    progress,
    write_draft,
)
from vit_edge.export.foreign.source import open_foreign
from vit_edge.export.golden_set import write_golden_set
from vit_edge.export.layouts import check_expressible, write_layout
from vit_edge.export.merged import merge_tokens
from vit_edge.export.plan import ExportOptions, Plan, plan_export
from vit_edge.export.preprocessing import (
    check_preprocessing,
    write_end_to_end,
    write_preprocessing,
)
from vit_edge.export.recipe import Recipe, judged_scores, target_for
from vit_edge.export.schedule import shared
from vit_edge.export.source import Source, SourceFacts, open_checkpoint
from vit_edge.graphs.mapped import load_mapped
from vit_edge.graphs.uint8_input import take_uint8, uint8_images
from vit_edge.graphs.write import write_model
from vit_edge.machine import userdirs
from vit_edge.parity.compare import as_json, compare_answers, compared_images, gate_batches
from vit_edge.parity.limits import limit_of
from vit_edge.parity.targets import Target
from vit_edge.quantize import Quantized, Task
from vit_edge.quantize.calibration import Calibration

_LOG = logging.getLogger(__name__)

# Settings of a search that move no noise: they say what is made of those that were measured.
_DECIDING = ("float_budget", "float_share")


def export_bundle(options: ExportOptions) -> Bundle:
    """Plan, open the source, fix its answers, write its graph, finish and publish the bundle.

    Args:
        options: What to make.

    Returns:
        The published bundle.

    Raises:
        ParityError: The graph does not compute the reference's answers, in float32 or in the
            recipe's precision; nothing was published.
        VitEdgeError: Whatever else is wrong with the input; nothing was published either.
    """
    plan = plan_export(options)
    with open_source(plan) as source, open_folders(plan, source.facts) as folders:
        check_expressible(options.layout, source.facts, plan.recipe)
        plan.check_single_files(source.facts.weights_bytes)
        golden, merged = answer_golden_images(plan, source, folders.draft), None
        if plan.merging is not None:
            golden, merged = merge_tokens(plan, plan.merging, source, golden, folders.scratch)
        draft = write_draft(plan, source, golden, folders.draft, merged)
        finish_bundle(plan, draft, folders.stage, folders.scratch)
    _LOG.info("published %s", folders.out)
    return Bundle.read(folders.out)


@contextmanager
def open_source(plan: Plan) -> Iterator[Source]:
    """Read the checkpoint, or the other exporter's graph, that the plan names."""
    options, foreign = plan.options, plan.options.foreign
    if foreign is None:
        yield open_checkpoint(options.checkpoint, options.request, options.outputs, options.scores)
        return
    with tempfile.TemporaryDirectory() as weights:
        yield open_foreign(foreign, options.scores, Path(weights))


class Folders(NamedTuple):
    """The folders of an export."""

    out: Path  # where the bundle will be
    stage: Path  # what becomes it
    scratch: Path  # removed in the end
    draft: Path  # where the float32 graph is written


@contextmanager
def open_folders(plan: Plan, facts: SourceFacts) -> Iterator[Folders]:
    """Give the folders of an export; the bundle is published when the block ends well."""
    out, needed = plan.destination(facts.variant), plan.needed_bytes(facts.weights_bytes)
    with (
        staged_bundle(out, force=plan.options.force, needed_bytes=needed) as stage,
        tempfile.TemporaryDirectory(dir=stage) as scratch,
    ):
        yield Folders(out, stage, Path(scratch), stage if plan.publishes_draft else Path(scratch))


def finish_bundle(plan: Plan, draft: Draft, stage: Path, scratch: Path) -> None:
    """From the float32 graph to everything a bundle holds, in `stage`.

    Raises:
        ParityError: The float32 graph, the lowered one or the preprocessing's does not hold its
            limit.
    """
    manifest, layout = draft.manifest, plan.options.layout
    write_answers(draft, stage)
    target = target_for(plan.recipe, manifest)
    last = plan.publishes_draft
    parity = gate(draft.folder, draft, manifest, target if last else None, last=last)
    if not plan.publishes_draft:
        lowered = lower(plan, draft, target, scratch)
        if plan.recipe.input == "uint8":
            take_uint8_images(lowered, manifest.preprocessing, plan.recipe)
        manifest = lowered_manifest(plan, manifest, lowered)
        write_model(lowered.model, stage)
        parity = gate_lowered(stage, draft, manifest, lowered, target, scratch)
    write_preprocessing(manifest, stage)
    proven = check_preprocessing(stage, manifest, plan.golden, draft.folder)
    parity = {**parity, "preprocessing": proven}
    if plan.options.include_preprocessing:
        parity["end_to_end"] = write_end_to_end(stage, manifest)
    if layout is not None:
        parity["layout"] = write_layout(Bundle(stage, manifest, draft.labels), stage / layout)
    (stage / PARITY_NAME).write_text(json.dumps(parity, indent=2) + "\n")
    write_manifest(stage, manifest)
    Bundle.read(stage)  # what cannot be read is not published


def write_answers(draft: Draft, stage: Path) -> None:
    """Write the labels, and the golden file with the reference's answers."""
    labels = "".join(f"{label}\n" for label in draft.labels)
    (stage / LABELS_NAME).write_text(labels, encoding="utf-8")
    manifest = draft.manifest
    write_golden_set(
        stage / GOLDEN_NAME, draft.golden, manifest.preprocessing, manifest.reference_dtype
    )


def lower(plan: Plan, draft: Draft, target: Target | None, scratch: Path) -> Quantized:
    """Run the plan's quantizer, if there is one, on the float32 graph.

    Raises:
        VitEdgeError: As the quantizer says.
    """
    model = load_mapped(draft.folder / MODEL_NAME)
    if plan.quantizer is None:
        return Quantized(model, {})
    recipe, calibration = plan.recipe, None
    if plan.calibration is not None:
        calibration = load_images(plan.calibration, draft.manifest.preprocessing, scratch)
    if target is not None:
        seen = (shared(target) if draft.judges_merging else target).on_calibration()
        target = seen if seen.bounds else None
    task = Task(
        model=model,
        target=recipe.target,
        calibration=calibration,
        parity_target=target,
        scores=judged_scores(draft.manifest),
        scratch=scratch,
        journal=_journal(draft, recipe, calibration),
        progress=progress,
    )
    _LOG.info("lowering the precision to %s", recipe.precision)
    lowered = plan.quantizer.module.quantize(task, plan.quantizer.settings)
    check_standard(lowered.model)
    return lowered


def _journal(draft: Draft, recipe: Recipe, calibration: Calibration | None) -> Path | None:
    """Return the file of a search's results: the same for one model, recipe and images."""
    cache = userdirs.cache_dir()
    if cache is None:
        return None
    settings = {n: v for n, v in recipe.quantization.items() if n not in _DECIDING}
    recipe = dataclasses.replace(recipe, quantization=settings)
    parts = {
        "files": {name: sha256_of(draft.folder / name) for name in _model_files(draft.folder)},
        "recipe": {
            name: value
            for name, value in dataclasses.asdict(recipe).items()
            if name not in ("name", "input", "also", "build", "parity_target")
        },
        "calibration": None if calibration is None else calibration.as_dict(),
        "producer": draft.manifest.producer,
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return cache / "searches" / f"{key[:24]}.jsonl"


def _model_files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob(f"{MODEL_NAME}*"))


def take_uint8_images(lowered: Quantized, preprocessing: Preprocessing, recipe: Recipe) -> None:
    """Fold the normalisation into a finished graph, and into what simulates it.

    Raises:
        ModelError: The graph does not begin like a ViT.
    """
    for model in (lowered.model, lowered.simulation):
        if model is not None:
            take_uint8(model, preprocessing, recipe.target)
            check_standard(model)


def lowered_manifest(plan: Plan, manifest: Manifest, lowered: Quantized) -> Manifest:
    """The manifest of the float32 graph, with what changed."""
    if plan.recipe.input == "uint8":
        manifest = dataclasses.replace(manifest, input=uint8_images(manifest.input))
    if plan.quantizer is None:
        return manifest
    return dataclasses.replace(
        manifest,
        precision=plan.recipe.precision,
        opset=lowered.model.graph.opset_imports[""],
        ir_version=lowered.model.ir_version,
        quantization={
            **lowered.record,
            "gate": lowered.simulated or "the graph itself, on onnxruntime",
            "table": [list(row) for row in lowered.table],
        },
    )


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
    *,
    last: bool = True,
) -> Mapping[str, Any]:
    """Compare ONNX Runtime with the reference on every golden image.

    Where tokens are merged, the last graph is compared with the model that merges none as well; it
    is that comparison that the target is for.

    Returns:
        The content of parity.json.

    Raises:
        ParityError: They differ by more than the precision's limit, or by more than merging may.
    """
    bundle = Bundle(folder, dataclasses.replace(manifest, files=file_records(folder)), draft.labels)
    integrity.check_model(bundle)
    backend = ort.OrtBackend(bundle, None, "export gate", ort.LoadOptions())
    merged = draft.merged if last else None
    batches = gate_batches(manifest.max_batch)
    golden = draft.golden
    what = f"parity of {manifest.precision}"
    images = compared_images(len(golden), batches)
    with progress(what, sum(-(-n // batch) * batch for batch, n in images.items())) as bar:
        comparison = compare_answers(
            backend,
            golden,
            manifest,
            batches=batches,
            limit=limit_of(manifest),
            target=None if draft.judges_merging and last else target,
            progress=bar.update,
        )
    if comparison.problems:
        raise ParityError(
            f"the {manifest.precision} graph does not compute the reference's answers; nothing was "
            "published:\n  " + "\n  ".join(comparison.problems)
        )
    facts = dict(backend.facts)
    if simulated is not None:
        facts["simulated"] = simulated
    parity = as_json(comparison, facts)
    if merged is not None:
        parity["merging"] = merged.judge(backend, manifest, target, facts)
    backend.close()
    return parity
