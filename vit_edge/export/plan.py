"""The plan of an export: what the command line asked for, resolved once, before any work.

Everything that can be refused without reading a weight is refused here. The steps of the pipeline
take what they need from the plan and from the steps before them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vit_edge.quantize as quantize
from vit_edge.bundle.bundle import sha256_of
from vit_edge.bundle.manifest import Scores
from vit_edge.bundle.staging import check_destination
from vit_edge.checkpoints import Request
from vit_edge.checkpoints.live import LiveModule
from vit_edge.errors import UsageError
from vit_edge.export.golden_set import GoldenFiles, golden_files
from vit_edge.export.layouts import check_layout
from vit_edge.export.preprocessing import check_joinable
from vit_edge.export.recipe import Recipe
from vit_edge.export.schedule import AUTO, Merging
from vit_edge.export.single_file import check_single_file
from vit_edge.export.source import OUTPUTS, check_names
from vit_edge.graphs.write import SINGLE_FILE_LIMIT_BYTES
from vit_edge.quantize import FLOAT, QuantizerModule
from vit_edge.quantize.calibration import (
    RANDOM,
    CalibrationFiles,
    CalibrationRequest,
    calibration_files,
)

_LOG = logging.getLogger(__name__)

DEFAULT_OUTPUTS = OUTPUTS[:2]


@dataclass(frozen=True)
class ForeignFile:
    """Another exporter's graph, and what it does not say itself."""

    path: Path
    preprocess: str  # see conventions.preprocessing_for
    labels: Path | None = None
    output: str | None = None  # the user calls it logits or features; None: the file must tell


@dataclass(frozen=True)
class ExportOptions:
    """The export that was asked for, and its place: not checked yet."""

    recipe: Recipe
    checkpoint: str | LiveModule | None = None  # SOURCE; None: the variant's published one
    request: Request = field(default_factory=Request)
    outputs: tuple[str, ...] = DEFAULT_OUTPUTS
    golden_images: Path | None = None  # None: the package's own photos
    calibration: CalibrationRequest | None = None
    foreign: ForeignFile | None = None  # instead of a checkpoint
    scores: Scores | None = None  # of the logits; None: as the checkpoint says
    out: Path | None = None  # None: bundles/<variant>-<precision>
    force: bool = False
    include_preprocessing: bool = False  # write one graph from images to answers as well
    layout: str | None = None  # a folder that others load, see layouts.LAYOUTS


@dataclass(frozen=True)
class Quantizer:
    """The way the precision is lowered."""

    module: QuantizerModule
    settings: Any  # an instance of the module's Settings
    least_opset: int  # of the graph that it takes


@dataclass(frozen=True)
class Plan:
    """A checked export: its options, its quantizer and its images."""

    options: ExportOptions
    quantizer: Quantizer | None  # None: fp32
    golden: GoldenFiles  # what the graphs are judged by
    calibration: CalibrationFiles | None  # what scales, ranges and schedules are chosen on
    single_file_limit: int  # bytes of float32 weights from which on they get a file of their own

    @property
    def recipe(self) -> Recipe:
        """The recipe that the export follows."""
        return self.options.recipe

    @property
    def merging(self) -> Merging | None:
        """How tokens are merged; None: they are not."""
        return self.recipe.merging

    @property
    def publishes_draft(self) -> bool:
        """Tell whether the float32 graph of float32 pixels is what is asked for."""
        return _publishes_draft(self.recipe)

    def destination(self, variant: str) -> Path:
        """Return the folder of the bundle."""
        return self.options.out or Path("bundles") / f"{variant}-{self.recipe.precision}"

    def check_single_files(self, weights_bytes: int) -> None:
        """Refuse what is one file, where the source's weights do not fit into one.

        Raises:
            UsageError: They do not.
        """
        precision = self.recipe.precision
        if self.options.include_preprocessing:
            check_single_file("--include-preprocessing", weights_bytes, precision)
        if self.options.layout is not None:
            check_single_file(f"--layout {self.options.layout}", weights_bytes, precision)

    def needed_bytes(self, weights_bytes: int) -> int:
        """Free space to insist on: the graph, its copies while it is lowered, and single files."""
        copies = 1.1 if self.publishes_draft else 3.3
        copies += self.options.include_preprocessing + (self.options.layout is not None)
        return int(weights_bytes * copies) + 2**26


def plan_export(options: ExportOptions) -> Plan:
    """Resolve what was asked for, and refuse what is wrong before anything expensive starts.

    Raises:
        UsageError: The destination exists, no images, none to calibrate on where they are needed
            or some where they are not, the same images to calibrate on and to be judged by, or
            unknown outputs.
    """
    if options.out is not None:
        check_destination(options.out, force=options.force)
    check_layout(options.layout)
    recipe = options.recipe
    if options.include_preprocessing:
        check_joinable(recipe)
    golden = golden_files(options.golden_images)
    if recipe.merging is not None and options.foreign is not None:
        raise UsageError(
            "--merge-tokens: the graph of another exporter is taken as it is; give the checkpoint "
            "that it was made from"
        )
    calibration = _calibration(options, golden)
    if options.foreign is None:
        check_names(options.outputs, OUTPUTS)
    # Whatever becomes of a float32 graph starts with its weights in a file beside it, so that
    # they are mapped while they are worked on.
    limit = SINGLE_FILE_LIMIT_BYTES if _publishes_draft(recipe) else 0
    return Plan(options, _quantizer(recipe), golden, calibration, limit)


def _publishes_draft(recipe: Recipe) -> bool:
    return recipe.precision == FLOAT and recipe.input == "float32"


def _quantizer(recipe: Recipe) -> Quantizer | None:
    if recipe.precision == FLOAT:
        return None
    module = quantize.module(recipe.precision)
    settings = quantize.settings_from_table(recipe.precision, recipe.quantization, recipe.name)
    return Quantizer(module, settings, module.LEAST_OPSET[recipe.target])


def _calibration(options: ExportOptions, golden: GoldenFiles) -> CalibrationFiles | None:
    precision, merging = options.recipe.precision, options.recipe.merging
    chosen = merging is not None and merging.counts is None
    use = "unused" if precision == FLOAT else quantize.module(precision).CALIBRATION
    if options.calibration is None:
        if use == "required" or chosen:
            what = f"--merge-tokens {AUTO}" if chosen else precision
            raise UsageError(
                f"{what} needs to see what the model sees: give a folder with 100 images or "
                "more of the kind that it will meet, --calibration DIR (--calibration "
                f"{RANDOM} takes noise instead, which fits no real image)"
            )
        return None
    if use == "unused" and not chosen:
        raise UsageError(
            f"--calibration: nothing of {precision} is chosen on images; leave it out, or give a "
            "lower --precision, such as int8"
        )
    calibration = calibration_files(options.calibration)
    if calibration.request.source == RANDOM:
        _LOG.warning("calibrating on random noise, as asked for: expect the ranges to be wrong")
    else:
        _refuse_overlap(golden, calibration)
    return calibration


def _refuse_overlap(golden: GoldenFiles, calibration: CalibrationFiles) -> None:
    judged = {sha256_of(file) for file in golden.files}
    pairs = zip(calibration.files, calibration.sha256, strict=True)
    both = [file for file, sha256 in pairs if sha256 in judged]
    if not both:
        return
    overlap = (
        f"{len(both)} of {len(calibration.files)} calibration images, such as {both[0]}, are "
        "golden images too"
    )
    if golden.folder is not None:
        raise UsageError(
            f"{overlap}: a model must not be judged by what it was fitted to. Give "
            "--calibration and --images different images"
        )
    _LOG.warning("%s: name others with --images for an honest verdict", overlap)
