"""Options of every command that publishes a bundle."""

from __future__ import annotations

from typing import Any

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
