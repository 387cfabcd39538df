"""A ViT that somebody else exported: an ONNX file becomes a source of bundles.

The file is checked like a bundle's model before anything parses it. It is rewritten into one form
without changing a value (graphs.normalise), and run before and after, at batch 1, 2 and 3. The
reference of all that follows is the file itself, in float32 on ONNX Runtime.
"""

from __future__ import annotations

import logging
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
from numpy.typing import NDArray

from vit_edge import onnxfile
from vit_edge.bundle import integrity
from vit_edge.bundle.bundle import sha256_of
from vit_edge.bundle.manifest import CheckpointRecord, Scores, TensorSpec
from vit_edge.checkpoints.labels import IMAGENET_CLASSES
from vit_edge.errors import UsageError
from vit_edge.export.foreign.conventions import labels_for, preprocessing_for, scores_in
from vit_edge.export.foreign.graph import comes_out_of_head, load_normalised, open_session
from vit_edge.export.foreign.interface import FEATURES, LOGITS, Interface, image_interface
from vit_edge.export.golden_set import Progress
from vit_edge.export.plan import ForeignFile
from vit_edge.export.recipe import Recipe
from vit_edge.export.source import (
    Answers,
    SourceFacts,
    answers_in_batches,
    chosen_scores,
    exported_graph,
)

_LOG = logging.getLogger(__name__)

REFERENCE_BATCH = 8  # float32 activations of eight images stay below 300 MB up to 785 tokens
_EMBEDDINGS = {
    "embedding", "embeddings", FEATURES, "image_embeds", "image_features", "pooler_output",
    "sentence_embedding",
}  # fmt: skip
_CLASSIFYING = ("logit", "score", "class", "predict", "probab")  # in the name of an output
_UNTELLING = {"model", "onnx", "model_fp32", "pytorch_model"}  # file names that name no model


@dataclass(frozen=True)
class ForeignSource:
    """Another exporter's graph: an export.source.Source."""

    path: Path  # of the file as it came
    model: onnx_ir.Model  # normalised, its weights mapped from the scratch folder
    interface: Interface  # what the file calls its input and its output
    facts: SourceFacts

    def answers(
        self, resized: NDArray[np.uint8], scratch: Path, progress: Progress
    ) -> dict[str, NDArray[np.float32]]:
        """Run the file as it came, not the normalised model; see Source."""
        session = open_session(self.path)
        face = self.interface

        def run(pixels: NDArray[np.float32]) -> Answers:
            (answers,) = session.run([face.output], {face.input: pixels})
            return {face.kept_as: answers}

        return answers_in_batches(run, self.facts, resized, REFERENCE_BATCH, scratch, progress)

    def graph(
        self, recipe: Recipe, least_opset: int, scratch: Path
    ) -> AbstractContextManager[onnx_ir.Model]:
        """Give the graph in the exporter's form, converted if it is older; see Source."""
        return exported_graph(self.model, recipe, least_opset, scratch)


def foreign_source(
    path: Path,
    preprocess: str,
    labels: Path | None,
    scratch: Path,
    *,
    output: str | None = None,
    scores: Scores | None = None,
) -> ForeignSource:
    """Load, check and normalise a foreign ONNX file.

    Args:
        path: The .onnx file of a ViT, as torch.onnx makes it, opset 17 or newer.
        preprocess: `--preprocess`, see conventions.preprocessing_for.
        labels: `--labels`, see conventions.labels_for.
        scratch: A folder for the weights; it must outlive the source's model.
        output: LOGITS or FEATURES, where the user says which it is.
        scores: `--scores`.

    Raises:
        ModelError: The file is unsafe or damaged, or is no float32 image classifier with a dynamic
            batch; what is wrong is listed.
        CheckpointError: Preprocessing or labels do not fit the graph.
        UsageError: `preprocess` names nothing known; or nobody says whether the output holds
            classes, or what a single logit means.
    """
    _LOG.info("reading %s", path)
    contents = onnxfile.read_model(path)
    onnxfile.check_external_data(path, contents)
    onnxfile.check_operators(contents, integrity.MAX_OPSET, integrity.MAX_IR_VERSION)
    onnxfile.check_finite(path, contents)
    interface = image_interface(contents, output or LOGITS)
    preprocessing = preprocessing_for(preprocess, interface.image_hw)
    model, width = load_normalised(path, interface, scratch)
    num_classes = width if interface.kept_as == LOGITS else 0
    if num_classes and labels is None and output != LOGITS:
        _require_classes(path, interface, model, num_classes)
    stated = None if labels is None else scores_in(labels, num_classes)
    places = {
        tensor.external.location for tensor in contents.tensors if tensor.external is not None
    }
    files = {path.name: path} | {place: path.parent / place for place in sorted(places)}
    facts = SourceFacts(
        variant=_variant(path),
        architecture=None,
        input=TensorSpec(interface.input, "float32", "NCHW", (None, 3, *interface.image_hw)),
        outputs=(TensorSpec(interface.kept_as, "float32", "NC", (None, width)),),
        preprocessing=preprocessing,
        labels=labels_for(labels, num_classes, str(path)) if num_classes else (),
        record=CheckpointRecord(
            f"onnx:{path.name}", {name: sha256_of(part) for name, part in files.items()}
        ),
        reference_dtype="float32",
        weights_bytes=sum(part.stat().st_size for part in scratch.rglob("*") if part.is_file()),
        scores=chosen_scores(scores, stated, num_classes, str(path)),
        labels_invented=bool(num_classes and labels is None and num_classes != IMAGENET_CLASSES),
        producer={  # who exported it, and what it was before
            "exporter": f"{model.producer_name} {model.producer_version}".strip() or "unknown",
            "exported_opset": str(contents.opsets[""]),
            "exported_output": interface.output,
            "reference": f"float32, onnxruntime {onnxruntime.__version__} on {path.name}",
        },
    )
    return ForeignSource(path, model, interface, facts)


def open_foreign(file: ForeignFile, scores: Scores | None, scratch: Path) -> ForeignSource:
    """Load what the command line names; see `foreign_source`."""
    return foreign_source(
        file.path, file.preprocess, file.labels, scratch, output=file.output, scores=scores
    )


def _require_classes(path: Path, interface: Interface, model: onnx_ir.Model, size: int) -> None:
    """Refuse an output that is rather an embedding than logits of classes.

    Raises:
        UsageError: Its name is one that embeddings have; or it comes out of no classification
            head, and its name is none of a classifier's.
    """
    name = interface.output.lower()
    if any(word in name for word in _CLASSIFYING):
        return
    if name not in _EMBEDDINGS and comes_out_of_head(model.graph.outputs[0]):
        return
    raise UsageError(
        f"{path}: its output {interface.output} looks like an embedding of {size} values, not like "
        "logits of classes. Say --outputs features if it is one; or name the classes with --labels "
        "FILE; or say --outputs logits, which invents labels, class_0 and on"
    )


def _variant(path: Path) -> str:
    """A name that can be a folder's."""
    resolved = path.resolve()
    name = resolved.parent.name if resolved.stem in _UNTELLING else resolved.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "foreign"
