"""Options of every command that publishes a bundle."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vit_edge.errors import UsageError

if TYPE_CHECKING:
    from vit_edge.quantize.calibration import CalibrationRequest

PUBLISHING: dict[str, dict[str, Any]] = {
    "--include-preprocessing": {
        "action": "store_true",
        "help": "write end-to-end.onnx into the bundle as well: an RGB image of any size in, the "
        "answers out; for CPUs",
    },
    "--layout": {
        "metavar": "NAME",
        "help": "transformers.js: write a folder of that name into the bundle as well, which "
        "transformers.js and optimum load",
    },
    "--force": {"action": "store_true", "help": "replace an existing bundle, in one step"},
}


def calibration_from(arguments: argparse.Namespace) -> CalibrationRequest | None:
    """Read --calibration, --calibration-images and --calibration-seed.

    Raises:
        UsageError: It is said how many images or which of them, but not where they are.
    """
    from vit_edge.quantize.calibration import CalibrationRequest

    asked = {"count": arguments.calibration_images, "seed": arguments.calibration_seed}
    given = {name: value for name, value in asked.items() if value is not None}
    if arguments.calibration is not None:
        return CalibrationRequest(arguments.calibration, **given)
    if given:
        raise UsageError(
            "--calibration-images and --calibration-seed choose among the images of a folder; "
            "give that as well, --calibration DIR"
        )
    return None
