"""PyTorch: the reference model itself, fed with the weights of the bundle's own float32 graph."""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vit_edge import onnxfile
from vit_edge.backends import Availability, Option, check_pixels
from vit_edge.backends._options import BuildOptions, build_names
from vit_edge.bundle import Bundle, integrity
from vit_edge.bundle.architecture import Architecture
from vit_edge.bundle.engines import Found
from vit_edge.bundle.manifest import (
    Manifest,
    Preprocessing,
)
from vit_edge.errors import BackendError, UsageError
from vit_edge.images.preprocess import pixels_from_resized
from vit_edge.machine import cpus

if TYPE_CHECKING:
    from vit_edge.models.reference import ReferenceDtype
    from vit_edge.models.vit import ViT


def available() -> Availability:
    """Whether torch is installed, without importing it."""
    if importlib.util.find_spec("torch") is None:
        return Availability(False, 'torch is not installed: pip install "vit-edge[export]"')
    return Availability(True, "torch")


def key(bundle: Bundle) -> str:
    """Nothing is built, so nothing but the model matters."""
    return bundle.model_sha256


BUILD_OPTIONS = build_names(BuildOptions)


def configurations(bundle: Bundle) -> Sequence[Mapping[str, Option]]:
    """None: the reference is not for devices."""
    return []


def find(bundle: Bundle, engines_dir: Path | None = None) -> Found:
    """Never anything: PyTorch runs as it is."""
    return Found(None, "PyTorch runs as it is")


def build(bundle: Bundle, engines_dir: Path | None = None) -> Path:
    """There is nothing to build.

    Raises:
        UsageError: Always.
    """
    raise UsageError("backend eager runs PyTorch as it is: there is nothing to build")


def load(
    bundle: Bundle, *, dtype: ReferenceDtype = "float32", threads: int | None = None
) -> EagerBackend:
    """Put the weights of model.onnx back into models.vit.

    Args:
        bundle: A bundle of precision fp32: the others no longer hold the weights.
        dtype: What to compute in.
        threads: By default what affinity and cgroup allow. It counts for all of torch.

    Raises:
        BackendError: The bundle's graph does not hold the reference's weights.
    """
    if bundle.manifest.precision != "fp32":
        raise BackendError(
            f"{bundle.path}: precision {bundle.manifest.precision} no longer holds the float32 "
            "weights; compare with the fp32 bundle or with golden.npz"
        )
    architecture = bundle.manifest.architecture
    if architecture is None:
        raise BackendError(
            f"{bundle.path}: made from {bundle.manifest.checkpoint.source}, a graph of another "
            "exporter, which is not taken apart; use backend ort, or compare with golden.npz"
        )
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}")
    integrity.ensure_verified(bundle)
    import torch

    torch.set_num_threads(threads or cpus.default_threads())
    return EagerBackend(_vit_from_bundle(bundle, architecture), bundle.manifest, dtype)


class EagerBackend:
    """models.vit on the CPU."""

    def __init__(self, vit: ViT, manifest: Manifest, dtype: ReferenceDtype = "float32") -> None:
        """Wrap a loaded model; the manifest says which outputs are wanted."""
        import torch

        self._vit: ViT | None = vit
        self._lock = threading.Lock()
        self._manifest = manifest
        self._dtype: ReferenceDtype = dtype
        self.facts: Mapping[str, str] = {
            "backend": "eager",
            "runtime": f"torch {torch.__version__}",
            "device": cpus.cpu_model(),
            "provider": "cpu",
            "precision": dtype,
            "threads": str(torch.get_num_threads()),
            "engine": "none (nothing to build)",
        }

    def run(self, pixels: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
        """See vit_edge.backends.Backend."""
        from vit_edge.models.reference import reference_outputs

        if self._vit is None:
            raise UsageError("this backend is closed")
        check_pixels(pixels, self._manifest)
        if self._manifest.input.dtype == "uint8":  # the graph normalises, models.vit does not
            pixels = pixels_from_resized(pixels.astype(np.uint8), self._manifest.preprocessing)
        with self._lock:  # the reference converts its weights in place, one module at a time
            found = reference_outputs(self._vit, pixels.astype(np.float32), self._dtype)
        answers = found._asdict()
        return {t.name: answers[t.name].float().numpy().copy() for t in self._manifest.outputs}

    def close(self) -> None:
        """Drop the weights."""
        self._vit = None


def _vit_from_bundle(bundle: Bundle, architecture: Architecture) -> ViT:
    """Undo what export.graph does to the parameters; what it folded stays where it went."""
    import torch

    from vit_edge.models.vit import parameter_shapes, vit_from_weights

    facts = onnxfile.read_model(bundle.model_path)
    arrays = {
        tensor.name: np.asarray(onnxfile.initializer_array(bundle.model_path, tensor))
        for tensor in facts.initializers
    }
    scaled = "Attention" not in facts.operators.get("", {})
    weights = {}
    for name, shape in parameter_shapes(architecture).items():
        if name in arrays:
            array = arrays[name]
            if scaled and ".attention.qkv." in name and not architecture.qk_norm:
                array = array * _query_factors(architecture)
            elif scaled and ".attention.q_norm." in name:
                array = array * np.float32(architecture.head_dim**0.5)
        elif name == "embedding.patch.weight" and "embedding.patch.matrix" in arrays:
            array = _patch_weight(arrays["embedding.patch.matrix"], bundle.manifest.preprocessing)
        elif name == "embedding.cls_token":  # added to its position already
            array = np.zeros(shape, np.float32)
        elif ".attention.qkv." in name:
            array = _qkv_of_class_token(arrays, name, architecture)
        elif name.startswith(("readout.head", "readout.pre_logits", "readout.projection")):
            array = np.zeros(shape, np.float32)  # no output of this bundle needs it
        elif name == "embedding.patch.bias":  # torch.onnx leaves one of zeros out, as CLIP's is
            array = np.zeros(shape, np.float32)
        else:
            raise BackendError(f"{bundle.model_path}: holds no weight {name}; not our export?")
        if array.shape != shape:
            raise BackendError(f"{bundle.model_path}: {name} is {array.shape}, expected {shape}")
        weights[name] = torch.from_numpy(np.array(array, np.float32))
    return vit_from_weights(architecture, weights)


def _patch_weight(matrix: NDArray[np.generic], preprocessing: Preprocessing) -> NDArray[np.generic]:
    """float32[P * P * 3, D] of export.passes.uint8_input -> [D, 3, P, P], for normalised pixels."""
    std = np.array(preprocessing.std)
    factors = (std * std if preprocessing.divided_twice else std) / preprocessing.rescale_factor
    patch_px = math.isqrt(len(matrix) // 3)
    by_pixel = np.asarray(matrix, np.float64).reshape(patch_px, patch_px, 3, -1)
    weight: NDArray[np.generic] = (by_pixel * factors[:, None]).transpose(3, 2, 0, 1)
    return weight


def _query_factors(architecture: Architecture) -> NDArray[np.float32]:
    """What takes 1 / sqrt(head_dim) out of the query columns of decomposed attention."""
    factors = np.ones(3 * architecture.width, np.float32)
    factors[: architecture.width] = architecture.head_dim**0.5
    return factors


def _qkv_of_class_token(
    arrays: Mapping[str, NDArray[np.generic]], name: str, architecture: Architecture
) -> NDArray[np.generic]:
    """Put q, k and v of export.graph.ClsAttention back together; k and v have no bias left."""
    block, _, kind = name.partition(".qkv.")
    try:
        q = arrays[f"{block}.q.{kind}"]
        if kind == "bias":
            return np.concatenate([q, np.zeros(2 * architecture.width, np.float32)])
        key = np.asarray(arrays[f"{block}.key"], np.float32) * architecture.head_dim**0.5
        value = arrays[f"{block}.value"]
    except KeyError as error:
        raise BackendError(f"model.onnx holds neither {name} nor {error.args[0]}") from None
    key, value = key.transpose(2, 0, 1), value.transpose(1, 0, 2)  # [D, heads, head_dim]
    return np.concatenate([q, key.reshape(q.shape), value.reshape(q.shape)], axis=1)
