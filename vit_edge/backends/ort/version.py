"""Which ONNX Runtime is here, and which precisions it runs as they are."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
from pathlib import Path

from vit_edge.backends import Availability
from vit_edge.backends.ort.options import Provider
from vit_edge.bundle import Bundle
from vit_edge.errors import BackendError

MINIMUM_VERSION = (1, 23)  # the first with a CPU kernel for opset-23 Attention, the last for 3.10

# The first that compares packed weights with what it packs at a start (ValidatePrePackedWeights).
COMPARES_PACKED = (1, 32)
# The first version that fuses such weights into it: 1.23.2, 1.24.2, 1.25.0, 1.26.0, 1.31.1 tried.
WEIGHT_ONLY = {"int4": (1, 23), "int8-weights": (1, 25)}  # int4 with 8 bits in part: as these

_METADATA = re.compile(r"onnxruntime(?:_gpu)?-(.+)\.dist-info")


def installed_version() -> str:
    """The version of onnxruntime, without importing it where that can be had.

    The folder of a wheel's metadata bears it (PEP 376). importlib.metadata reads the files in it,
    and imports Python's parser of e-mails for that: as long as all that a predictor imports of us.
    """
    spec = importlib.machinery.PathFinder.find_spec("onnxruntime")
    if spec is not None and spec.origin:
        folders = Path(spec.origin).parents[1].glob("onnxruntime*.dist-info")
        named = [_METADATA.fullmatch(folder.name) for folder in folders]
        versions = [match[1] for match in named if match]
        if len(versions) == 1:
            return versions[0]
    from importlib import metadata

    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    import onnxruntime  # built by the board's vendor, without a distribution's metadata

    return str(onnxruntime.__version__)


def release(version: str) -> tuple[int, ...]:
    """(1, 31) of "1.31.1"."""
    return tuple(int(part) for part in version.split(".")[:2])


def available() -> Availability:
    """Whether onnxruntime is installed, without importing it."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Availability(False, 'onnxruntime is not installed: pip install "vit-edge[cpu]"')
    version = installed_version()
    if release(version) < MINIMUM_VERSION:
        return Availability(
            False,
            f'onnxruntime {version} is too old, 1.23 is needed: pip install -U "vit-edge[cpu]"',
        )
    return Availability(True, f"onnxruntime {version}")


def check_runnable(bundle: Bundle, provider: Provider) -> None:
    """Refuse a precision that this version or provider cannot run as it is.

    By the version, which costs nothing; `build` looks at the optimized graph itself.

    Raises:
        BackendError: Weights would be expanded to float32 at every run, or there is no kernel.
    """
    precision = bundle.manifest.precision
    settings = (bundle.manifest.quantization or {}).get("settings", {})
    widest = "int8-weights" if settings.get("wide_part") else precision
    needed = WEIGHT_ONLY.get(widest, MINIMUM_VERSION)
    if release(installed_version()) < needed:
        raise BackendError(
            f"{bundle.path}: onnxruntime {installed_version()} would expand {precision} to float32 "
            f"at every run; {'.'.join(map(str, needed))} or newer multiplies it as it is. Update "
            "it, or export with --precision int4 (its wide_part 0) or int8"
        )
    if precision == "bf16" and provider == "cpu":
        raise BackendError(
            f"{bundle.path}: onnxruntime's CPU provider has no BF16 MatMul. Run it with "
            'ort.load(bundle, provider="cuda"), on OpenVINO or on TensorRT, or export another '
            "precision for this device; its parity was proven at export (see parity.json)"
        )
