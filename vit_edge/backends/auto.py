"""What `vit-edge build BUNDLE --tune` found out, and the backend that follows it.

The record is an engine like any other: `tuned-<key>`, keyed by the model and this machine. It also
says which versions the chosen runtimes had, and is out of date when they changed. Without a record
the choice is ort.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_edge import backends
from vit_edge.backends import AUTO, Availability, Backend, Option, name_of
from vit_edge.backends._options import BuildOptions, build_names
from vit_edge.bundle import Bundle, engines
from vit_edge.bundle.engines import Found
from vit_edge.errors import EngineError, UsageError
from vit_edge.machine import cpus

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LOG = logging.getLogger(__name__)

NAME = "tuned"
RECORD_NAME = "tuned.json"
DEFAULT = "ort"  # runs everywhere, starts fastest, and needs least memory
SCHEMA_VERSION = 1
BUILD_OPTIONS = build_names(BuildOptions)


@dataclass(frozen=True)
class Choice:
    """One way to run a bundle."""

    backend: str
    options: Mapping[str, Option]

    @property
    def name(self) -> str:
        """The backend and its options, as one would type them."""
        return name_of(self.backend, self.options)


def available() -> Availability:
    """Always: what it chooses is asked when a bundle is opened."""
    return Availability(True, "follows what `build --tune` found")


def key(bundle: Bundle) -> str:
    """What a choice depends on; which versions the runtimes had stands in its record."""
    return engines.key_of(key_parts(bundle))


def configurations(bundle: Bundle) -> Sequence[Mapping[str, Option]]:
    """Refuse: tuning tries runtimes.

    Raises:
        UsageError: Always.
    """
    raise UsageError(f"auto is no runtime to try; there are: {', '.join(backends.runtimes())}")


def build(bundle: Bundle, engines_dir: Path | None = None) -> Path:
    """Refuse: tuning makes the record that auto follows.

    Raises:
        UsageError: Always.
    """
    raise UsageError(f"auto follows a tuning: {_tune_command(bundle)}")


def key_parts(bundle: Bundle) -> dict[str, str]:
    """What the choice depends on."""
    own = {"schema": str(SCHEMA_VERSION), "cpus": str(cpus.default_threads())}
    return own | engines.machine_parts(bundle)


def find(bundle: Bundle, engines_dir: Path | None = None) -> Found:
    """The record of a tuning of this bundle on this machine, or why there is none."""
    parts, command = key_parts(bundle), _tune_command(bundle)
    return engines.find(bundle, NAME, parts, (RECORD_NAME,), engines_dir, command)


def read(bundle: Bundle, engines_dir: Path | None = None) -> tuple[dict[int, Choice], str]:
    """What was chosen for each batch size on this machine, or why there is nothing.

    Raises:
        EngineError: The record is ours and yet not to be read.
    """
    record = find(bundle, engines_dir)
    if record.path is None:
        return {}, record.reason
    path = record.path / RECORD_NAME
    try:
        content = json.loads(path.read_text())
        choices = {
            int(batch): Choice(str(entry["backend"]), dict(entry["options"]))
            for batch, entry in content["chosen"].items()
        }
        tuned_with = {
            choice.backend: content["runtimes"][choice.backend] for choice in choices.values()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{path} cannot be read: {error!r}; remove {record.path}") from None
    for name, version in tuned_with.items():
        if (now := backends.version(name)) != version:
            reason = (
                f"it was tuned with {version}, and now there is {now or 'none'}; "
                f"{_tune_command(bundle)}"
            )
            _LOG.warning("%s: %s", bundle.path, reason)
            return {}, reason
    return choices, ""


def load(
    bundle: Bundle, *, engines_dir: Path | None = None, threads: int | None = None
) -> TunedBackend:
    """Open a bundle the way that was found to be the fastest here; ort where nothing was tried.

    Args:
        bundle: The bundle.
        engines_dir: Where `build --tune` was told to put its record.
        threads: What a runtime computes with, whatever was found best; None: as it was found.

    Raises:
        VitEdgeError: As the chosen backend's own `load`.
    """
    choices, reason = read(bundle, engines_dir)
    return TunedBackend(bundle, choices or {1: Choice(DEFAULT, {})}, reason, engines_dir, threads)


def resolve(bundle: Bundle, choice: Choice, batch: int) -> Choice:
    """Which runtime answers batches of this size, where a choice may be "auto"."""
    if choice.backend != AUTO:
        return choice
    choices, _ = read(bundle)
    return choices[_size_for(batch, sorted(choices))] if choices else Choice(DEFAULT, {})


def open_choice(
    bundle: Bundle, choice: Choice, engines_dir: Path | None, threads: int | None = None
) -> Backend:
    """Load a backend with the options of a choice, and so many threads where it has any."""
    where = {} if engines_dir is None else {"engines_dir": engines_dir}
    return backends.load(bundle, choice.backend, {**choice.options, **where}, threads)


class TunedBackend:
    """Answers each batch by the backend chosen for its size; opens each when first needed."""

    def __init__(
        self,
        bundle: Bundle,
        choices: Mapping[int, Choice],
        reason: str,
        engines_dir: Path | None,
        threads: int | None = None,
    ) -> None:
        """Use `load`."""
        self._bundle = bundle
        self._choices = dict(sorted(choices.items()))
        self._engines_dir, self._threads = engines_dir, threads
        self._lock = threading.Lock()
        self._opened: dict[str, Backend] = {}
        self._closed = False
        first = self._backend(min(self._choices))
        listed = ", ".join(f"batch {size}: {c.name}" for size, c in self._choices.items())
        chosen = f"{DEFAULT}, untuned ({reason})" if reason else listed
        self.facts: Mapping[str, str] = {**first.facts, "chosen": chosen}

    def run(self, pixels: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
        """See vit_edge.backends.Backend."""
        return self._backend(len(pixels) if pixels.ndim else 0).run(pixels)

    def close(self) -> None:
        """Close what was opened."""
        with self._lock:
            self._closed = True
            for backend in self._opened.values():
                backend.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled backend looks the choice up anew: it may arrive on another machine."""
        return (_reopen, (str(self._bundle.path.resolve()), self._engines_dir, self._threads))

    def _backend(self, batch: int) -> Backend:
        """The backend for a batch size: that of the next size tried, or of the largest."""
        choice = self._choices[_size_for(batch, list(self._choices))]
        with self._lock:
            if self._closed:
                raise UsageError("this backend is closed")
            if choice.name not in self._opened:
                self._opened[choice.name] = open_choice(
                    self._bundle, choice, self._engines_dir, self._threads
                )
            return self._opened[choice.name]


def _tune_command(bundle: Bundle) -> str:
    return f"vit-edge build {bundle.path} --tune"


def _size_for(batch: int, sizes: Sequence[int]) -> int:
    """The next size that was tried, or the largest."""
    return next((size for size in sizes if size >= batch), sizes[-1])


def _reopen(path: str, engines_dir: Path | None, threads: int | None) -> TunedBackend:
    return load(Bundle.read(path), engines_dir=engines_dir, threads=threads)
