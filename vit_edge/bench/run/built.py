"""What a bundle takes before it answers: to download, and to build an engine on the device."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_edge import backends
from vit_edge.backends import Option, auto
from vit_edge.bench.run.plan import Configuration
from vit_edge.bundle import Bundle, engines
from vit_edge.bundle.bundle import MANIFEST_NAME
from vit_edge.errors import UsageError, VitEdgeError
from vit_edge.machine import child

_LOG = logging.getLogger(__name__)

Built = dict[str, Any]


def unbuilt(bundle: Bundle) -> Built:
    """What is known of a bundle without an engine; the fields of an entry's `built`."""
    manifest_bytes = (bundle.path / MANIFEST_NAME).stat().st_size
    files_bytes = sum(record.size for record in bundle.manifest.files.values())
    return {
        "download_bytes": manifest_bytes + files_bytes,
        "engine_bytes": None,
        "build_s": None,
        "build_memory_bytes": None,
    }


def engine_bytes(bundle: Bundle, name: str) -> int | None:
    """The size of an engine, as a backend's `facts` name it; None where none was used."""
    for folder in engines.folders(bundle, None):
        engine = folder / name
        if Path(name).name == name and engine.is_dir():
            return sum(file.stat().st_size for file in engine.iterdir())
    return None


def builds(configurations: Sequence[Configuration]) -> dict[str, Built]:
    """Build every engine that these configurations load, each once, in a child that is measured.

    Args:
        configurations: What is to be measured.

    Returns:
        By name of the configuration: build_s and build_memory_bytes (anonymous, peak), and failed:
        why it could not be built, None if it was, or if its backend builds nothing.
    """
    done: dict[str, Built] = {}
    found = {}
    for configuration in configurations:
        try:
            bundle = Bundle.read(configuration.bundle)
            backend, options = _own(bundle, configuration)
        except VitEdgeError as error:
            found[configuration.name] = _result(str(error).partition("\n")[0])
            continue
        what = f"{bundle.path.resolve()} {backend} {sorted(options.items())}"
        if what not in done:
            _LOG.info("building %s for %s", bundle.path, backend)
            done[what] = _built(bundle, backend, options)
        found[configuration.name] = done[what]
    return found


def build_options(backend: str, options: Mapping[str, Option]) -> dict[str, Option]:
    """Those options of a backend's `load` that its `build` takes too."""
    known = backends.module(backend).BUILD_OPTIONS
    return {name: value for name, value in options.items() if name in known}


def build_engine(path: str, backend: str, options: Mapping[str, Option]) -> float:
    """Build in this process; return the seconds that took, imports included."""
    started = time.perf_counter()
    backends.build(Bundle.read(path), backend, None, options)
    return time.perf_counter() - started


def _built(bundle: Bundle, backend: str, options: Mapping[str, Option]) -> Built:
    try:
        call = child.measured_call(
            "vit_edge.bench.run.built:build_engine", str(bundle.path), backend, options
        )
    except UsageError as error:  # such as PyTorch's: there is nothing to build
        _LOG.warning("%s", error)
        return _result(None)
    except VitEdgeError as error:
        return _result(f"not built: {str(error).partition(chr(10))[0]}")
    peak = {
        "anonymous": call.child.peak_anonymous_bytes,
        "peak": call.child.peak_rss_bytes,
    }
    return _result(None) | {"build_s": call.value, "build_memory_bytes": peak}


def _own(bundle: Bundle, configuration: Configuration) -> tuple[str, dict[str, Option]]:
    """The backend, and those of its options that its build takes."""
    choice = auto.Choice(configuration.backend, configuration.options)
    choice = auto.resolve(bundle, choice, configuration.batch)
    return choice.backend, build_options(choice.backend, choice.options)


def _result(failed: str | None) -> Built:
    return {"build_s": None, "build_memory_bytes": None, "failed": failed}
