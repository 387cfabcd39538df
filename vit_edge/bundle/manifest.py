"""What a bundle says of itself: the manifest, as frozen dataclasses and strict JSON.

Everything that decides an answer is here, so that nothing is guessed on the device. Standard
library only: the manifest is read before any runtime, NumPy or Pillow is needed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from vit_edge.bundle.architecture import ADDED_IN_0_2, IN_RANGE, LARGEST_SIZE, Architecture
from vit_edge.errors import BundleError
from vit_edge.strict import Rules, json_from_text, record_from_json, unmet

MANIFEST_NAME = "manifest.json"  # written last: no manifest, no bundle
SCHEMA_VERSION = 2  # 1 had no quantization and always an architecture
REQUIRED_FILES = ("model.onnx", "golden.npz", "labels.txt", "parity.json")

_LARGEST_NUMBER = 2**53  # beyond it, not every reader of JSON is exact; no field comes near

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
PositionMethod = Literal[
    "bicubic", "bicubic-antialias", "bicubic-corners", "bicubic-offset", "zoom-bilinear"
]
Scores = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes pixels: resize (PIL, on uint8), crop the centre, scale, normalise.

    squash: resize to `resize_hw`, whatever the aspect ratio (google/vit-*).
    cover: keep the aspect ratio and cover `resize_hw` (timm and torchvision: the shortest edge).
    Then the centre `crop_hw` is cut; pixel = (value * rescale_factor + offset - mean) / std.
    """

    resize: Literal["squash", "cover"]
    resize_hw: tuple[int, int]
    crop_hw: tuple[int, int]  # what the model sees; equal to resize_hw where nothing is cropped
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale_factor: float = 1 / 255
    background: tuple[int, int, int] = (255, 255, 255)  # what transparency is composited on
    crop_rounding: Literal["even", "down"] = "even"  # of half a pixel: torchvision, transformers
    offset: float = 0.0
    divided_twice: bool = False  # by std: EfficientNet's include_top

    def problems(self) -> list[str]:
        """Everything that makes this no usable preprocessing; empty if nothing does."""
        resize, crop = self.resize_hw, self.crop_hw
        problems = unmet(
            self,
            resize_hw=(min(resize) >= 1 and max(resize) <= LARGEST_SIZE, IN_RANGE),
            crop_hw=(min(crop) >= 1 and max(crop) <= LARGEST_SIZE, IN_RANGE),
            std=(min(self.std) > 0, "must be positive"),
            rescale_factor=(self.rescale_factor > 0, "must be positive"),
            background=(all(0 <= b <= 255 for b in self.background), "must lie in 0..255"),
        )
        if crop[0] > resize[0] or crop[1] > resize[1]:
            problems.append(f"crop_hw {list(crop)} is larger than resize_hw {list(resize)}")
        return problems


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. None in `shape` is the dynamic batch axis."""

    name: str
    dtype: Literal["float32", "uint8"]
    layout: str  # NCHW for pixels, NHWC for uint8, NC for logits, features, NLC for tokens
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class PositionInterpolation:
    """How the position embeddings came from one patch grid to another."""

    method: PositionMethod
    from_grid_hw: tuple[int, int]
    to_grid_hw: tuple[int, int]


@dataclass(frozen=True)
class CheckpointRecord:
    """Where the weights came from."""

    source: str  # hf:ID, timm:NAME, open_clip:ID, jax:FILE, seeded:N, embedded, onnx:FILE
    sha256: dict[str, str]  # file name -> sha256; empty for seeded weights
    revision: str | None = None  # of the hub, a commit
    position_interpolation: PositionInterpolation | None = None


@dataclass(frozen=True)
class FileRecord:
    """One file of the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """manifest.json, written last: no manifest, no bundle."""

    variant: str
    architecture: Architecture | None  # None: a graph from another exporter, not taken apart
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    max_batch: int
    preprocessing: Preprocessing
    precision: str
    opset: int
    ir_version: int
    recipe: dict[str, Any]
    checkpoint: CheckpointRecord
    reference_dtype: Literal["float64", "float32"]
    producer: dict[str, str]
    files: dict[str, FileRecord] = field(default_factory=dict)
    quantization: dict[str, Any] | None = None  # the quantizer's record; None: it is float32
    scores: Scores = "softmax"  # what is made of the logits; of values, as of regression, none
    labels_invented: bool = False  # nobody names the classes; labels.txt has stand-ins
    schema_version: int = SCHEMA_VERSION

    @property
    def num_classes(self) -> int:
        """How many labels belong to the bundle; 0 without a head."""
        if self.architecture is not None:
            return self.architecture.num_classes
        logits = self.output("logits")
        return 0 if logits is None else logits.shape[-1] or 0

    def output(self, name: str) -> TensorSpec | None:
        """The output of that name, or None."""
        return next((tensor for tensor in self.outputs if tensor.name == name), None)

    def problems(self) -> list[str]:
        """Everything that parts of the manifest contradict; empty if nothing does."""
        architecture = [] if self.architecture is None else self.architecture.problems()
        return [
            *(f"architecture: {problem}" for problem in architecture),
            *(f"preprocessing: {problem}" for problem in self.preprocessing.problems()),
            *_input_problems(self),
            *unmet(self, max_batch=(self.max_batch >= 1, "must be at least 1")),
            *_output_problems(self),
            *(f"files does not list {name}" for name in REQUIRED_FILES if name not in self.files),
            *(
                f"files.{name}: size {record.size}, sha256 {record.sha256!r}"
                for name, record in self.files.items()
                if record.size < 0 or not re.fullmatch("[0-9a-f]{64}", record.sha256)
            ),
        ]


# What bundles of 0.1.0, without these fields, mean by that.
_ADDED = {"scores": "softmax", "labels_invented": False}
_ADDED_STEPS = {"crop_rounding": "even", "offset": 0.0, "divided_twice": False}

_Record = TypeVar("_Record", Manifest, Preprocessing)


def json_from_manifest(manifest: Manifest) -> str:
    """Write a manifest as JSON, two spaces deep, one newline at the end."""
    return json.dumps(dataclasses.asdict(manifest), indent=2, allow_nan=False) + "\n"


def manifest_from_json(text: str, where: str) -> Manifest:
    """Read a manifest strictly.

    Args:
        text: The JSON text.
        where: The path to name in errors.

    Raises:
        BundleError: Not JSON, another schema version, or any key missing, unknown or of the wrong
            type; all problems are listed.
    """
    try:
        data = json_from_text(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise BundleError(f"{where}: expected a JSON object, got {type(data).__name__}")
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{where}: schema_version is {version!r}, this vit_edge reads {SCHEMA_VERSION}. "
            "Export the bundle again with this version, or install the version that wrote it."
        )
    if isinstance(shape := data.get("architecture"), dict):
        data["architecture"] = {**ADDED_IN_0_2, **shape}
    if isinstance(steps := data.get("preprocessing"), dict):
        data["preprocessing"] = {**_ADDED_STEPS, **steps}
    return _checked(Manifest, _ADDED | data, where, defaults=False)


def preprocessing_from_table(data: dict[str, Any], where: str) -> Preprocessing:
    """Read the fields of a Preprocessing strictly; those that have a default may be left out.

    Raises:
        BundleError: Keys missing or unknown, or values of the wrong type or range; all are listed.
    """
    return _checked(Preprocessing, data, where, defaults=True)


def _checked(kind: type[_Record], data: object, where: str, *, defaults: bool) -> _Record:
    rules = Rules(_LARGEST_NUMBER, defaults=defaults, unknown_keys=False, to_float=True)
    record, problems = record_from_json(kind, data, "it", rules)
    if problems := problems or record.problems():
        raise BundleError(f"{where}: {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    return record


def _output_problems(manifest: Manifest) -> Iterator[str]:
    """Say what is wrong with the outputs, taken together."""
    names = [tensor.name for tensor in manifest.outputs]
    if not names:
        yield "outputs is empty"
    if len(set(names)) != len(names):
        yield f"outputs has repeated names: {names}"
    for name, shape in ((tensor.name, tensor.shape) for tensor in manifest.outputs):
        if not shape or shape[0] is not None or None in shape[1:]:
            yield f"output {name} has shape {list(shape)}; only the batch must be dynamic (null)"
        elif min(size or 1 for size in shape) < 1:
            yield f"output {name} has shape {list(shape)}"
    logits = manifest.output("logits")
    if logits is not None and logits.shape[1:] != (manifest.num_classes,):
        yield f"logits has shape {list(logits.shape)}, expected [null, {manifest.num_classes}]"


def _input_problems(manifest: Manifest) -> Iterator[str]:
    """Say where input, preprocessing and architecture do not speak of the same images."""
    architecture, tensor = manifest.architecture, manifest.input
    crop_hw = manifest.preprocessing.crop_hw
    whose, channels, image_hw = "preprocessing", 3, crop_hw  # decoded images are RGB
    if architecture is not None:
        whose, channels, image_hw = "architecture", architecture.channels, architecture.image_hw
    if crop_hw != image_hw:
        yield f"preprocessing ends at {list(crop_hw)} px, the model takes {list(image_hw)} px"
    allowed = (
        TensorSpec(tensor.name, "float32", "NCHW", (None, channels, *image_hw)),
        TensorSpec(tensor.name, "uint8", "NHWC", (None, *image_hw, channels)),
    )
    if tensor not in allowed:
        expected = " or ".join(map(_described, allowed))
        yield f"input is {_described(tensor)}, the {whose} needs {expected}"


def _described(tensor: TensorSpec) -> str:
    return f"{tensor.dtype} {tensor.layout} {list(tensor.shape)}"
