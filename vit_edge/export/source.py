"""The source of an export: a checkpoint here, another exporter's graph in foreign/source.py."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir
import torch
from numpy.typing import NDArray

from vit_edge.bundle.architecture import Architecture
from vit_edge.bundle.manifest import (
    CheckpointRecord,
    Preprocessing,
    Scores,
    TensorSpec,
)
from vit_edge.checkpoints import Checkpoint, Request, load_checkpoint
from vit_edge.checkpoints.live import LiveModule, load_live
from vit_edge.errors import InputError, UsageError
from vit_edge.export.golden_set import Progress
from vit_edge.export.recipe import Recipe
from vit_edge.export.trace import INPUT_NAME, OF_ALL_TOKENS, model_from_vit, release_weights
from vit_edge.graphs.attention import with_decomposed_attention
from vit_edge.graphs.mapped import mapped
from vit_edge.graphs.opset import with_opset
from vit_edge.graphs.readable import drop_allowzero, name_by_module, unshare_parameters
from vit_edge.graphs.workspace import Workspace
from vit_edge.graphs.write import SINGLE_FILE_LIMIT_BYTES
from vit_edge.images.preprocess import pixels_from_resized
from vit_edge.machine import cpus
from vit_edge.models.reference import ReferenceDtype, reference_outputs
from vit_edge.models.vit import ViT, vit_from_weights, with_merging

_LOG = logging.getLogger(__name__)

Answers = Mapping[str, NDArray[np.float32]]  # output -> float32[N, ...]

OUTPUTS = ("logits", "features", "tokens", "pre_logits", "reconstruction")
# float64 costs huge about 15 s an image on two cores, so it is compared with float32 instead
FLOAT64_LIMIT_BYTES = SINGLE_FILE_LIMIT_BYTES
# Of one image's float64 tokens in a batch: two images of 785 tokens and width 1280, whose widest
# activations, the MLP's, then take some 130 MB.
REFERENCE_TOKEN_BYTES = 2 * 785 * 1280 * 8
LARGEST_REFERENCE_BATCH = 64


@dataclass(frozen=True)
class SourceFacts:
    """The facts of a source that its bundle needs."""

    variant: str
    architecture: Architecture | None  # None: the graph is another exporter's
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    record: CheckpointRecord  # which files, by hash
    reference_dtype: ReferenceDtype
    weights_bytes: int
    scores: Scores = "softmax"
    labels_invented: bool = False
    producer: Mapping[str, str] = field(default_factory=dict)  # for the manifest, beside ours


class Source(Protocol):
    """A model that can be asked for its answers, and for its graph."""

    @property
    def facts(self) -> SourceFacts: ...

    def answers(
        self, resized: NDArray[np.uint8], scratch: Path, progress: Progress
    ) -> dict[str, NDArray[np.float32]]:
        """Run the reference: this is where the truth is fixed.

        Args:
            resized: uint8[N, H, W, 3].
            scratch: Where to put the mapped answers.
            progress: Called with the number of images done since the last call.

        Returns:
            Output name -> float32[N, ...], mapped.

        Raises:
            InputError: The reference itself answers NaN or Inf.
        """
        ...

    def graph(
        self, recipe: Recipe, least_opset: int, scratch: Path
    ) -> AbstractContextManager[onnx_ir.Model]:
        """Give the float32 graph; its weights are gone when the block ends.

        Args:
            recipe: The form of the graph, as far as the source has a choice.
            least_opset: What the quantizer needs.
            scratch: A folder for files of its own.

        Raises:
            ModelError: The graph cannot be had in that operator set.
        """
        ...


class CheckpointSource:
    """The reference model of a checkpoint. It holds the only copy of the weights."""

    def __init__(
        self, checkpoint: Checkpoint, outputs: Sequence[str], scores: Scores | None = None
    ) -> None:
        """Build the model around the checkpoint's weights, without copying them.

        Raises:
            UsageError: An output that this model does not have, or named twice; scores that its
                head cannot have, or that nobody states.
        """
        architecture, weights = checkpoint.architecture, checkpoint.weights
        weights_bytes = sum(tensor.nbytes for tensor in weights.values())
        shape = (None, architecture.channels, *architecture.image_hw)
        self.facts = SourceFacts(
            variant=checkpoint.variant,
            architecture=architecture,
            input=TensorSpec(INPUT_NAME, "float32", "NCHW", shape),
            outputs=output_specs(outputs, architecture, checkpoint.record.source),
            preprocessing=checkpoint.preprocessing,
            labels=checkpoint.labels,
            record=checkpoint.record,
            reference_dtype="float64" if weights_bytes < FLOAT64_LIMIT_BYTES else "float32",
            weights_bytes=weights_bytes,
            scores=chosen_scores(
                scores, checkpoint.scores, architecture.num_classes, checkpoint.record.source
            ),
            labels_invented=checkpoint.labels_invented,
        )
        self._outputs = tuple(outputs)
        self._vit: ViT = vit_from_weights(architecture, dict(weights))

    def answers(
        self, resized: NDArray[np.uint8], scratch: Path, progress: Progress
    ) -> dict[str, NDArray[np.float32]]:
        """Run the reference; see Source."""
        torch.set_num_threads(cpus.default_threads())
        facts, architecture = self.facts, self._vit.architecture
        values = max(architecture.tokens * architecture.width, _window_values(architecture))
        size = max(1, min(LARGEST_REFERENCE_BATCH, REFERENCE_TOKEN_BYTES // (8 * values)))

        def run(pixels: NDArray[np.float32]) -> Answers:
            computed = reference_outputs(self._vit, pixels, facts.reference_dtype)._asdict()
            return {output: computed[output].float().numpy() for output in self._outputs}

        return answers_in_batches(run, facts, resized, size, scratch, progress)

    def merge_tokens(self, counts: tuple[int, ...]) -> None:
        """Merge so many tokens in each block from now on.

        Raises:
            UsageError: An output has a row for each patch, which merging leaves none.
        """
        per_patch = sorted(OF_ALL_TOKENS.intersection(self._outputs))
        if per_patch:
            raise UsageError(
                f"--merge-tokens: {', '.join(per_patch)} answer for every patch, and merging "
                "leaves fewer tokens than patches; take it off --outputs"
            )
        self._vit = with_merging(self._vit, counts)
        self.facts = dataclasses.replace(self.facts, architecture=self._vit.architecture)

    @property
    def vit(self) -> ViT:
        """The reference itself."""
        return self._vit

    @contextmanager
    def graph(self, recipe: Recipe, least_opset: int, scratch: Path) -> Iterator[onnx_ir.Model]:
        """Trace the graph in the recipe's operator set; see Source."""
        _LOG.info("tracing the graph")
        model = model_from_vit(
            self._vit, self._outputs, opset=recipe.opset, attention=recipe.attention
        )
        name_by_module(model)
        unshare_parameters(model)
        drop_allowzero(model)
        model.ir_version = recipe.ir_version
        model.doc_string = ""
        model.metadata_props.clear()
        yield model
        release_weights(model)
        for parameter in self._vit.parameters():  # those that the graph holds in another form
            parameter.data = parameter.new_empty(0)


def answers_in_batches(
    run: Callable[[NDArray[np.float32]], Answers],
    facts: SourceFacts,
    resized: NDArray[np.uint8],
    size: int,
    scratch: Path,
    progress: Progress,
) -> dict[str, NDArray[np.float32]]:
    """Run a reference batch by batch; see Source.answers.

    Args:
        run: Pixels to answers.
        facts: The source's.
        resized: uint8[N, H, W, 3].
        size: How many images at once.
        scratch: Where to put the mapped answers.
        progress: Called with the number of images done since the last call.

    Raises:
        InputError: An answer is NaN or Inf.
    """
    answers: dict[str, NDArray[np.float32]] = {}
    for start in range(0, len(resized), size):
        batch = slice(start, start + size)
        pixels = pixels_from_resized(resized[batch], facts.preprocessing)
        for name, values in run(pixels).items():
            if not np.isfinite(values).all():
                raise InputError(
                    f"{facts.record.source}: its {name} hold NaN or Inf for an image: the weights "
                    "are broken, or the preprocessing is not theirs"
                )
            if name not in answers:
                answers[name] = mapped(scratch, (len(resized), *values.shape[1:]), np.float32)
            answers[name][batch] = values
        progress(len(pixels))
    return answers


@contextmanager
def exported_graph(
    model: onnx_ir.Model, recipe: Recipe, least_opset: int, scratch: Path
) -> Iterator[onnx_ir.Model]:
    """Give a graph that was exported before in the form that is asked for; see Source.graph.

    It stays in its operator set where that is new enough, and its attention is decomposed where
    the recipe wants that.
    """
    workspace = Workspace(scratch)
    model = with_opset(model, least_opset, workspace)
    if recipe.attention == "decomposed":
        model = with_decomposed_attention(model, workspace)
    yield model


def _window_values(architecture: Architecture) -> int:
    """How many values T2T-ViT's first layer holds at once: its scores, or what enters it."""
    windows = 16 * math.prod(architecture.grid_hw)
    widths = {"patches": 0, "t2t": windows, "t2t-performer": 49 * architecture.channels}
    return windows * widths[architecture.tokenizer]


def open_checkpoint(
    source: str | LiveModule | None,
    request: Request,
    outputs: Sequence[str],
    scores: Scores | None = None,
) -> CheckpointSource:
    """Load a checkpoint, or a module in memory, for these outputs.

    Raises:
        VitEdgeError: The checkpoint cannot be had, or has none of these outputs.
    """
    _LOG.info("loading the checkpoint")
    request = dataclasses.replace(request, decoder="reconstruction" in outputs)
    if isinstance(source, LiveModule):
        checkpoint = load_live(source, request)
    else:
        checkpoint = load_checkpoint(source, request)
    opened = CheckpointSource(checkpoint, outputs, scores)
    facts = opened.facts
    millions = facts.weights_bytes / 4e6
    _LOG.info("%s: %.1f M parameters from %s", facts.variant, millions, facts.record.source)
    return opened


def output_specs(
    outputs: Sequence[str], architecture: Architecture, source: str
) -> tuple[TensorSpec, ...]:
    """Describe the outputs asked for.

    Raises:
        UsageError: An output that this model does not have, or named twice.
    """
    shapes: dict[str, tuple[str, tuple[int | None, ...]]] = {
        "features": ("NC", (None, architecture.features_dim)),
        "tokens": ("NLC", (None, architecture.tokens, architecture.width)),
    }
    if architecture.num_classes:
        shapes["logits"] = ("NC", (None, architecture.num_classes))
    if architecture.pre_logits_dim is not None:
        shapes["pre_logits"] = ("NC", (None, architecture.pre_logits_dim))
    if architecture.decoder_stride is not None:
        made = (None, architecture.channels, *architecture.reconstructed_hw)
        shapes["reconstruction"] = ("NCHW", made)
    elif "reconstruction" in outputs:
        raise UsageError(
            f"{source} has no decoder of ViTForMaskedImageModeling (model_type vit), so there is "
            "no reconstruction to export: ask for what it has, --outputs features"
        )
    if "logits" in outputs and not architecture.num_classes:
        clip = (
            ""
            if architecture.projection_dim is None
            else (
                "; or give CLIP the texts of its classes, --text-embeddings FILE.npy --labels FILE"
            )
        )
        raise UsageError(
            f"{source} has no classification head (or a zeroed one), so there are no logits to "
            f"export: ask for what it has, --outputs features{clip}"
        )
    check_names(outputs, shapes)
    return tuple(TensorSpec(name, "float32", *shapes[name]) for name in outputs)


def chosen_scores(
    asked: Scores | None, stated: Scores | None, num_classes: int, source: str
) -> Scores:
    """Decide what makes scores of the logits.

    Args:
        asked: `--scores`; it wins.
        stated: By the checkpoint.
        num_classes: Of the head.
        source: What the manifest calls the checkpoint.

    Raises:
        UsageError: A single logit whose meaning nobody states, or with a softmax; no logits.
    """
    scores = asked or stated or "softmax"
    if asked is not None and not num_classes:
        raise UsageError(f"--scores {asked}: {source} has no logits to make scores of")
    if num_classes == 1 and scores == "softmax":
        said = "its softmax is always 1" if asked else "nothing tells what it means"
        raise UsageError(
            f"{source} has a single logit, and {said}. Say --scores sigmoid where it answers yes "
            "or no, or --scores none where it is a value, as regression gives"
        )
    if asked and stated and asked != stated:
        _LOG.warning("%s states scores by %s; --scores %s decides", source, stated, asked)
    return scores


def check_names(outputs: Sequence[str], known: Iterable[str]) -> None:
    """Refuse outputs that are not among the known ones, repeated, or none at all."""
    if set(outputs) - set(known) or not outputs or len(set(outputs)) != len(outputs):
        raise UsageError(
            f"--outputs must name some of {', '.join(sorted(known))}, each once, "
            f"not {','.join(outputs)!r}"
        )
