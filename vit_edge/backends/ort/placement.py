"""Where each node really ran: from ONNX Runtime's own profile of a run."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vit_edge.backends.ort.session import check_runnable, open_session, session_options
from vit_edge.backends.ort.use import PROVIDERS, GpuUse, Provider, Use
from vit_edge.bundle import Bundle, integrity
from vit_edge.bundle.manifest import Manifest
from vit_edge.errors import BackendError
from vit_edge.machine import cpus

if TYPE_CHECKING:
    import onnxruntime


def node_providers(
    bundle: Bundle, provider: Provider = "cpu", *, device: int = 0
) -> dict[str, int]:
    """Run one image and count the kernels that ran on each provider.

    TensorRT's provider makes one kernel of everything it takes. Copies to and from a GPU that
    ONNX Runtime inserted count as the GPU's.

    Args:
        bundle: The bundle.
        provider: What must run it.
        device: On which GPU.

    Returns:
        Provider -> kernels, such as {"CUDAExecutionProvider": 268}.

    Raises:
        BackendError: As `load`.
    """
    use = Use(cpus.usable_cpus(), provider, gpu=GpuUse(device=device))
    use.check()
    check_runnable(bundle, provider)
    integrity.ensure_verified(bundle)
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        prefix = str(Path(folder) / "profile")
        session = _profiled(onnxruntime, bundle, use, prefix)
        return counted(session, bundle.manifest, [1])


def _profiled(runtime: Any, bundle: Bundle, use: Use, prefix: str) -> Any:
    if use.provider == "cpu":
        precision = bundle.manifest.precision
        options = session_options(runtime, use, precision, optimize=True, entries={})
        options.enable_profiling, options.profile_file_prefix = True, prefix
        return open_session(runtime, bundle.model_path, options, "cpu")
    from vit_edge.backends.ort import device

    return device.opened(runtime, bundle, use, profile=prefix).session


def counted(
    session: onnxruntime.InferenceSession, manifest: Manifest, batches: Sequence[int]
) -> dict[str, int]:
    """Run batches of noise through a session that keeps a profile, end it and count.

    Raises:
        BackendError: The run fails, or its profile names no kernel.
    """
    tensor = manifest.input
    names = [output.name for output in manifest.outputs]
    for batch in batches:
        try:
            session.run(names, {tensor.name: noise(manifest, batch)})
        except Exception as error:  # the runtime's exceptions have no common base but this
            raise BackendError(f"onnxruntime failed while running: {error}") from error
    file = Path(session.end_profiling())
    events = json.loads(file.read_text("utf-8"))
    found = Counter(
        event["args"]["provider"]
        for event in events
        if event.get("cat") == "Node" and event.get("args", {}).get("provider")
    )
    if not found:
        raise BackendError(f"{file}: onnxruntime's profile names no kernel that ran")
    return dict(found)


def check_placed(found: dict[str, int], provider: Provider) -> None:
    """Refuse a run of which a part was somebody else's.

    Raises:
        BackendError: What ran where.
    """
    wanted = PROVIDERS[provider]
    if set(found) != {wanted}:
        told = ", ".join(f"{count} on {name}" for name, count in sorted(found.items()))
        raise BackendError(f"asked onnxruntime for {wanted} alone, but of the kernels ran {told}")


def noise(manifest: Manifest, batch: int) -> NDArray[np.generic]:
    """Pixels that no image has, in the dtype and shape of the manifest's input."""
    tensor, random = manifest.input, np.random.default_rng(0)
    shape = (batch, *(size for size in tensor.shape[1:] if size is not None))
    if tensor.dtype == "uint8":
        return random.integers(0, 256, shape, np.uint8)
    return random.standard_normal(shape, np.float32)
