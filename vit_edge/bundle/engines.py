"""Engines: what a runtime made of a bundle on this device, found by its key, trusted by its hash.

An engine is a directory, `<backend>-<key>`, in the bundle's engines/, in the user's cache where the
bundle is read-only, or wherever the user says. It is a cache of model.onnx, and native code or
close to it: only what our own build made here, and recorded (see trust.py), is ever opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from vit_edge.bundle import Bundle, trust
from vit_edge.bundle.bundle import ENGINES_NAME
from vit_edge.errors import IntegrityError, ResourceError, UsageError
from vit_edge.machine import cgroups, cpus
from vit_edge.machine.userdirs import cache_dir

_LOG = logging.getLogger(__name__)

RECORD_NAME = "engine.json"


Use = Literal["auto", "never", "required"]  # if it is there, not at all, or insist on it


class Found(NamedTuple):
    """An engine, or why there is none."""

    path: Path | None
    reason: str  # empty if there is one


class Stage(NamedTuple):
    """An engine while it is made."""

    path: Path  # the directory to write into
    target: Path  # where it will be


def check_use(use: str) -> None:
    """Refuse what is no Use.

    Raises:
        UsageError: The value, and what is allowed.
    """
    if use not in get_args(Use):
        raise UsageError(f"engine must be one of {', '.join(get_args(Use))}, not {use!r}")


def machine_parts(bundle: Bundle) -> dict[str, str]:
    """Return what every engine for a CPU depends on: the model, the CPU and its features."""
    return {
        "model": bundle.model_sha256,
        "cpu": cpus.cpu_model(),
        "features": " ".join(cpus.cpu_features()),
    }


def key_of(parts: Mapping[str, str]) -> str:
    """Hash what an engine depends on, as 24 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@contextmanager
def stage_engine(
    bundle: Bundle,
    backend: str,
    parts: Mapping[str, str],
    files: Collection[str],
    engines_dir: Path | None,
    needed_bytes: int,
) -> Iterator[Stage]:
    """Give a directory to build in; it is recorded, and moved into place when the block ends well.

    Args:
        bundle: The bundle.
        backend: Its name is part of the engine's.
        parts: What the engine depends on.
        files: That the block writes; hashed, and nothing else of the directory is opened later.
        engines_dir: Where to put it; None: the bundle's engines/, or the user's cache.
        needed_bytes: Free space to insist on.

    Raises:
        ResourceError: No place to write to, or too little of it.
    """
    from vit_edge.bundle import staging  # who opens an engine makes none

    target = writable_folder(bundle, engines_dir) / f"{backend}-{key_of(parts)}"
    with staging.staged(target, option="--out", needed_bytes=needed_bytes) as path:
        yield Stage(path, target)
        built = trust.fingerprints(path, files)
        hashes = {name: known.sha256 for name, known in built.items()}
        content = {"key": parts, "sha256": hashes}
        (path / RECORD_NAME).write_text(json.dumps(content, indent=2) + "\n")
    trust.record_moved(target, built)


def find(
    bundle: Bundle,
    backend: str,
    parts: Mapping[str, str],
    files: Collection[str],
    engines_dir: Path | None,
    build_it: str | None = None,
) -> Found:
    """Find the engine of these parts that was built here, or say why there is none.

    Args:
        bundle: The bundle.
        backend: As `stage_engine` takes it.
        parts: As `stage_engine` takes it.
        files: That must be those that were built.
        engines_dir: The only place to look in, if given.
        build_it: The command that makes one, unless it is the usual one.
    """
    name = f"{backend}-{key_of(parts)}"
    command = build_it or f"vit-edge build {bundle.path} --backend {backend}"
    remedy = f"build one with: {command}"
    untrusted, others = None, False
    for folder in folders(bundle, engines_dir):
        engine = folder / name
        if engine.is_dir():
            if set(files) <= trust.recorded_hashes(engine).keys():
                return Found(engine, "")
            untrusted = untrusted or engine
        others = others or any(folder.glob(f"{backend}-*"))
    if untrusted is not None:
        reason = f"{untrusted} was not built here, or changed since; {remedy}"
        _LOG.warning("%s", reason)
        return Found(None, reason)
    if others:
        reason = f"the engine found is for another model, runtime or machine; {remedy}"
        _LOG.warning("%s: %s", bundle.path, reason)
        return Found(None, reason)
    return Found(None, f"none was built; {remedy}")


def find_like(
    bundle: Bundle,
    backend: str,
    parts: Mapping[str, str],
    files: Collection[str],
    engines_dir: Path | None,
    *,
    only: str = "*",
) -> Found:
    """Find the newest engine with these parts that was built here, whatever its others are.

    Args:
        bundle: The bundle.
        backend: As `stage_engine` takes it.
        parts: Some of those that `stage_engine` takes.
        files: That must be those that were built.
        engines_dir: The only place to look in, if given.
        only: The name of the engine that is wanted, where it is known.
    """
    remedy = f"build one with: vit-edge build {bundle.path} --backend {backend}"
    others = [
        engine for folder in folders(bundle, engines_dir) for engine in folder.glob(f"{backend}-*")
    ]
    like = [engine for engine in others if parts.items() <= _parts_of(engine).items()]
    ours = [engine for engine in like if set(files) <= trust.recorded_hashes(engine).keys()]
    ours = [engine for engine in ours if only in ("*", engine.name)]
    if ours:
        return Found(max(ours, key=_made_at), "")
    if like:
        reason = f"{like[0]} was not built here, or changed since; {remedy}"
    elif others:
        reason = f"the engine found is for another model, runtime or machine; {remedy}"
    else:
        return Found(None, f"none was built; {remedy}")
    _LOG.warning("%s: %s", bundle.path, reason)
    return Found(None, reason)


def _parts_of(engine: Path) -> dict[str, str]:
    """Read what an engine says it depends on; nothing where its name says otherwise."""
    try:
        parts = dict(json.loads((engine / RECORD_NAME).read_text())["key"])
        named = engine.name.rpartition("-")[2] == key_of(parts)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {str(name): str(value) for name, value in parts.items()} if named else {}


def _made_at(engine: Path) -> int:
    try:
        return (engine / RECORD_NAME).stat().st_mtime_ns
    except OSError:  # it was replaced meanwhile
        return 0


def folders(bundle: Bundle, engines_dir: Path | None) -> list[Path]:
    """List the folders for engines of a bundle, the preferred one first."""
    if engines_dir is not None:
        return [engines_dir]
    cache = cache_dir()
    in_cache = [] if cache is None else [cache / ENGINES_NAME / bundle.model_sha256[:24]]
    return [bundle.path / ENGINES_NAME, *in_cache]


def verify_recorded(bundle: Bundle) -> None:
    """Hash every engine that was built here, in the folders of the bundle.

    Raises:
        IntegrityError: A file is not what was built, although its size and times are.
    """
    for folder in folders(bundle, None):
        for engine in sorted(folder.glob("*-*")):
            known = trust.recorded_hashes(engine)
            now = trust.fingerprints(engine, known)
            changed = [name for name, sha256 in known.items() if now[name].sha256 != sha256]
            if changed:
                raise IntegrityError(
                    f"{engine}: changed since it was built: {', '.join(changed)}. Remove it, find "
                    "out who wrote it, and build it again."
                )


def evict(bundle: Bundle, engines_dir: Path | None) -> None:
    """Drop a bundle and its engines, wherever they lie, from the page cache; see cgroups.evict."""
    for folder in (bundle.path, *folders(bundle, engines_dir)):
        cgroups.evict(folder)


def writable_folder(bundle: Bundle, engines_dir: Path | None) -> Path:
    """Return the first of them that can be written to, and make it if need be.

    Raises:
        ResourceError: None can.
    """
    import tempfile

    reasons = []
    for folder in folders(bundle, engines_dir):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
    raise ResourceError("no place for the engine; name one with --out:\n  " + "\n  ".join(reasons))
