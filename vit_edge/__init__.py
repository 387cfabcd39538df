"""Vision Transformers on small devices, without losing their answers.

The public names load on first use, so that `import vit_edge` itself costs next to nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vit_edge.bench.api import bench
    from vit_edge.build.api import build, tune
    from vit_edge.bundle import Bundle
    from vit_edge.doctor.api import doctor
    from vit_edge.errors import (
        ArrayError,
        BackendError,
        BundleError,
        CheckpointError,
        EngineError,
        HubError,
        ImageDecodeError,
        ImageError,
        ImageTooLargeError,
        InputError,
        IntegrityError,
        MissingExtraError,
        ModelError,
        ParityError,
        PredictionError,
        RecipeError,
        ResourceError,
        UnsupportedImageError,
        UsageError,
        VitEdgeError,
    )
    from vit_edge.evaluate.api import evaluate
    from vit_edge.export.api import export
    from vit_edge.export.lowering import quantize
    from vit_edge.images import ImageLimits
    from vit_edge.inspect import inspect
    from vit_edge.parity.api import parity
    from vit_edge.predictor import Failure, Prediction, Predictor, Ranked
    from vit_edge.probes import probes
    from vit_edge.push import push
    from vit_edge.recommend.api import recommend
    from vit_edge.triton.repository import triton
    from vit_edge.verify import verify

__version__ = "0.2.0"

# Libraries that report to their makers, read when they are imported; children inherit them. From
# its import on, onnxruntime 1.31 writes an id below HOME and asks a host. A value stays that the
# user has set. OpenVINO's reporter has no such variable: see backends/openvino/runtime.py.
for _switch in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    if not os.environ.get(_switch):
        os.environ[_switch] = "1"

__all__ = [
    "ArrayError",
    "BackendError",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "EngineError",
    "Failure",
    "HubError",
    "ImageDecodeError",
    "ImageError",
    "ImageLimits",
    "ImageTooLargeError",
    "InputError",
    "IntegrityError",
    "MissingExtraError",
    "ModelError",
    "ParityError",
    "Prediction",
    "PredictionError",
    "Predictor",
    "Ranked",
    "RecipeError",
    "ResourceError",
    "UnsupportedImageError",
    "UsageError",
    "VitEdgeError",
    "bench",
    "build",
    "doctor",
    "evaluate",
    "export",
    "inspect",
    "parity",
    "probes",
    "push",
    "quantize",
    "recommend",
    "triton",
    "tune",
    "verify",
]

# Packages that are called like functions (see callables.py); `python -m vit_edge.NAME` runs them.
_VERBS = (
    *("bench", "build", "doctor", "evaluate", "export", "inspect", "parity", "probes"),
    *("push", "quantize", "recommend", "triton", "verify"),
)

_MODULES = {
    "Bundle": "vit_edge.bundle.bundle",
    "Failure": "vit_edge.predictor",
    "ImageLimits": "vit_edge.images.load",
    "Prediction": "vit_edge.predictor",
    "Predictor": "vit_edge.predictor",
    "Ranked": "vit_edge.predictor",
    "tune": "vit_edge.build.api",
}


def __getattr__(name: str) -> object:
    """Import the module of a public name when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import gc
    import importlib

    collects = gc.isenabled()
    gc.disable()  # imports leave no garbage, and looking for it takes 7 % of NumPy's
    try:
        if name in _VERBS:
            from vit_edge.callables import import_verb

            return import_verb(f"{__name__}.{name}")
        return getattr(importlib.import_module(_MODULES.get(name, "vit_edge.errors")), name)
    finally:
        if collects:
            gc.enable()


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
