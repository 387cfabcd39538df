"""Directories that appear whole or not at all, bundles among them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from vit_edge.bundle.manifest import MANIFEST_NAME
from vit_edge.errors import ResourceError, UsageError
from vit_edge.machine.files import lock

_LOG = logging.getLogger(__name__)

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

    A mount point, and a directory in a lower layer of an overlay, can be neither renamed nor
    exchanged: its files are replaced one by one, what seals it (see _SEALS) last. Killed meanwhile,
    nothing that looks whole is there. That is said.

    Args:
        destination: Where the result shall be.
        option: The command line's option for it, to name in errors.
        check: Raises if what is at `destination` may not be replaced; asked first and last.
        needed_bytes: Free space to insist on before anything is written.

    Raises:
        ResourceError: Not enough space, or the parent cannot be written.
    """
    check()
    if _is_mount(destination):
        parent, prefix = destination.absolute(), _INSIDE
    else:
        parent, prefix = destination.absolute().parent, f".{destination.name}.partial-"
    remedy = f"make that possible, or choose another {option}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent, prefix)
        free = shutil.disk_usage(parent).free
        if free < needed_bytes:
            raise ResourceError(
                f"{parent}: {free / 1e6:.0f} MB free, about {needed_bytes / 1e6:.0f} MB needed; "
                f"make room or choose another {option}"
            )
        stage, handle = _make_stage(parent, prefix)
    except OSError as error:
        raise ResourceError(f"{parent}: cannot be written: {error.strerror}; {remedy}") from error
    try:
        yield stage
        _sync(stage)
        _publish(stage, destination.absolute(), check, option)
    except OSError as error:
        if error.errno in _REFUSALS:
            what = f"{destination}: cannot be written: {error.strerror}"
            raise ResourceError(f"{what}; {remedy}") from error
        raise
    finally:
        os.close(handle)
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


def _is_bundle(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).is_file()


def check_destination(
    destination: Path,
    *,
    force: bool,
    what: str = "bundle",
    ours: Callable[[Path], bool] = _is_bundle,
    otherwise: str | None = None,
) -> None:
    """Refuse to replace what is no bundle, and what is one without force.

    Args:
        destination: Where something shall be.
        force: Replace what is there, if it is one.
        what: What shall be there, if it is no bundle.
        ours: Tells one from what is not to be replaced.
        otherwise: How that is called, if not "is no ...".

    Raises:
        UsageError: `destination` exists and may not be replaced.
    """
    if destination.name in ("", ".."):
        raise UsageError(f"{destination}: give the {what}'s directory a name, such as ./mine")
    if not os.path.lexists(destination):
        return
    here = Path.cwd()
    if destination.resolve() in (here, *here.parents):
        raise UsageError(f"{destination}: the working directory lies in it; choose another --out")
    if destination.is_symlink() or not destination.is_dir():
        raise UsageError(f"{destination}: exists and is no directory; choose another --out")
    if _content(destination):
        if not ours(destination):
            is_not = otherwise or f"is no {what}"
            raise UsageError(f"{destination}: exists and {is_not}; choose another --out")
        if not force:
            raise UsageError(f"{destination}: exists; --force replaces it")


def _make_stage(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new directory, and the lock on it that tells a sweeper somebody is at work there."""
    while True:
        stage = parent / f"{prefix}{os.urandom(4).hex()}"
        stage.mkdir()  # unlike mkdtemp, with the mode that the user's umask leaves
        try:
            handle = os.open(stage, _DIRECTORY)
        except FileNotFoundError:  # swept between the two calls
            continue
        with contextlib.suppress(BlockingIOError):  # of a sweeper
            lock(handle)
            if stage.exists():  # else swept before it was locked
                return stage, handle
        os.close(handle)


def _sweep(parent: Path, prefix: str) -> None:
    """Remove stages whose process is gone: a live one holds the lock on its directory."""
    for stage in [path for path in parent.iterdir() if path.name.startswith(prefix)]:
        with contextlib.suppress(OSError):
            handle = os.open(stage, _DIRECTORY)
            try:
                if lock(handle):
                    shutil.rmtree(stage, ignore_errors=True)
            finally:
                os.close(handle)


def _sync(folder: Path) -> None:
    """Push every file and the directory to the disk, so that a rename never precedes its data."""
    for path in (*folder.rglob("*"), folder):
        _sync_path(path)


_REFUSALS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EXDEV, errno.EBUSY,
)  # fmt: skip
_RENAME_NOREPLACE = 1  # linux/fs.h
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def _publish(stage: Path, destination: Path, check: Callable[[], object], option: str) -> None:
    """Move `stage` to `destination` in one step; what was there ends up in `stage`."""
    if stage.parent == destination:
        check()
        return _replace_content(stage, destination)
    while True:
        try:
            _rename_new(stage, destination)
            break
        except FileExistsError:
            check()
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile: try the plain rename
            try:
                _exchange(stage, destination, option)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EBUSY):
                    raise
                return _replace_content(stage, destination)
            break
    return _sync_path(destination.parent)


_SEALS = (MANIFEST_NAME, "engine.json")  # without one a directory is no bundle, and no engine
_INSIDE = ".vit_edge.partial-"  # a stage in the directory that it will fill
_SYSTEMS_OWN = "lost+found"


def _content(folder: Path) -> list[Path]:
    """What is in a directory, less what its file system or a stage of ours keeps there."""
    return [
        entry
        for entry in folder.iterdir()
        if entry.name != _SYSTEMS_OWN and not entry.name.startswith(_INSIDE)
    ]


def _replace_content(stage: Path, destination: Path) -> None:
    """Replace the files of a directory that cannot be renamed, its seal first and last."""
    _LOG.warning(
        "%s can be neither renamed nor exchanged (a mount point, or a layer of a container's "
        "image): its files are replaced one by one",
        destination,
    )
    for entry in sorted(_content(destination), key=lambda entry: entry.name not in _SEALS):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
            _sync_path(destination)
    for entry in sorted(stage.iterdir(), key=lambda entry: entry.name in _SEALS):
        entry.rename(destination / entry.name)
        _sync_path(destination)


def _is_mount(path: Path) -> bool:
    """Tell whether something is mounted on a directory, a bind mount of its own disk included."""
    if not path.is_dir() or path.is_symlink():
        return False
    if path.is_mount():
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return False
    # proc(5): the fifth field, with octal escapes for blanks
    points = (line.split()[4].decode("unicode_escape").encode("latin-1") for line in lines)
    return os.fsencode(path.resolve()) in points


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
