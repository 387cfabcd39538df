"""What a bundle says of itself: the manifest, as frozen dataclasses and strict JSON.

Everything that decides an answer is here, so that nothing is guessed on the device. Standard
library only: the manifest is read before any runtime, NumPy or Pillow is needed.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from vit_edge.errors import BundleError

SCHEMA_VERSION = 2  # 1 had no quantization and always an architecture

_LARGEST = 2**53  # integers beyond it are not exact in every JSON reader; no field comes near

_LARGEST_SIDE_PX = 2**16
_LARGEST_SIZE = 2**16  # of a width, a depth, ...: ViT-22B's MLP has 24,576 (arXiv:2302.05442)

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
PositionMethod = Literal["bicubic", "bicubic-antialias", "zoom-bilinear"]


@dataclass(frozen=True)
class Architecture:
    """The shape of a Vision Transformer (arXiv:2010.11929, Table 1)."""

    width: int  # D, the hidden size
    depth: int  # L, the number of blocks
    heads: int
    mlp_dim: int
    patch_px: int
    image_hw: tuple[int, int]  # height, width in pixels
    num_classes: int  # 0: no head
    channels: int = 3
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    pre_logits_dim: int | None = None  # width of the tanh layer before the head, if there is one

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_hw[0] // self.patch_px, self.image_hw[1] // self.patch_px

    @property
    def tokens(self) -> int:
        """Patches plus the class token."""
        return self.grid_hw[0] * self.grid_hw[1] + 1

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    def problems(self) -> list[str]:
        """Everything that makes these numbers no ViT; empty if nothing does."""
        sizes = ("width", "depth", "heads", "mlp_dim", "patch_px", "channels")
        found = [
            f"{name} must lie in 1..{_LARGEST_SIZE}, not {getattr(self, name)!r}"
            for name in sizes
            if not 1 <= getattr(self, name) <= _LARGEST_SIZE
        ]
        if found:
            return found
        if self.width % self.heads:
            found.append(f"width {self.width} is not divisible by {self.heads} heads")
        for axis, size_px in zip(("height", "width"), self.image_hw, strict=True):
            if size_px < self.patch_px or size_px % self.patch_px:
                found.append(
                    f"image {axis} {size_px} px is not a positive multiple of the patch size "
                    f"{self.patch_px} px"
                )
        if self.num_classes < 0:
            found.append(f"num_classes must not be negative, not {self.num_classes}")
        if self.pre_logits_dim is not None and self.pre_logits_dim < 1:
            found.append(f"pre_logits_dim must be positive or null, not {self.pre_logits_dim}")
        if not 0 < self.layer_norm_eps < 1:
            found.append(f"layer_norm_eps must lie between 0 and 1, not {self.layer_norm_eps}")
        return found


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes pixels: resize (PIL, on uint8), crop the centre, scale, normalise.

    squash: resize to `resize_hw`, whatever the aspect ratio (google/vit-*).
    cover: keep the aspect ratio and cover `resize_hw` (timm and torchvision: the shortest edge).
    Then the centre `crop_hw` is cut out, and pixel = (value * rescale_factor - mean) / std.
    """

    resize: Literal["squash", "cover"]
    resize_hw: tuple[int, int]
    crop_hw: tuple[int, int]  # what the model sees; equal to resize_hw where nothing is cropped
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale_factor: float = 1 / 255
    background: tuple[int, int, int] = (255, 255, 255)  # what transparency is composited on

    def problems(self) -> list[str]:
        """Everything that makes this no usable preprocessing; empty if nothing does."""
        found = []
        for name in ("resize_hw", "crop_hw"):
            if not 1 <= min(getattr(self, name)) <= max(getattr(self, name)) <= _LARGEST_SIDE_PX:
                found.append(f"{name} must lie in 1..65536, not {list(getattr(self, name))}")
        if any(c > r for c, r in zip(self.crop_hw, self.resize_hw, strict=True)):
            found.append(
                f"crop_hw {list(self.crop_hw)} is larger than resize_hw {list(self.resize_hw)}"
            )
        if any(s <= 0 for s in self.std):
            found.append(f"std must be positive, not {list(self.std)}")
        if self.rescale_factor <= 0:
            found.append(f"rescale_factor must be positive, not {self.rescale_factor}")
        if any(not 0 <= b <= 255 for b in self.background):
            found.append(f"background must lie in 0..255, not {list(self.background)}")
        return found


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. None in `shape` is the dynamic batch axis."""

    name: str
    dtype: Literal["float32", "uint8"]
    layout: str  # NCHW for pixels, NHWC for uint8 images, NC for logits, features, NLC for tokens
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

    source: str  # hf:ID, timm:NAME, jax:FILE, seeded:N, embedded, onnx:FILE
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
        data = json.loads(text, parse_constant=_refuse_constant)
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
    problems: list[str] = []
    manifest = _read(Manifest, data, "manifest", problems)
    if not problems:
        if manifest.architecture is not None:
            problems += [f"architecture: {p}" for p in manifest.architecture.problems()]
        problems += [f"preprocessing: {p}" for p in manifest.preprocessing.problems()]
        problems += _consistency_problems(manifest)
    if problems:
        raise BundleError(f"{where}: {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    return typing.cast(Manifest, manifest)


def preprocessing_from_table(data: dict[str, Any], where: str) -> Preprocessing:
    """Read the fields of a Preprocessing strictly; those that have a default may be left out.

    Raises:
        BundleError: Keys missing or unknown, or values of the wrong type or range; all are listed.
    """
    fields = dataclasses.fields(Preprocessing)
    optional = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    problems: list[str] = []
    found = _read(Preprocessing, json.loads(json.dumps(optional)) | data, "preprocessing", problems)
    if not problems:
        problems += found.problems()
    if problems:
        raise BundleError(f"{where}: {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    return typing.cast(Preprocessing, found)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _consistency_problems(manifest: Manifest) -> list[str]:
    """What single fields cannot show: parts of the manifest that contradict each other."""
    found = _input_problems(manifest)
    if manifest.max_batch < 1:
        found.append(f"max_batch must be at least 1, not {manifest.max_batch}")
    if not manifest.outputs:
        found.append("outputs is empty")
    names = [tensor.name for tensor in manifest.outputs]
    if len(set(names)) != len(names):
        found.append(f"outputs has repeated names: {names}")
    for tensor in manifest.outputs:
        if not tensor.shape or tensor.shape[0] is not None or None in tensor.shape[1:]:
            found.append(
                f"output {tensor.name} has shape {list(tensor.shape)}; exactly the first axis "
                "(the batch) must be dynamic (null)"
            )
        elif min(size or 1 for size in tensor.shape) < 1:
            found.append(f"output {tensor.name} has shape {list(tensor.shape)}")
    logits = manifest.output("logits")
    if logits is not None and logits.shape[1:] != (manifest.num_classes,):
        found.append(
            f"logits has shape {list(logits.shape)}, expected [null, {manifest.num_classes}]"
        )
    for name in ("model.onnx", "golden.npz", "labels.txt", "parity.json"):
        if name not in manifest.files:
            found.append(f"files does not list {name}")
    for name, record in manifest.files.items():
        if record.size < 0 or not re.fullmatch("[0-9a-f]{64}", record.sha256):
            found.append(f"files.{name}: size {record.size}, sha256 {record.sha256!r}")
    return found


def _input_problems(manifest: Manifest) -> list[str]:
    """Whether input, preprocessing and architecture speak of the same images."""
    architecture, crop_hw = manifest.architecture, manifest.preprocessing.crop_hw
    found = []
    if architecture is None:
        whose, channels, image_hw = "preprocessing", 3, crop_hw  # decoded images are RGB
    else:
        whose, channels, image_hw = "architecture", architecture.channels, architecture.image_hw
        if crop_hw != architecture.image_hw:
            found.append(
                f"preprocessing ends at {list(crop_hw)} px, "
                f"the model takes {list(architecture.image_hw)} px"
            )
    allowed = (
        TensorSpec(manifest.input.name, "float32", "NCHW", (None, channels, *image_hw)),
        TensorSpec(manifest.input.name, "uint8", "NHWC", (None, *image_hw, channels)),
    )
    if manifest.input not in allowed:
        found.append(
            f"input is {_described(manifest.input)}, "
            f"the {whose} needs {' or '.join(map(_described, allowed))}"
        )
    return found


def _described(tensor: TensorSpec) -> str:
    return f"{tensor.dtype} {tensor.layout} {list(tensor.shape)}"


def _read(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    """Turn parsed JSON into `kind`, adding what does not fit to `problems`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where, problems)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            problems.append(f"{where}: {value!r} is not one of {list(arguments)}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _read(inner, value, where, problems)
    if origin is tuple:
        return _read_tuple(arguments, value, where, problems)
    if origin is dict:
        if not isinstance(value, dict):
            problems.append(f"{where}: expected an object, got {type(value).__name__}")
            return {}
        return {k: _read(arguments[1], v, f"{where}.{k}", problems) for k, v in value.items()}
    if kind in (int, float) and type(value) in (int, float) and not abs(value) < _LARGEST:
        problems.append(f"{where}: {str(value)[:20]} is out of any range")
        return kind(0)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        problems.append(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def _read_dataclass(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(value, dict):
        problems.append(f"{where}: expected an object, got {type(value).__name__}")
        return None
    hints = typing.get_type_hints(kind)
    before = len(problems)
    problems += [f"{where}.{key}: unknown key" for key in sorted(value.keys() - hints.keys())]
    problems += [f"{where}.{key}: missing" for key in sorted(hints.keys() - value.keys())]
    read = {
        key: _read(hint, value[key], f"{where}.{key}", problems)
        for key, hint in hints.items()
        if key in value
    }
    return kind(**read) if len(problems) == before else None


def _read_tuple(arguments: tuple[Any, ...], value: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(value, list):
        problems.append(f"{where}: expected a list, got {type(value).__name__}")
        return ()
    if arguments[-1] is not Ellipsis and len(value) != len(arguments):
        problems.append(f"{where}: expected {len(arguments)} items, got {len(value)}")
        return ()
    kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
    return tuple(
        _read(kind, item, f"{where}[{i}]", problems)
        for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )
