"""Whether a container of vit_edge can still answer: exit code 0, or 1 with the reason.

It predicts a photo that comes with the package, with the first bundle in /bundles (or wherever
VIT_EDGE_BUNDLES says). So it notices what breaks containers that run for months: the bundle's
volume is gone, memory is too short, or the GPU has vanished from the container (after `systemctl
daemon-reload` on the host, for one). Where no bundle is mounted it checks that a runtime is there;
with VIT_EDGE_NEEDS_GPU=1 that the driver shows a GPU, before anything else.
"""

from __future__ import annotations

import os
import sys
from importlib import resources
from pathlib import Path

from vit_edge import Predictor, VitEdgeError, backends
from vit_edge.doctor.bundles import bundles_in
from vit_edge.machine import cuda


def check() -> str:
    """Say what works.

    Raises:
        VitEdgeError: What does not.
    """
    if os.environ.get("VIT_EDGE_NEEDS_GPU") == "1" and not (gpus := cuda.gpus()).found:
        raise VitEdgeError(gpus.reason)
    bundles = bundles_in(Path(os.environ.get("VIT_EDGE_BUNDLES", "/bundles")))
    if not bundles:
        runtimes = ", ".join(backends.installed().values())
        if not runtimes:
            raise VitEdgeError("no runtime can be used: vit-edge doctor")
        return f"no bundle mounted; {runtimes}"
    photo = resources.files("vit_edge") / "data" / "photos" / "cat.jpg"
    with Predictor(bundles[0]) as predictor:
        return f"{bundles[0].name} answers: {predictor.predict(photo.read_bytes()).label}"


def main() -> int:
    """Check, and print one line: `docker inspect` shows it."""
    try:
        print(check())
    except Exception as error:
        print(f"unhealthy: {type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
