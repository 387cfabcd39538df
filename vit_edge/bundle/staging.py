"""Directories that appear whole or not at all, bundles among them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from vit_edge.bundle.bundle import MANIFEST_NAME
from vit_edge.errors import ResourceError, UsageError

# Whatever else bears a stage's name, such as a FIFO or a link, is neither opened nor followed.
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK


@contextlib.contextmanager
def staged(
    destination: Path,
    *,
    option: str,
    check: Callable[[], object] = lambda: None,
    needed_bytes: int = 0,
) -> Iterator[Path]:
    """Give a temporary directory that becomes `destination` when the block ends well.

    The directory appears at once and whole: by a rename where nothing was, by an atomic exchange
    where something was. Until then, and after any error or kill -9, `destination` is what it was.
    Directories that killed processes left behind are swept.

    Args:
        destination: Where the result shall be.
        option: The command line's option for it, to name in errors.
        check: Raises if what is at `destination` may not be replaced; asked first and last.
        needed_bytes: Free space to insist on before anything is written.

    Raises:
        ResourceError: Not enough space, or the parent cannot be written.
    """
    check()
    parent = destination.absolute().parent
    prefix = f".{destination.name}.partial-"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent, prefix)
        free = shutil.disk_usage(parent).free
        if free < needed_bytes:
            raise ResourceError(
                f"{parent}: {free / 1e6:.0f} MB free, about {needed_bytes / 1e6:.0f} MB needed; "
                f"make room or choose another {option}"
            )
        stage, lock = _make_stage(parent, prefix)
    except OSError as error:
        raise ResourceError(f"{parent}: cannot be written: {error.strerror}") from error
    try:
        yield stage
        _sync(stage)
        _publish(stage, destination.absolute(), check, option)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise ResourceError(f"{destination}: cannot be written: {error.strerror}") from error
        raise
    finally:
        os.close(lock)
        shutil.rmtree(stage, ignore_errors=True)


def staged_bundle(
    destination: Path, *, force: bool, needed_bytes: int = 0
) -> contextlib.AbstractContextManager[Path]:
    """Give a temporary directory that becomes the bundle when the block ends well.

    Args:
        destination: Where the bundle shall be.
        force: Replace an existing bundle, in one step; without it that is an error.
        needed_bytes: Free space to insist on before anything is written.

    Raises:
        UsageError: `destination` exists (without force), or is something else than a bundle.
        ResourceError: Not enough space, or the parent cannot be written.
    """
    check = functools.partial(check_destination, destination, force=force)
    return staged(destination, option="--out", check=check, needed_bytes=needed_bytes)


def check_destination(destination: Path, *, force: bool) -> None:
    """Refuse to replace what is no bundle, and what is one without force.

    Raises:
        UsageError: `destination` exists and may not be replaced.
    """
    if destination.name in ("", ".."):
        raise UsageError(f"{destination}: give the bundle's directory a name, such as bundles/mine")
    if not os.path.lexists(destination):
        return
    here = Path.cwd()
    if destination.resolve() in (here, *here.parents):
        raise UsageError(f"{destination}: the working directory lies in it; choose another --out")
    if destination.is_symlink() or not destination.is_dir():
        raise UsageError(f"{destination}: exists and is no directory; choose another --out")
    if any(destination.iterdir()):
        if not (destination / MANIFEST_NAME).is_file():
            raise UsageError(f"{destination}: exists and is no bundle; choose another --out")
        if not force:
            raise UsageError(f"{destination}: exists; --force replaces it")


def _make_stage(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new directory, and the lock on it that tells a sweeper somebody is at work there."""
    while True:
        stage = parent / f"{prefix}{secrets.token_hex(4)}"
        stage.mkdir()  # unlike mkdtemp, with the mode that the user's umask leaves
        try:
            lock = os.open(stage, _DIRECTORY)
        except FileNotFoundError:  # swept between the two calls
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stage.exists():  # else swept before it was locked
            return stage, lock
        os.close(lock)


def _sweep(parent: Path, prefix: str) -> None:
    """Remove stages whose process is gone: a live one holds the lock on its directory."""
    for stage in parent.glob(glob.escape(prefix) + "*"):
        with contextlib.suppress(OSError):
            handle = os.open(stage, _DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stage, ignore_errors=True)
            finally:
                os.close(handle)


def _sync(folder: Path) -> None:
    """Push every file and the directory to the disk, so that a rename never precedes its data."""
    for path in (*folder.rglob("*"), folder):
        _sync_path(path)


_RENAME_NOREPLACE = 1  # linux/fs.h
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def _publish(stage: Path, destination: Path, check: Callable[[], object], option: str) -> None:
    """Move `stage` to `destination` in one step; what was there ends up in `stage`."""
    while True:
        try:
            _rename_new(stage, destination)
            break
        except FileExistsError:
            check()
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile: try the plain rename
            _exchange(stage, destination, option)
            break
    _sync_path(destination.parent)


def _sync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename_new(source: Path, target: Path) -> None:
    """Rename a directory, failing with FileExistsError where `target` holds something."""
    try:
        _renameat2(source, target, _RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        try:  # a file system without flags: rename(2) itself refuses a directory with content
            source.rename(target)
        except OSError as refusal:
            raise FileExistsError(str(target)) from refusal


def _exchange(left: Path, right: Path, option: str) -> None:
    """Swap two directories in one step."""
    try:
        _renameat2(left, right, _RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        raise ResourceError(
            f"{right}: this file system cannot exchange two directories in one step; "
            f"remove the old one first, or choose another {option}"
        ) from error


def _renameat2(source: Path, target: Path, flag: int) -> None:
    """renameat2(2), which Python does not expose."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(target))
    result = libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag)
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))
