"""A ViT that somebody else exported: an ONNX file becomes a source of bundles.

The file is checked like a bundle's model before anything parses it. It is rewritten into one form
without changing a value (graphs.normalise), and run before and after, at batch 1, 2 and 3. The
reference of all that follows is the file itself, in float32 on ONNX Runtime.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
from numpy.typing import NDArray

from vit_edge import onnxfile
from vit_edge.bundle import integrity
from vit_edge.bundle.bundle import sha256_of
from vit_edge.bundle.manifest import CheckpointRecord, TensorSpec
from vit_edge.errors import InputError
from vit_edge.export.foreign.conventions import labels_for, preprocessing_for
from vit_edge.export.foreign.graph import LOGITS, load_normalised, open_session
from vit_edge.export.foreign.interface import Interface, image_interface
from vit_edge.export.golden_set import Progress
from vit_edge.export.recipe import Recipe
from vit_edge.export.source import SourceFacts
from vit_edge.graphs.attention import with_decomposed_attention
from vit_edge.graphs.mapped import mapped
from vit_edge.graphs.opset import with_opset
from vit_edge.graphs.workspace import Workspace
from vit_edge.images.preprocess import pixels_from_resized

_LOG = logging.getLogger(__name__)

REFERENCE_BATCH = 8  # float32 activations of eight images stay below 300 MB up to 785 tokens
_UNTELLING = {"model", "onnx", "model_fp32", "pytorch_model"}  # file names that name no model


@dataclass(frozen=True)
class ForeignSource:
    """Another exporter's graph: an export.source.Source."""

    path: Path  # of the file as it came
    model: onnx_ir.Model  # normalised, its weights mapped from the scratch folder
    interface: Interface  # what the file calls its input and its logits
    facts: SourceFacts

    def answers(
        self, resized: NDArray[np.uint8], scratch: Path, progress: Progress
    ) -> dict[str, NDArray[np.float32]]:
        """Run the file as it came, not the normalised model; see Source."""
        session = open_session(self.path)
        logits = mapped(scratch, (len(resized), len(self.facts.labels)), np.float32)
        for start in range(0, len(resized), REFERENCE_BATCH):
            batch = slice(start, start + REFERENCE_BATCH)
            pixels = pixels_from_resized(resized[batch], self.facts.preprocessing)
            (answers,) = session.run([self.interface.output], {self.interface.input: pixels})
            if not np.isfinite(answers).all():
                raise InputError(
                    f"{self.path}: its logits hold NaN or Inf for an image: the weights are "
                    "broken, or --preprocess is not theirs"
                )
            logits[batch] = answers
            progress(len(pixels))
        return {LOGITS: logits}

    @contextmanager
    def graph(self, recipe: Recipe, least_opset: int, scratch: Path) -> Iterator[onnx_ir.Model]:
        """Give the graph in the exporter's form, converted if it is older; see Source.

        Attention that a recipe wants decomposed is.
        """
        workspace = Workspace(scratch)
        model = with_opset(self.model, least_opset, workspace)
        if recipe.attention == "decomposed":
            model = with_decomposed_attention(model, workspace)
        yield model


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
    _LOG.info("reading %s", path)
    contents = onnxfile.read_model(path)
    onnxfile.check_external_data(path, contents)
    onnxfile.check_operators(contents, integrity.MAX_OPSET, integrity.MAX_IR_VERSION)
    onnxfile.check_finite(path, contents)
    interface = image_interface(contents)
    preprocessing = preprocessing_for(preprocess, interface.image_hw)
    model, num_classes = load_normalised(path, interface, scratch)
    places = {
        tensor.external.location for tensor in contents.tensors if tensor.external is not None
    }
    files = {path.name: path} | {place: path.parent / place for place in sorted(places)}
    facts = SourceFacts(
        variant=_variant(path),
        architecture=None,
        input=TensorSpec(interface.input, "float32", "NCHW", (None, 3, *interface.image_hw)),
        outputs=(TensorSpec(LOGITS, "float32", "NC", (None, num_classes)),),
        preprocessing=preprocessing,
        labels=labels_for(labels, num_classes, str(path)),
        record=CheckpointRecord(
            f"onnx:{path.name}", {name: sha256_of(file) for name, file in files.items()}
        ),
        reference_dtype="float32",
        weights_bytes=sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file()),
        producer={  # who exported it, and what it was before
            "exporter": f"{model.producer_name} {model.producer_version}".strip() or "unknown",
            "exported_opset": str(contents.opsets[""]),
            "exported_output": interface.output,
            "reference": f"float32, onnxruntime {onnxruntime.__version__} on {path.name}",
        },
    )
    return ForeignSource(path, model, interface, facts)


def _variant(path: Path) -> str:
    """A name that can be a folder's."""
    resolved = path.resolve()
    name = resolved.parent.name if resolved.stem in _UNTELLING else resolved.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "foreign"
