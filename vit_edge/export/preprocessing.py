"""preprocess.onnx in a bundle: written, and held against Pillow on real images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
from numpy.typing import NDArray

import vit_edge
from vit_edge.bundle.bundle import END_TO_END_NAME, GOLDEN_NAME, MODEL_NAME, PREPROCESS_NAME
from vit_edge.bundle.golden import Golden
from vit_edge.bundle.manifest import Manifest
from vit_edge.errors import ModelError, ParityError, UsageError
from vit_edge.export.foreign.graph import open_session
from vit_edge.export.golden_set import KEPT, GoldenFiles
from vit_edge.export.recipe import Recipe
from vit_edge.export.single_file import check_model
from vit_edge.graphs.mapped import load_mapped
from vit_edge.graphs.preprocessing import OLDEST_OPSET, preprocessing_graph, put_in_front
from vit_edge.images.load import load_image
from vit_edge.images.preprocess import input_from_resized, pixel_levels, pixels_from_resized
from vit_edge.images.resize import resized_from_image
from vit_edge.parity.statistics import Difference
from vit_edge.quantize import FLOAT

# The graph computes Pillow's integers, so that a level is off only where a library's sine or
# cosine rounds otherwise and a coefficient lies on the edge. What is off must be harmless.
LARGEST_LEVEL = 1
LARGEST_RELATIVE = 1e-4  # one graph against both its parts: only float32 sums in another order
# In a low precision, and where tokens are merged, such a sum decides now and then how a value is
# rounded, or what is merged. Int4 kernels round their inputs: 4e-4 to 2.5e-2 were seen.
LEAST_JOINED_DB = 26.0
LEAST_SQNR_DB = 40.0  # INT8 costs 30, a Resize with antialias on the photos of this project 34


def write_preprocessing(manifest: Manifest, folder: Path) -> Path:
    """Write preprocess.onnx: any RGB image to what the model takes."""
    model = _graph(manifest, OLDEST_OPSET)
    model.producer_name, model.producer_version = "vit_edge", vit_edge.__version__
    model.metadata_props["vit_edge.preprocessing"] = json.dumps(
        dataclasses.asdict(manifest.preprocessing)
    )
    path = folder / PREPROCESS_NAME
    onnx_ir.save(model, path)
    return path


def _graph(manifest: Manifest, opset: int) -> onnx_ir.Model:
    return preprocessing_graph(manifest.preprocessing, manifest.input.dtype, opset)


def check_preprocessing(
    stage: Path, manifest: Manifest, golden: GoldenFiles, draft: Path
) -> dict[str, Any]:
    """Hold preprocess.onnx against Pillow on the probes and on golden images.

    Args:
        stage: Holds preprocess.onnx and golden.npz.
        manifest: The bundle's.
        golden: The images that graphs are judged by; KEPT of them are taken.
        draft: Holds the float32 model, which is asked where pixels differ.

    Returns:
        What parity.json says of it.

    Raises:
        ParityError: It makes other pixels, or pixels with other answers, beyond the limit.
    """
    spec, difference = manifest.preprocessing, Difference()
    session, model = open_session(stage / PREPROCESS_NAME), None
    output = "logits" if manifest.output("logits") is not None else manifest.outputs[0].name
    largest = agreeing = images = 0
    for name, image in checked_images(stage, manifest, golden):
        rgb = load_image(image, background=spec.background)
        expected = input_from_resized(resized_from_image(rgb, spec)[None], manifest)
        (found,) = session.run(None, {session.get_inputs()[0].name: np.asarray(rgb)})
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise ParityError(
                f"{PREPROCESS_NAME} makes {found.dtype}{list(found.shape)} of {name}, not "
                f"{expected.dtype}{list(expected.shape)}; nothing was published"
            )
        apart = levels_apart(found, expected, manifest)
        largest, images = max(largest, apart), images + 1
        same = apart == 0
        if not same:
            model = model or open_session(draft / MODEL_NAME)
            theirs, ours = (
                _answer(model, output, as_pixels(x, manifest)) for x in (expected, found)
            )
            difference.add(np.array([images - 1]), ours, theirs)
            same = bool(ours.argmax() == theirs.argmax())
        agreeing += same
    sqnr_db = difference.noise.sqnr_db
    problems = []
    if largest > LARGEST_LEVEL:
        problems.append(f"{largest} levels of 255 apart, allowed {LARGEST_LEVEL}")
    if agreeing < images:
        problems.append(f"{images - agreeing} of {images} images have another top-1 {output}")
    if sqnr_db is not None and sqnr_db < LEAST_SQNR_DB:
        problems.append(f"{output} at {sqnr_db:.1f} dB, at least {LEAST_SQNR_DB:.0f} dB asked for")
    if problems:
        raise ParityError(
            f"{PREPROCESS_NAME} does not make the pixels of Pillow; nothing was published:\n  "
            + "\n  ".join(problems)
        )
    return {
        "file": PREPROCESS_NAME,
        "runtime": f"onnxruntime {onnxruntime.__version__}, CPUExecutionProvider",
        "images": images,
        "largest_level": largest,
        "allowed_level": LARGEST_LEVEL,
        "output": output,
        "top1_agreement": agreeing / images,
        "sqnr_db": sqnr_db,  # of the images whose pixels differ; null where none do
        "allowed_sqnr_db": LEAST_SQNR_DB,
    }


def check_joinable(recipe: Recipe) -> None:
    """Refuse what cannot have its preprocessing in front, before anything expensive.

    Raises:
        UsageError: The graph is for GPUs, or for processors that have its precision.
    """
    if recipe.target == "gpu":
        where = "TensorRT, which has neither MatMulInteger nor float64"
    elif recipe.precision == "bf16":
        where = "processors with bfloat16, not for ONNX Runtime's CPU provider"
    else:
        return
    raise UsageError(
        f"--include-preprocessing: {recipe.name} makes a graph for {where}. Leave it out, and run "
        f"{PREPROCESS_NAME} on the CPU in front of the model"
    )


def write_end_to_end(stage: Path, manifest: Manifest) -> dict[str, Any]:
    """Write one graph from any RGB image to the answers, and hold it against both its parts.

    Args:
        stage: Holds the model, preprocess.onnx and golden.npz.
        manifest: The bundle's.

    Returns:
        What parity.json says of it.

    Raises:
        ModelError: It answers otherwise than its parts by more than rounding explains, which is a
            bug of ours.
        UsageError: The weights are too large for one file.
    """
    path = stage / END_TO_END_NAME
    model = load_mapped(stage / MODEL_NAME)
    check_model("--include-preprocessing", model)
    put_in_front(model, _graph(manifest, manifest.opset))
    onnx_ir.external_data.load_to_model(model)
    onnx_ir.save(model, path)
    whole, first, then = (
        open_session(stage / name) for name in (END_TO_END_NAME, PREPROCESS_NAME, MODEL_NAME)
    )
    names = [output.name for output in manifest.outputs]
    differences = {name: Difference() for name in names}
    with Golden(stage / GOLDEN_NAME) as golden:
        probes = golden.probes()
    for index, probe in enumerate(probes):
        background = manifest.preprocessing.background
        image = np.asarray(load_image(probe.data, background=background))
        (pixels,) = first.run(None, {first.get_inputs()[0].name: image})
        expected = then.run(names, {manifest.input.name: pixels})
        found = whole.run(names, {whole.get_inputs()[0].name: image})
        for name, ours, theirs in zip(names, found, expected, strict=True):
            differences[name].add(np.array([index]), ours, theirs)
    worst = max(difference.relative for difference in differences.values())
    least_db = min(each.noise.sqnr_centred_db or 0.0 for each in differences.values())
    shape = manifest.architecture
    exact = manifest.precision == FLOAT and not (shape and shape.merged_tokens)
    if not (worst <= LARGEST_RELATIVE or (not exact and least_db >= LEAST_JOINED_DB)):
        raise ModelError(
            f"{END_TO_END_NAME} answers otherwise than {PREPROCESS_NAME} and {MODEL_NAME} do one "
            f"after the other, by {worst:.1e} of the largest ({least_db:.0f} dB); nothing was "
            "published. This is a bug of ours: leave --include-preprocessing out, and tell us"
        )
    return {
        "file": END_TO_END_NAME,
        "images": len(probes),
        "relative": worst,
        "allowed_relative": LARGEST_RELATIVE if exact else None,
        "sqnr_centred_db": least_db,
        "allowed_sqnr_centred_db": None if exact else LEAST_JOINED_DB,
    }


def checked_images(
    stage: Path, manifest: Manifest, golden: GoldenFiles
) -> Iterator[tuple[str, bytes | Path]]:
    """The probes, and golden images evenly spread over all, with their names."""
    with Golden(stage / GOLDEN_NAME) as own:
        for probe in own.probes():
            yield probe.name, probe.data
    chosen = np.linspace(0, len(golden.files) - 1, KEPT).round().astype(int).tolist()
    for index in sorted(set(chosen)):
        yield golden.files[index].name, golden.files[index]


def _answer(
    model: onnxruntime.InferenceSession, output: str, pixels: NDArray[np.float32]
) -> NDArray[np.float32]:
    answer: NDArray[np.float32] = model.run([output], {model.get_inputs()[0].name: pixels})[0]
    return answer


def as_pixels(taken: NDArray[Any], manifest: Manifest) -> NDArray[np.float32]:
    """What the float32 model takes, of what the bundle's own does."""
    if taken.dtype == np.uint8:
        return pixels_from_resized(taken.astype(np.uint8), manifest.preprocessing)
    return taken.astype(np.float32)


def levels_apart(found: NDArray[Any], expected: NDArray[Any], manifest: Manifest) -> int:
    """The largest difference, in levels of 255, rounded up."""
    if np.array_equal(found, expected):
        return 0
    step: Any = 1
    if manifest.input.dtype == "float32":
        levels = pixel_levels(manifest.preprocessing).astype(np.float64)
        step = ((levels[:, -1] - levels[:, 0]) / 255)[:, None, None]
    apart = np.abs(found.astype(np.float64) - expected.astype(np.float64)) / np.abs(step)
    # the table is float32; half a thousandth of a level is its rounding
    return int(np.ceil(apart.max() - 5e-4)) if np.isfinite(apart).all() else 256
