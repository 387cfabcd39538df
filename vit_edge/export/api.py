"""Make a verified bundle of a model, wherever it is."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from vit_edge.bundle import Bundle
from vit_edge.bundle.manifest import Scores
from vit_edge.errors import MissingExtraError, UsageError, VitEdgeError
from vit_edge.variants import variant as find_variant

if TYPE_CHECKING:
    from torch import nn

    from vit_edge.checkpoints import Request
    from vit_edge.export.plan import ExportOptions, ForeignFile
    from vit_edge.export.recipe import Recipe
    from vit_edge.quantize.calibration import CalibrationRequest

_NEEDED = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors", "tqdm")
_Path = str | os.PathLike[str]
# Fields of a Request that say something of a checkpoint -> their options on the command line.
_OF_CHECKPOINTS = {
    "variant": "--variant",
    "image_hw": "--image-size",
    "position_method": "--pos-interp",
    "revision": "--revision",
    "key": "--key",
    "text_embeddings": "--text-embeddings",
    "logit_scale": "--logit-scale",
}


def export(
    source: _Path | nn.Module | ForeignFile | None = None,
    *,
    precision: str | None = None,
    calibration: _Path | CalibrationRequest | None = None,
    out: _Path | None = None,
    force: bool = False,
    recipe: _Path | Recipe | None = None,
    processor: Any = None,
    labels: _Path | Sequence[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    outputs: str | Sequence[str] | None = None,
    scores: Scores | None = None,
    variant: str | None = None,
    revision: str | None = None,
    max_batch: int | None = None,
    input: Literal["float32", "uint8"] | None = None,
    target: str | None = None,
    merge_tokens: int | str | Sequence[int] | None = None,
    golden_images: _Path | None = None,
    include_preprocessing: bool = False,
    layout: str | None = None,
    request: Request | None = None,
) -> Bundle:
    """Export a Vision Transformer to a bundle that was proven to compute the same.

    Args:
        source: A module that is in memory: of transformers (ViT, DeiT, DINOv2, CLIP ...), of timm
            or torchvision. Or a path; or "hf:ORG/NAME", "timm:NAME", "embedded", "seeded:0"; or
            "ORG/NAME" of the Hugging Face hub; or the name of a variant. Or another exporter's
            .onnx file. None: where `variant` was published.
        precision: "fp32", "fp16", "bf16", "int8", "int8-dynamic", "int8-weights", "int4" or "fp8";
            by default the recipe's, or fp32.
        calibration: A folder of images to choose scales on, which int8 needs; a CalibrationRequest
            says how many, and which; "random" asks for noise.
        out: The bundle's directory; by default bundles/VARIANT-PRECISION.
        force: Replace a bundle that is there, in one step.
        recipe: The name of one of ours, a .toml file, or a Recipe. `find_recipe(...).changed(...)`
            of vit_edge.export.recipe chooses everything that has no argument here.
        processor: How images become pixels, for a module or an .onnx file, which do not say it:
            an image processor of transformers, a data config of timm, the transforms of
            torchvision's weights, a JSON file of one of them, or a name such as "google-vit".
        labels: One a class, or a file of them; by default the source's own.
        image_size: Another size in px, or (height, width): positions are interpolated to it.
        outputs: Of logits, features, tokens, pre_logits, reconstruction; by default logits and
            features.
        scores: What makes scores of the logits: "softmax", "sigmoid" or "none".
        variant: The row of the table (docs/checkpoints.md), where the source does not tell it.
        revision: Of a hub's repository.
        max_batch: The largest batch that is proven and allowed; by default the recipe's.
        input: "float32" pixels, or "uint8" images as they were resized.
        target: What must hold besides the precision's limit: "top1_agreement=0.99".
        merge_tokens: How many patches each block merges (ToMe), which makes the model faster and
            changes its answers: one number, one a block, or "auto", as many as the target allows
            on the calibration images.
        golden_images: A folder of images to prove it on; by default the package's photos.
        include_preprocessing: Write end-to-end.onnx as well: an RGB image of any size in, the
            answers out. It is for CPUs.
        layout: "transformers.js" writes a folder of that name into the bundle, which
            transformers.js and optimum load.
        request: A Request of vit_edge.checkpoints, for what else can be asked of a checkpoint:
            key, position_method, text_embeddings, logit_scale. The arguments above are set in it.

    Returns:
        The bundle. Predictor opens it; a module that was given is as it was.

    Raises:
        UsageError: The call is wrong; the message names the argument.
        CheckpointError: The model cannot be read, or is no plain Vision Transformer.
        ParityError: The graph does not compute the reference's answers. Nothing was published.
        VitEdgeError: Whatever else is wrong with what was handed in.
    """
    require_extra()
    from vit_edge.export.pipeline import export_bundle
    from vit_edge.export.recipe import Recipe, find_recipe
    from vit_edge.quantize.calibration import CalibrationRequest

    check_words(precision=precision, target=target)
    for name, value, allowed in (
        ("input", input, ("float32", "uint8")),
        ("scores", scores, get_args(Scores)),
    ):
        if value is not None and value not in allowed:
            raise UsageError(f"{name} must be {' or '.join(allowed)}, not {value!r}")
    if not isinstance(recipe, Recipe):
        asked = None if recipe is None else os.fspath(recipe)
        recipe = find_recipe(asked, None if precision is None else precision.lower())
    elif precision not in (None, recipe.precision):
        raise UsageError(f"precision {precision}, but the recipe makes {recipe.precision}")
    if calibration is not None and not isinstance(calibration, CalibrationRequest):
        calibration = CalibrationRequest(os.fspath(calibration))
    with _label_file(labels) as label_file, tempfile.TemporaryDirectory() as scratch:
        options = _with_source(
            source,
            processor,
            Path(scratch),
            _request(request, variant, revision, image_size, label_file),
            _names(outputs),
        )
        return export_bundle(
            dataclasses.replace(
                options,
                recipe=recipe.changed(
                    max_batch=max_batch,
                    input=input,
                    parity_target=target,
                    merge_tokens=_merging_text(merge_tokens),
                ),
                scores=scores,
                golden_images=None if golden_images is None else Path(golden_images),
                calibration=calibration,
                out=None if out is None else Path(out),
                force=force,
                include_preprocessing=include_preprocessing,
                layout=layout,
            )
        )


def require_extra() -> None:
    """Insist on what exporting needs.

    Raises:
        MissingExtraError: Something is not installed.
    """
    missing = [name for name in _NEEDED if not _is_there(name)]
    if missing:
        raise MissingExtraError(
            f'exporting needs {", ".join(missing)}: pip install "vit-edge[export]"'
        )


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a finder that refuses; a module that was put there by hand
        return False


def _with_source(
    source: _Path | nn.Module | ForeignFile | None,
    processor: Any,
    scratch: Path,
    request: Request,
    outputs: tuple[str, ...] | None,
) -> ExportOptions:
    """Say what is exported.

    Raises:
        UsageError: Nothing is, or what was said does not belong to it.
    """
    from torch import nn

    from vit_edge.export.naming import named
    from vit_edge.export.plan import DEFAULT_OUTPUTS, ExportOptions, ForeignFile
    from vit_edge.export.processors import live_module, processor_file
    from vit_edge.export.recipe import find_recipe

    options = ExportOptions(find_recipe(None, None), request=request)
    if isinstance(source, ForeignFile):
        given = {"processor": processor, "labels": request.labels, "outputs": outputs}
        if twice := [name for name, value in given.items() if value is not None]:
            raise UsageError(f"{', '.join(twice)}: a ForeignFile says that itself; set it there")
    elif isinstance(source, (str, os.PathLike)):
        kind, value = named(os.fspath(source))
        if kind == "onnx":
            if processor is None:
                raise UsageError(
                    "an .onnx file needs a processor: it does not say how images become pixels"
                )
            said, file = None if outputs is None else ",".join(outputs), Path(value)
            source = ForeignFile(file, processor_file(processor, scratch), request.labels, said)
        elif kind == "variant" and request.variant is None:
            source, request = None, dataclasses.replace(request, variant=find_variant(str(value)))
        else:
            source = str(value)
    if isinstance(source, ForeignFile):
        both = [
            flag for name, flag in _OF_CHECKPOINTS.items() if getattr(request, name) is not None
        ]
        if both:
            raise UsageError(
                f"{', '.join(both)} cannot be had with an .onnx file: the graph is as it is"
            )
        if source.output not in (None, "logits", "features"):
            raise UsageError(
                f"--outputs {source.output}: a bundle of an .onnx file has one output; say "
                "--outputs logits or --outputs features"
            )
        if source.output == "features" and source.labels is not None:
            raise UsageError("--labels names classes, and --outputs features has none; give one")
        return dataclasses.replace(options, foreign=source)
    options = dataclasses.replace(
        options, request=request, outputs=DEFAULT_OUTPUTS if outputs is None else outputs
    )
    if source is None and request.variant is None:
        raise UsageError("nothing to export: name a source, a variant, or both")
    if isinstance(source, nn.Module):
        live = live_module(source, processor, scratch)
        return dataclasses.replace(options, checkpoint=live)
    if source is not None and not isinstance(source, str):
        raise UsageError(f"source must be a module, a path or an id, not {type(source).__name__}")
    if processor is not None:
        raise UsageError("processor is for a module or an .onnx file; a checkpoint brings its own")
    return dataclasses.replace(options, checkpoint=source)


def _request(
    request: Request | None,
    variant: str | None,
    revision: str | None,
    image_size: int | tuple[int, int] | None,
    labels: Path | None,
) -> Request:
    """Set the arguments in a Request.

    Raises:
        UsageError: One of them is in it already, or means nothing.
    """
    from vit_edge.checkpoints import Request

    size: Any = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and (len(size) != 2 or any(type(s) is not int or s < 1 for s in size)):
        raise UsageError(f"--image-size: {image_size!r} is no size; give px, or (height, width)")
    asked: Mapping[str, Any] = {
        "variant": None if variant is None else find_variant(variant),
        "revision": revision,
        "image_hw": None if size is None else (size[0], size[1]),
        "labels": labels,
    }
    given = request or Request()
    changes = {name: value for name, value in asked.items() if value is not None}
    if twice := [name for name in changes if getattr(given, name) is not None]:
        raise UsageError(f"{', '.join(twice)}: given twice, in the request as well")
    return dataclasses.replace(given, **changes)


def _names(outputs: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if outputs is None:
        return None
    return tuple(outputs.split(",") if isinstance(outputs, str) else map(str, outputs))


def _merging_text(asked: int | str | Sequence[int] | None) -> str | None:
    """What was asked for, as it is typed."""
    if asked is None or isinstance(asked, str):
        return asked
    return ",".join(map(str, [asked] if isinstance(asked, int) else asked))


def check_words(**words: object) -> None:
    """Refuse what is no text where text is meant."""
    for name, value in words.items():
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{name} must be text, not {value!r}")


@contextlib.contextmanager
def _label_file(labels: _Path | Sequence[str] | None) -> Iterator[Path | None]:
    """Give the file of the labels; those that are listed get one for the time of an export."""
    if labels is None or isinstance(labels, (str, os.PathLike)):
        yield None if labels is None else Path(labels)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "labels.json"
        file.write_text(json.dumps(list(labels)), encoding="utf-8")
        try:
            yield file
        except VitEdgeError as error:
            error.args = tuple(str(text).replace(str(file), "labels") for text in error.args)
            raise
