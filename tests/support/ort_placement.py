"""Where each node of a model really runs: from ONNX Runtime's own profile of a run."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from vit_edge.backends import ort
from vit_edge.backends.ort import device
from vit_edge.backends.ort.options import Provider
from vit_edge.backends.ort.session import session_options
from vit_edge.bundle import Bundle


def kernels_by_provider(bundle: Bundle, provider: Provider) -> dict[str, int]:
    """Load a bundle as users do, run one image, and count the kernels that ran on each provider.

    Copies to and from a GPU that ONNX Runtime inserted count as the GPU's.
    """
    with tempfile.TemporaryDirectory() as folder:

        def profiled(*arguments: Any, **options: Any) -> Any:
            found = session_options(*arguments, **options)
            found.enable_profiling = True
            found.profile_file_prefix = str(Path(folder) / "profile")
            return found

        with (
            mock.patch.object(ort, "session_options", profiled),
            mock.patch.object(device, "session_options", profiled),
        ):
            backend = ort.load(bundle, provider=provider, engine="never")
        shape: Any = (1, *bundle.manifest.input.shape[1:])
        backend.run(np.random.default_rng(0).standard_normal(shape, np.float32))
        session = backend._session
        assert session is not None
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    kernels = (event.get("args", {}).get("provider") for event in events)
    return dict(Counter(name for name in kernels if name))
