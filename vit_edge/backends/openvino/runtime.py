"""The openvino package: whether it is here, imported without its telemetry, its exceptions."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from vit_edge.backends import Availability
from vit_edge.errors import BackendError, VitEdgeError

# 2026.0 has no opset-23 Attention; 2026.1 and 2026.2 have one, and it answers wrong without a word.
MINIMUM_VERSION = (2026, 3)


def available() -> Availability:
    """Say whether openvino is installed, without importing it."""
    if importlib.util.find_spec("openvino") is None:
        return Availability(False, 'openvino is not installed: pip install "vit-edge[openvino]"')
    got = version()
    if tuple(int(part) for part in got.split(".")[:2]) < MINIMUM_VERSION:
        needed = ".".join(map(str, MINIMUM_VERSION))
        return Availability(
            False,
            f'openvino {got} is too old, {needed} is needed: pip install -U "vit-edge[openvino]"',
        )
    return Availability(True, f"openvino {got}")


def version() -> str:
    """The version that is installed, such as 2026.4.1."""
    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError:  # built from source, without a distribution's metadata
        return str(imported().__version__).partition("-")[0]


def imported() -> Any:
    """Import openvino without its telemetry.

    `import openvino` imports a package of its own that, unless the user has opted out, writes an
    id into the home directory and reports the import. Where it is absent openvino does without.

    Returns:
        The module; a caller that imported it before has it as it was.
    """
    reporter = "openvino_telemetry"
    if "openvino" not in sys.modules and reporter not in sys.modules:
        sys.modules[reporter] = None  # type: ignore[assignment] # importlib's "not installed"
        try:
            import openvino
        finally:
            del sys.modules[reporter]
    import openvino

    return openvino


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn the runtime's exceptions, which have no base of their own, into got.

    Args:
        what: What was refused, or where it happened: the beginning of the message.

    Raises:
        BackendError: With what OpenVINO said, less the places in its source.
    """
    try:
        yield
    except VitEdgeError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()]
        said = [line for line in lines if line and not line.startswith("Exception from")]
        raise BackendError(f"{what}: {' '.join(said) or repr(error)}") from error
