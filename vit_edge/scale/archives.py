"""The images of tar files, in the order of the archive, as tables; nothing is lost in silence."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from vit_edge.errors import InputError
from vit_edge.images.files import DEFAULT_LIMITS
from vit_edge.scale.remote import named_in_a_listing, opened

SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz")
HELD_BYTES = 64 << 20  # of encoded images in one table
_BLOCK = 1 << 16


class _Header(tarfile.TarInfo):
    """Remembers how an archive ended: tarfile takes a damaged header for the end of it."""

    ends: dict[int, tarfile.TarError]

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Any:
        """Read the next header."""
        try:
            return super().fromtarfile(tarfile)
        except _TarHeaderError as error:
            tarfile.ended_by = error
            raise


_TarHeaderError: type[Exception] = tarfile.HeaderError
_EndMark: type[Exception] = tarfile.EOFHeaderError  # type: ignore[attr-defined]


def tar_tables(path: str, at_once: int) -> Iterator[pa.Table]:
    """Read the members that are named like images: their path and bytes.

    A link, or what is larger than an image may be, has a row without bytes.

    Args:
        path: Of the archive, or its URL.
        at_once: Rows of a table, at most.

    Raises:
        InputError: It is damaged or cut off. What was read before is given first.
    """
    names: list[str] = []
    images: list[bytes | None] = []
    try:
        with (
            opened(path) as file,
            tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as archive,
        ):
            held = 0
            for member in archive:
                if member.isdir() or not named_in_a_listing(member.name):
                    continue
                fits = member.isreg() and member.size <= DEFAULT_LIMITS.max_file_bytes
                content = archive.extractfile(member) if fits else None
                names.append(f"{path}/{member.name}")
                images.append(None if content is None else content.read())
                held += member.size if fits else 0
                if len(names) == at_once or held > HELD_BYTES:
                    yield _table(names, images)
                    names, images, held = [], [], 0
            _require_whole(archive, path, names)
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path}: cannot be read as a tar file: {error}") from error
    yield _table(names, images)


def _require_whole(archive: tarfile.TarFile, path: str, names: Sequence[str]) -> None:
    """Refuse an archive without the zeros that end it, or with more behind them."""
    ended_by = getattr(archive, "ended_by", None)
    where = f"after {names[-1]}" if names else "after what was read"
    if not isinstance(ended_by, _EndMark):
        raise InputError(
            f"{path}: cannot be read as a tar file: {ended_by or 'no end'}, {where}; it is damaged "
            "or was cut off"
        )
    stream: Any = archive.fileobj
    while block := stream.read(_BLOCK):
        if block.strip(b"\0"):
            raise InputError(
                f"{path}: cannot be read as a tar file: more follows its end, {where}; it is "
                "damaged, or several were joined: give them one by one"
            )


def _table(names: Sequence[str], images: Sequence[bytes | None]) -> pa.Table:
    return pa.table({"path": text_of(names), "bytes": pa.array(images, pa.binary())})


def text_of(paths: Sequence[str]) -> pa.Array:
    """Names as text; bytes that are no UTF-8 stay visible."""
    return pa.array([printable(path) for path in paths], pa.string())


def printable(path: str) -> str:
    """A name that a table can hold."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return path.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return path
