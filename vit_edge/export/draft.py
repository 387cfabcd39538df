"""A float32 model on its way into a bundle: the graph on disk, and the reference's answers."""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir
from tqdm import tqdm

import vit_edge
from vit_edge.bundle.manifest import Manifest, Preprocessing
from vit_edge.errors import ModelError
from vit_edge.export.golden_set import GoldenSet, golden_images
from vit_edge.export.plan import Plan
from vit_edge.export.source import Source, SourceFacts
from vit_edge.graphs.write import skeleton, write_model
from vit_edge.images.folders import classes_from_folders
from vit_edge.quantize.calibration import Calibration, CalibrationFiles, load_calibration

if TYPE_CHECKING:
    from vit_edge.export.merged import Merged

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draft:
    """A model, and what is known of it before precision is lowered."""

    manifest: Manifest  # of the float32 model; its files are not hashed yet
    labels: tuple[str, ...]
    golden: GoldenSet
    folder: Path  # holds model.onnx
    merged: Merged | None = None  # what merging tokens changed; None: none are merged

    @property
    def judges_merging(self) -> bool:
        """Whether the target is for all that changes, merging included."""
        return self.merged is not None and self.merged.unmerged is not None


def answer_golden_images(plan: Plan, source: Source, folder: Path) -> GoldenSet:
    """Fix the reference's answers to the golden images, mapped from files in `folder`.

    Raises:
        VitEdgeError: Whatever is wrong with the images, or with the reference's answers.
    """
    facts, golden = source.facts, plan.golden
    with progress("golden images", len(golden.files)) as bar:
        names, resized = golden_images(golden, facts.preprocessing, folder, bar.update)
    classes = classes_from_folders(golden.folder, facts.labels)
    return reference_answers(source, GoldenSet(names, resized, {}, classes), folder)


def reference_answers(source: Source, golden: GoldenSet, folder: Path) -> GoldenSet:
    """Ask the source for its answers to images, mapped from files in `folder`."""
    with progress(f"reference in {source.facts.reference_dtype}", len(golden)) as bar:
        expected = source.answers(golden.resized, folder, bar.update)
    return dataclasses.replace(golden, expected=expected)


def load_images(
    files: CalibrationFiles, preprocessing: Preprocessing, scratch: Path
) -> Calibration:
    """Load the calibration images, mapped from a file in `scratch`."""
    with progress("calibration images", len(files)) as bar:
        return load_calibration(files, preprocessing, scratch, bar.update)


def write_draft(
    plan: Plan, source: Source, golden: GoldenSet, folder: Path, merged: Merged | None = None
) -> Draft:
    """Write the float32 graph into `folder`. The source's weights are gone afterwards.

    Raises:
        ModelError: The graph cannot be had in the operator set that is needed, or is not valid.
    """
    facts, recipe = source.facts, plan.recipe
    least_opset = 0 if plan.quantizer is None else plan.quantizer.least_opset
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        source.graph(recipe, least_opset, Path(scratch)) as model,
    ):
        finish_graph(model, facts)
        write_model(model, folder, single_file_limit=plan.single_file_limit)
        opset, ir_version = model.opset_imports[""], model.ir_version
    manifest = Manifest(
        variant=facts.variant,
        architecture=facts.architecture,
        input=facts.input,
        outputs=facts.outputs,
        max_batch=recipe.max_batch,
        preprocessing=facts.preprocessing,
        precision="fp32",
        opset=opset,
        ir_version=ir_version,
        recipe=dataclasses.asdict(recipe),
        checkpoint=facts.record,
        reference_dtype=facts.reference_dtype,
        producer=producer() | dict(facts.producer),
        scores=facts.scores,
        labels_invented=facts.labels_invented,
    )
    return Draft(manifest, facts.labels, golden, folder, merged)


def finish_graph(model: onnx_ir.Model, facts: SourceFacts) -> None:
    """Describe the graph, and check it as far as that needs no weights."""
    model.producer_name, model.producer_version = "vit_edge", vit_edge.__version__
    model.metadata_props["vit_edge.variant"] = facts.variant
    model.metadata_props["vit_edge.labels"] = json.dumps(facts.labels)
    model.metadata_props["vit_edge.scores"] = facts.scores
    model.metadata_props["vit_edge.preprocessing"] = json.dumps(
        dataclasses.asdict(facts.preprocessing)
    )
    model.metadata_props.update(habitual_metadata(facts))
    check_standard(model)


def habitual_metadata(facts: SourceFacts) -> dict[str, str]:
    """The keys that ultralytics writes and reads, each as Python writes its value."""
    height, width = facts.preprocessing.crop_hw
    return {
        "description": f"{facts.variant} by vit_edge",
        "author": "vit_edge",
        "version": vit_edge.__version__,
        "task": "classify" if facts.labels else "embed",
        "names": str(dict(enumerate(facts.labels))),
        "imgsz": str([height, width]),
        "stride": str(1 if facts.architecture is None else facts.architecture.patch_px),
        "channels": str(facts.input.shape[1]),
        "batch": "1",
    }


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
