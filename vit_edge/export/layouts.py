"""A folder that others load, in a bundle: transformers.js and optimum.

    transformers.js/
      config.json                 model_type, id2label, ...
      preprocessor_config.json    an image processor of transformers
      onnx/model.onnx             or model_quantized.onnx (int8), model_q4.onnx, model_fp16.onnx

It is a copy for other programs; the bundle's own files stay what is measured and proven, and
parity.json holds the copy's hashes. What they cannot express is refused by name.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir
import onnxruntime

from vit_edge.bundle import Bundle
from vit_edge.bundle.bundle import LAYOUT_NAME, hashes_below
from vit_edge.bundle.manifest import Preprocessing, Scores, TensorSpec
from vit_edge.errors import ModelError, UsageError
from vit_edge.export.recipe import Recipe
from vit_edge.export.single_file import check_model

_LOG = logging.getLogger(__name__)

LAYOUTS = (LAYOUT_NAME,)

INPUT, OUTPUT = "pixel_values", "logits"  # as optimum and transformers.js call them
# precision -> dtype of transformers.js, and the suffix of its file (src/utils/dtypes.js)
_DTYPES = {
    "fp32": ("fp32", ""),
    "fp16": ("fp16", "_fp16"),
    "int8": ("q8", "_quantized"),
    "int8-dynamic": ("q8", "_quantized"),
    "int8-weights": ("q8", "_quantized"),
    "int4": ("q4", "_q4"),
}
_RESAMPLE = {  # PIL.Image.Resampling
    "nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5,
}  # fmt: skip
_DEFAULT_PATCH_PX = 16  # of ViTConfig; of another exporter's graph it is not known


def check_layout(layout: str | None) -> None:
    """Refuse a layout that is none.

    Raises:
        UsageError: There is no such layout.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"--layout {layout}: there is {', '.join(LAYOUTS)}")


class Described(Protocol):
    """What a manifest and the facts of a source both say."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def preprocessing(self) -> Preprocessing: ...
    @property
    def scores(self) -> Scores: ...


def check_expressible(layout: str | None, model: Described, recipe: Recipe) -> None:
    """Refuse what a layout cannot hold, before anything expensive.

    Args:
        layout: Which; None for none.
        model: Its outputs, scores and preprocessing.
        recipe: What is made of it.

    Raises:
        UsageError: All that cannot be held is listed.
    """
    if layout is None:
        return
    if problems := list(_problems(model, recipe.precision, recipe.input)):
        raise UsageError(
            f"--layout {layout} cannot hold this model:\n  "
            + "\n  ".join(problems)
            + "\nLeave the layout out: the bundle holds it"
        )
    steps = model.preprocessing
    if steps.resize == "cover" and steps.crop_rounding == "even":
        _LOG.info(
            "--layout %s: image processors of transformers round half a pixel of the crop down: "
            "some images are cropped one pixel further left or up than in the bundle",
            layout,
        )


def write_layout(bundle: Bundle, folder: Path) -> dict[str, str]:
    """Write the files of a bundle as transformers.js and optimum look for them.

    Args:
        bundle: The bundle; its files need not be hashed yet.
        folder: It is made; it must not be there yet.

    Returns:
        What parity.json says of it: path in the folder -> sha256.

    Raises:
        ModelError: The renamed graph answers otherwise, which is a bug of ours.
        UsageError: The weights are too large for one file.
    """
    manifest = bundle.manifest
    dtype, suffix = _DTYPES[manifest.precision]
    (folder / "onnx").mkdir(parents=True)
    graph = folder / "onnx" / f"model{suffix}.onnx"
    _write_graph(bundle, graph)
    _write_json(folder / "config.json", _config(bundle, dtype))
    _write_json(folder / "preprocessor_config.json", processor_from(manifest.preprocessing))
    return hashes_below(folder)


def processor_from(steps: Preprocessing) -> dict[str, Any]:
    """Write a preprocessing as an image processor of transformers."""
    cropped = steps.crop_hw != steps.resize_hw or steps.resize == "cover"
    height, width = steps.resize_hw
    squash = steps.resize == "squash"
    size = {"height": height, "width": width} if squash else {"shortest_edge": height}
    crop = {"height": steps.crop_hw[0], "width": steps.crop_hw[1]}
    kind = "CLIP" if not squash else "DeiT" if cropped else "ViT"
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": _RESAMPLE[steps.interpolation],
        "do_center_crop": cropped,
        **({"crop_size": crop} if cropped else {}),
        "do_rescale": True,
        "rescale_factor": steps.rescale_factor,
        "do_normalize": True,
        "image_mean": list(steps.mean),
        "image_std": list(steps.std),
    }


def _problems(model: Described, precision: str, input: str) -> Iterator[str]:
    steps, (height, width) = model.preprocessing, model.preprocessing.resize_hw
    if all(output.name != OUTPUT for output in model.outputs):
        yield "outputs: no logits; its model is an image classifier"
    if model.scores == "none":
        yield 'scores "none": its pipelines make a softmax or a sigmoid of the logits'
    if input != "float32":
        yield f"input {input}: its image processors hand over float32 pixels"
    if precision not in _DTYPES:
        yield f"precision {precision}: it knows {', '.join(_DTYPES)}"
    if steps.resize == "cover" and height != width:
        yield f"resize to cover {height}x{width}: its shortest_edge is one number"
    if steps.offset:
        yield f"an offset of {steps.offset:g} behind the rescaling"
    if steps.divided_twice:
        yield "a division by the standard deviation, twice"


def _config(bundle: Bundle, dtype: str) -> dict[str, Any]:
    """The fields of transformers' ViTConfig, whatever the family: the graph is what runs."""
    manifest, shape = bundle.manifest, bundle.manifest.architecture
    height, width = manifest.preprocessing.crop_hw
    labels = dict(enumerate(bundle.labels))
    sizes = {} if shape is None else {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.mlp_dim,
        "layer_norm_eps": shape.layer_norm_eps,
        "num_channels": shape.channels,
    }  # fmt: skip
    kind = "multi_label" if manifest.scores == "sigmoid" else "single_label"
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "image_size": height if height == width else [height, width],
        "patch_size": _DEFAULT_PATCH_PX if shape is None else shape.patch_px,
        **sizes,
        "id2label": {str(index): label for index, label in labels.items()},
        "label2id": {label: index for index, label in labels.items()},
        "problem_type": f"{kind}_classification",
        "transformers.js_config": {"dtype": dtype},
    }


def _write_graph(bundle: Bundle, path: Path) -> None:
    """Write the graph with the names that are looked for, and the logits alone; prove it."""
    model = onnx_ir.load(bundle.model_path)
    check_model(f"--layout {LAYOUT_NAME}", model)
    onnx_ir.external_data.load_to_model(model)
    manifest, graph = bundle.manifest, model.graph
    graph.inputs[0].name = INPUT
    kept = next(value for value in graph.outputs if value.name == OUTPUT)
    graph.outputs.clear()
    graph.outputs.append(kept)
    onnx_ir.save(model, path)
    pixels = np.random.default_rng(0).standard_normal((1, 3, *manifest.preprocessing.crop_hw))
    given = pixels.astype(np.float32)
    theirs = _logits(path, INPUT, given)
    if not np.array_equal(theirs, _logits(bundle.model_path, manifest.input.name, given)):
        raise ModelError(f"{path.name}: renamed, the graph answers otherwise")


def _logits(path: Path, name: str, pixels: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # What is renamed is compared, not what another set of outputs lets the runtime fuse.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {name: pixels})[0]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
