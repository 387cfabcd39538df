"""A ViT that somebody else exported: an ONNX file becomes a source of bundles.

The file is checked like a bundle's model before anything parses it, rewritten into one form
without changing a value (passes.normalise), and run: at batch 1, 2 and 3, before and after. The
reference of all that follows is the file itself, in float32 on ONNX Runtime.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
from numpy.typing import NDArray

import vit_edge
from vit_edge import onnxfile
from vit_edge.bundle import integrity
from vit_edge.bundle.bundle import sha256_of
from vit_edge.bundle.manifest import CheckpointRecord, Manifest, Preprocessing, TensorSpec
from vit_edge.errors import InputError
from vit_edge.export.draft import Draft, check_standard, load_golden_images, producer, progress
from vit_edge.export.foreign.conventions import labels_for, preprocessing_for
from vit_edge.export.foreign.graph import LOGITS, load_normalised, open_session
from vit_edge.export.foreign.interface import OLDEST_FOREIGN_OPSET, Interface, image_interface
from vit_edge.export.golden_set import GoldenSet
from vit_edge.export.recipe import Recipe
from vit_edge.graphs.mapped import mapped
from vit_edge.graphs.opset import with_opset
from vit_edge.graphs.workspace import Workspace
from vit_edge.graphs.write import SINGLE_FILE_LIMIT_BYTES, write_model
from vit_edge.images.preprocess import pixels_from_resized

REFERENCE_BATCH = 8  # float32 activations of eight images stay below 300 MB up to 785 tokens
_UNTELLING = {"model", "onnx", "model_fp32", "pytorch_model"}  # file names that name no model

Progress = Callable[[int], object]


@dataclass(frozen=True)
class ForeignSource:
    """What a bundle needs to know of a foreign graph."""

    path: Path  # of the file as it came
    model: onnx_ir.Model  # normalised, its weights mapped from the scratch folder
    interface: Interface  # what the file calls its input and its logits
    variant: str  # the file's name, or its folder's where that says more
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]  # the logits, under that name
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    record: CheckpointRecord
    producer: dict[str, str]  # for the manifest: who exported it, and what it was before


def foreign_source(
    path: Path, preprocess: str, labels: Path | None, scratch: Path
) -> ForeignSource:
    """Load, check and normalise a foreign ONNX file.

    Args:
        path: The .onnx file of an image classifier, as torch.onnx makes it, opset 17 or newer.
        preprocess: `--preprocess`, see conventions.preprocessing_for.
        labels: `--labels`, see conventions.labels_for.
        scratch: A folder for the weights; it must outlive the source's model.

    Raises:
        ModelError: The file is unsafe or damaged, or is no float32 image classifier with a dynamic
            batch; what is wrong is listed.
        CheckpointError: Preprocessing or labels do not fit the graph.
        UsageError: `preprocess` names nothing known.
    """
    facts = onnxfile.read_model(path)
    onnxfile.check_external_data(path, facts)
    onnxfile.check_operators(facts, integrity.MAX_OPSET, integrity.MAX_IR_VERSION)
    onnxfile.check_finite(path, facts)
    interface = image_interface(facts)
    preprocessing = preprocessing_for(preprocess, interface.image_hw)
    model, num_classes = load_normalised(path, interface, scratch)
    described = labels_for(labels, num_classes, str(path))
    places = {tensor.external.location for tensor in facts.tensors if tensor.external is not None}
    files = {path.name: path} | {place: path.parent / place for place in sorted(places)}
    return ForeignSource(
        path=path,
        model=model,
        interface=interface,
        variant=_variant(path),
        input=TensorSpec(interface.input, "float32", "NCHW", (None, 3, *interface.image_hw)),
        outputs=(TensorSpec(LOGITS, "float32", "NC", (None, num_classes)),),
        preprocessing=preprocessing,
        labels=described,
        record=CheckpointRecord(
            f"onnx:{path.name}", {name: sha256_of(file) for name, file in files.items()}
        ),
        producer={
            "exporter": f"{model.producer_name} {model.producer_version}".strip() or "unknown",
            "exported_opset": str(facts.opsets[""]),
            "exported_output": interface.output,
            "reference": f"float32, onnxruntime {onnxruntime.__version__} on {path.name}",
        },
    )


def draft_from_foreign(
    source: ForeignSource,
    recipe: Recipe,
    golden_images: Path | None,
    folder: Path,
    *,
    least_opset: int = OLDEST_FOREIGN_OPSET,
    single_file_limit: int = SINGLE_FILE_LIMIT_BYTES,
) -> Draft:
    """Fix the reference's answers and write the normalised graph: draft_from_checkpoint's twin.

    Args:
        source: Of the graph.
        recipe: Its limits; the form of the graph is the exporter's, not the recipe's.
        golden_images: A folder; None takes the package's photos.
        folder: Where model.onnx goes.
        least_opset: What the quantizer needs; an older graph is converted.
        single_file_limit: See `write_model`.

    Raises:
        VitEdgeError: Whatever is wrong with the images, or with the graph in the newer opset.
    """
    names, resized, truth = load_golden_images(
        golden_images, source.preprocessing, source.labels, folder
    )
    with progress("reference in float32", len(names)) as bar:
        expected = reference_answers(source, resized, folder, bar.update)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        model = with_opset(source.model, least_opset, Workspace(Path(scratch)))
    model.producer_name, model.producer_version = "vit_edge", vit_edge.__version__
    model.metadata_props["vit_edge.variant"] = source.variant
    model.metadata_props["vit_edge.labels"] = json.dumps(source.labels)
    model.metadata_props["vit_edge.preprocessing"] = json.dumps(
        dataclasses.asdict(source.preprocessing)
    )
    check_standard(model)
    write_model(model, folder, single_file_limit=single_file_limit)
    manifest = Manifest(
        variant=source.variant,
        architecture=None,
        input=source.input,
        outputs=source.outputs,
        max_batch=recipe.max_batch,
        preprocessing=source.preprocessing,
        precision="fp32",
        opset=model.opset_imports[""],
        ir_version=model.ir_version,
        recipe=dataclasses.asdict(recipe),
        checkpoint=source.record,
        reference_dtype="float32",
        producer=producer() | source.producer,
    )
    return Draft(manifest, source.labels, GoldenSet(names, resized, expected, truth), folder)


def reference_answers(
    source: ForeignSource, resized: NDArray[np.uint8], scratch: Path, progress: Progress
) -> dict[str, NDArray[np.float32]]:
    """Run the file as it came: this is where the truth is fixed.

    Args:
        source: Its original file is run, not the normalised model.
        resized: uint8[N, H, W, 3].
        scratch: Where to put the mapped answers.
        progress: Called with the number of images done since the last call.

    Returns:
        {"logits": float32[N, classes]}, mapped.

    Raises:
        InputError: It answers NaN or Inf.
    """
    session = open_session(source.path)
    classes = len(source.labels)
    answers = mapped(scratch, (len(resized), classes), np.float32)
    for start in range(0, len(resized), REFERENCE_BATCH):
        batch = slice(start, start + REFERENCE_BATCH)
        pixels = pixels_from_resized(resized[batch], source.preprocessing)
        (found,) = session.run([source.interface.output], {source.interface.input: pixels})
        if not np.isfinite(found).all():
            raise InputError(
                f"{source.path}: its logits hold NaN or Inf for an image: the weights are broken, "
                "or --preprocess is not theirs"
            )
        answers[batch] = found
        progress(len(pixels))
    return {LOGITS: answers}


def _variant(path: Path) -> str:
    """A name that can be a folder's."""
    resolved = path.resolve()
    name = resolved.parent.name if resolved.stem in _UNTELLING else resolved.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "foreign"
