"""The contract every runtime fulfils. One module of this folder is one backend.

`BackendModule` lists what a module exports, beside `BuildOptions`, a frozen dataclass: the options
of its key, find and build. The module's file name is its name on the command line, in manifests and
in reports. The contract is held by tests/contracts/test_backends.py, which runs over every module
found here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from vit_edge import plugins
from vit_edge.bundle import Bundle
from vit_edge.bundle.engines import Found
from vit_edge.bundle.manifest import Manifest
from vit_edge.errors import BackendError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


Option = str | int | float | bool | None  # of a backend's `load`, as JSON has them

AUTO = "auto"  # follows what was found best here; see auto.py
CROSS_BUILD = "compute_capability"  # the option of a build for a device that is not here


class Backend(Protocol):
    """One model on one device. NumPy in, NumPy out, synchronous."""

    facts: Mapping[str, str]  # what really runs: runtime, version, device, provider, threads, ...

    def run(self, pixels: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
        """Answer a batch.

        Args:
            pixels: dtype and layout of the manifest's input tensor, [N, ...], 1 <= N <= max batch.
                It is not written to.

        Returns:
            {"logits": float32[N, classes], ...} for every output of the manifest. Row i depends
            on row i of `pixels` only; the arrays belong to the caller.
        """
        ...

    def close(self) -> None:
        """Give everything back; a second call does nothing."""
        ...


class Availability(NamedTuple):
    """Whether a backend's runtime can be used here."""

    ok: bool
    reason: str  # the version found, or why not and what to install


class BackendModule(Protocol):
    """What a module of this folder exports; all but `available` take options of its own, too.

    `check_build_options(options, max_batch)` may be absent: UsageError for what types cannot show.
    """

    available: Callable[[], Availability]
    key: Callable[[Bundle], str]  # what an engine of it depends on: model, runtime, machine
    BUILD_OPTIONS: frozenset[str]  # names of the build options that are the backend's own
    build: Callable[[Bundle, Path | None], Path]  # compiles on this device
    find: Callable[[Bundle, Path | None], Found]  # what `build` made with the same options, if any
    # options of `load` that are worth trying, for `build --tune`
    configurations: Callable[[Bundle], Sequence[Mapping[str, Option]]]
    load: Callable[[Bundle], Backend]  # opens the bundle


def name_of(backend: str, options: Mapping[str, Option]) -> str:
    """A backend and its options, as one would type them."""
    return " ".join((backend, *(f"{key}={value}" for key, value in options.items())))


def names() -> list[str]:
    """All backends, whether their runtimes are installed or not; auto is one of them."""
    return plugins.names(__name__)


def runtimes() -> list[str]:
    """The backends that run a graph themselves, installed or not: all but auto."""
    return [name for name in names() if name != AUTO]


def version(name: str) -> str | None:
    """The runtime of a backend and its version; None where it cannot be used."""
    if name not in runtimes():
        return None
    availability: Availability = plugins.load(__name__, name).available()
    return availability.reason if availability.ok else None


def installed() -> dict[str, str]:
    """The backends that can be used here, and the versions of their runtimes."""
    return {name: text for name in runtimes() if (text := version(name)) is not None}


def module(name: str) -> BackendModule:
    """Import one backend's module by name.

    Raises:
        UsageError: No such backend.
        BackendError: Its runtime is not installed; the message says what to install.
    """
    backend = cast(BackendModule, plugins.load(__name__, name))
    availability = backend.available()
    if not availability.ok:
        raise BackendError(f"backend {name} cannot be used here: {availability.reason}")
    return backend


def load(
    bundle: Bundle, name: str, options: Mapping[str, Any], threads: int | None = None
) -> Backend:
    """Open a bundle in a runtime.

    Args:
        bundle: The bundle.
        name: A backend's.
        options: Of the backend's `load`.
        threads: What it computes with; a runtime without threads of its own, as on a GPU, is not
            asked. None: as the options or its defaults say.

    Raises:
        VitEdgeError: As the backend's own `load`.
    """
    load_it: Any = module(name).load  # each has options of its own
    if threads is not None and "threads" in inspect.signature(load_it).parameters:
        options = {**options, "threads": threads}
    opened: Backend = load_it(bundle, **options)
    return opened


def build(
    bundle: Bundle, name: str, engines_dir: Path | None, options: Mapping[str, Option]
) -> Path:
    """Compile a bundle for this device, as its recipe says where the options do not.

    Args:
        bundle: The bundle.
        name: A backend's.
        engines_dir: Where to put the engine; None: in the bundle, or the user's cache.
        options: Of the backend's `build`; `compute_capability` needs no such device here.

    Raises:
        UsageError: No such backend, or no such option.
        VitEdgeError: As the backend's own `build`.
    """
    given = {**recipe_options(bundle, name), **options}
    cross = given.get(CROSS_BUILD) is not None
    found: Any = plugins.load(__name__, name) if cross else module(name)
    unknown = sorted(given.keys() - found.BUILD_OPTIONS)
    if unknown:
        known = ", ".join(sorted(found.BUILD_OPTIONS)) or "none"
        raise UsageError(f"backend {name} has no build option {unknown[0]!r}; there are: {known}")
    engine: Path = found.build(bundle, engines_dir, **given)
    return engine


def recipe_options(bundle: Bundle, name: str) -> Mapping[str, Option]:
    """What the recipe that made a bundle says of building it: its table [build.NAME]."""
    table = bundle.manifest.recipe.get("build", {})
    found = table.get(name, {}) if isinstance(table, dict) else {}
    return found if isinstance(found, dict) else {}


def check_pixels(pixels: NDArray[np.generic], manifest: Manifest) -> None:
    """Refuse a batch that the model's input tensor does not take.

    Raises:
        UsageError: Wrong dtype, rank, shape or batch size.
    """
    tensor = manifest.input
    fits = (
        pixels.dtype == tensor.dtype
        and pixels.ndim == len(tensor.shape)
        and pixels.shape[1:] == tensor.shape[1:]
        and 1 <= len(pixels) <= manifest.max_batch
    )
    if not fits:
        raise UsageError(
            f"{tensor.name} must be {tensor.dtype}{['N', *tensor.shape[1:]]} with N from 1 to "
            f"{manifest.max_batch}, not {pixels.dtype}{list(pixels.shape)}"
        )
