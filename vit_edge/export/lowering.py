"""A float32 bundle becomes one of lower precision, without its checkpoint.

A float32 bundle holds the graph that every quantizer starts from, and the reference's own answers
to its golden images. So the steps of an export from there on are the same.
"""

from __future__ import annotations

import dataclasses
import os
from contextlib import AbstractContextManager, closing
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
from numpy.typing import NDArray

from vit_edge.backends import ort
from vit_edge.bundle import Bundle, integrity
from vit_edge.bundle.golden import Golden
from vit_edge.errors import UsageError
from vit_edge.export.api import check_words
from vit_edge.export.draft import answer_golden_images, write_draft
from vit_edge.export.golden_set import GoldenSet, Progress
from vit_edge.export.layouts import check_expressible
from vit_edge.export.merged import Merged
from vit_edge.export.pipeline import finish_bundle, open_folders
from vit_edge.export.plan import ExportOptions, plan_export
from vit_edge.export.recipe import Recipe, find_recipe, recipe_names
from vit_edge.export.source import SourceFacts, answers_in_batches, exported_graph
from vit_edge.graphs.mapped import load_mapped
from vit_edge.images.load import load_image
from vit_edge.images.resize import resized_from_image
from vit_edge.quantize import FLOAT
from vit_edge.quantize.calibration import CalibrationFiles, CalibrationRequest

_BATCH = 8  # of the float32 graph, where it answers images of the user's own
_Path = str | os.PathLike[str]


def quantize(
    bundle: _Path | Bundle,
    precision: str | None = None,
    *,
    calibration: _Path | CalibrationRequest | None = None,
    out: _Path | None = None,
    force: bool = False,
    recipe: _Path | Recipe | None = None,
    max_batch: int | None = None,
    target: str | None = None,
    golden_images: _Path | None = None,
    include_preprocessing: bool = False,
    layout: str | None = None,
) -> Bundle:
    """Lower the precision of a float32 bundle, and prove that it keeps the reference's answers.

    Args:
        bundle: The float32 bundle: its directory, or a Bundle that was read.
        precision: "int8", "fp16", "int4" ...; by default the recipe's.
        calibration: A folder of images to choose scales on, which int8 needs; a CalibrationRequest
            says how many, and which; "random" asks for noise.
        out: The new bundle's directory; by default bundles/VARIANT-PRECISION.
        force: Replace a bundle that is there, in one step.
        recipe: The name of one of ours, a .toml file, or a Recipe; by default the one for the
            precision and for what the float32 bundle was made for.
        max_batch: The largest batch that is proven and allowed; by default the float32 bundle's.
        target: What must hold besides the precision's limit: "top1_agreement=0.99".
        golden_images: A folder of images to prove it on, which the float32 graph answers; by
            default those in the bundle, with the reference's own answers.
        include_preprocessing: Write end-to-end.onnx as well: an RGB image of any size in, the
            answers out. It is for CPUs.
        layout: "transformers.js" writes a folder of that name into the bundle, which
            transformers.js and optimum load.

    Returns:
        The new bundle.

    Raises:
        UsageError: The bundle is not float32, or the recipe needs another graph.
        ParityError: The answers are not kept. Nothing was published.
        VitEdgeError: Whatever else is wrong with what was handed in.
    """
    check_words(precision=precision, target=target)
    given = Bundle.read(bundle)
    chosen = choose_recipe(given, precision, recipe)
    if calibration is not None and not isinstance(calibration, CalibrationRequest):
        calibration = CalibrationRequest(os.fspath(calibration))
    plan = plan_export(
        ExportOptions(
            chosen.changed(max_batch=max_batch or given.manifest.max_batch, parity_target=target),
            outputs=tuple(output.name for output in given.manifest.outputs),
            golden_images=None if golden_images is None else Path(golden_images),
            calibration=calibration,
            out=None if out is None else Path(out),
            force=force,
            include_preprocessing=include_preprocessing,
            layout=layout,
        )
    )
    check_expressible(layout, given.manifest, plan.recipe)
    plan.check_single_files(given.model_bytes)
    integrity.ensure_verified(given, full=True)
    source = BundleSource(given, own_answers=golden_images is None)
    with open_folders(plan, source.facts) as folders:
        if golden_images is None:
            golden = _stored_answers(given, folders.draft)
            _refuse_seen(golden, plan.calibration, source.facts)
        else:
            golden = answer_golden_images(plan, source, folders.draft)
        record = given.parity().get("merging")
        if record is not None:  # of the float32 graph: nothing here answers without merging
            record = {name: part for name, part in record.items() if name != "against_unmerged"}
        merged = None if record is None else Merged(record, None)
        draft = write_draft(plan, source, golden, folders.draft, merged)
        finish_bundle(plan, draft, folders.stage, folders.scratch)
    return Bundle.read(folders.out)


class BundleSource:
    """A float32 bundle as the source of another one: an export.source.Source."""

    def __init__(self, bundle: Bundle, *, own_answers: bool) -> None:
        """Take what the manifest says.

        Args:
            bundle: The bundle; its files were verified.
            own_answers: The reference's answers are in it; otherwise its graph answers.
        """
        manifest = bundle.manifest
        made = {"float32_model": bundle.model_sha256}
        if not own_answers:
            made["reference"] = f"float32, onnxruntime {onnxruntime.__version__} on that model"
        self._bundle = bundle
        self.facts = SourceFacts(
            variant=manifest.variant,
            architecture=manifest.architecture,
            input=manifest.input,
            outputs=manifest.outputs,
            preprocessing=manifest.preprocessing,
            labels=bundle.labels,
            record=manifest.checkpoint,
            reference_dtype=manifest.reference_dtype if own_answers else "float32",
            weights_bytes=bundle.model_bytes,
            scores=manifest.scores,
            labels_invented=manifest.labels_invented,
            producer=made,
        )

    def answers(
        self, resized: NDArray[np.uint8], scratch: Path, progress: Progress
    ) -> dict[str, NDArray[np.float32]]:
        """Run the float32 graph on ONNX Runtime; see Source."""
        size = min(_BATCH, self._bundle.manifest.max_batch)
        backend = ort.OrtBackend(self._bundle, None, "reference", ort.LoadOptions())
        with closing(backend):
            return answers_in_batches(backend.run, self.facts, resized, size, scratch, progress)

    def graph(
        self, recipe: Recipe, least_opset: int, scratch: Path
    ) -> AbstractContextManager[onnx_ir.Model]:
        """Give the graph as the bundle has it, as far as the quantizer takes it; see Source."""
        return exported_graph(load_mapped(self._bundle.model_path), recipe, least_opset, scratch)


def choose_recipe(bundle: Bundle, precision: str | None, asked: _Path | Recipe | None) -> Recipe:
    """Choose the recipe.

    Raises:
        UsageError: There is none, or the bundle is not what it starts from.
    """
    manifest = bundle.manifest
    if manifest.precision != FLOAT:
        raise UsageError(
            f"{bundle.path}: its precision is {manifest.precision}, expected fp32. What was "
            "lowered is not lowered again: give the bundle that was exported in fp32"
        )
    if manifest.input.dtype != "float32":
        raise UsageError(
            f"{bundle.path}: its input is {manifest.input.dtype}, expected float32. Export it with "
            "--input float32; a recipe may take uint8 once the precision is lowered"
        )
    if isinstance(asked, Recipe):
        recipe = asked
    else:
        wanted = None if precision is None else precision.lower()
        name = None if asked is None else os.fspath(asked)
        own = f"{manifest.recipe.get('target')}-{wanted}"
        recipe = find_recipe(own if name is None and own in recipe_names() else name, wanted)
    merges = manifest.architecture is not None and manifest.architecture.merged_tokens
    if recipe.merge_tokens and not merges:
        raise UsageError(
            f"recipe {recipe.name} merges tokens, and the graph of {bundle.path} does not. The "
            "graph is as it is: export the checkpoint with that recipe"
        )
    if recipe.precision == FLOAT:
        raise UsageError("--precision: the bundle is fp32 already; name a lower one, such as int8")
    if precision is not None and recipe.precision != precision.lower():
        raise UsageError(f"precision {precision}, but the recipe makes {recipe.precision}")
    if manifest.opset > recipe.opset:
        raise UsageError(
            f"{bundle.path}: its graph is of opset {manifest.opset}, and {recipe.name} makes one "
            f"of opset {recipe.opset}. Export the fp32 bundle for that target: "
            f'recipe="{recipe.target}-fp32"'
        )
    if manifest.recipe.get("attention") == "decomposed":
        recipe = dataclasses.replace(recipe, attention="decomposed")
    return recipe


def _stored_answers(bundle: Bundle, scratch: Path) -> GoldenSet:
    """The golden images of the bundle, with the reference's answers."""
    with Golden(bundle.golden_path) as golden:
        every = range(len(golden))
        return GoldenSet(
            tuple(golden.names), golden.images(every), golden.answers(every), golden.labels(every)
        )


def _refuse_seen(
    golden: GoldenSet, calibration: CalibrationFiles | None, facts: SourceFacts
) -> None:
    """Refuse to be judged by what was calibrated on; files are found by their names first.

    Raises:
        UsageError: A calibration image is a golden image.
    """
    for file in () if calibration is None else calibration.files:
        alike = [place for place, name in enumerate(golden.names) if name == file.name]
        if not alike:  # folders of classes often number their files alike
            continue
        image = load_image(file, background=facts.preprocessing.background)
        seen = resized_from_image(image, facts.preprocessing)
        if any(np.array_equal(seen, golden.resized[place]) for place in alike):
            raise UsageError(
                f"{file} is a golden image of the bundle: a model must not be judged by what it "
                "was fitted to. Give --calibration other images, or --images"
            )
