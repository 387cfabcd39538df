"""The images that a command line names: files, folders, patterns, and a list on stdin."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from vit_edge.errors import InputError, UsageError
from vit_edge.images.files import is_url
from vit_edge.images.walk import (
    SUFFIXES,
    Skipped,
    is_system_folder,
    named_like_an_image,
    walk_images,
)

STDIN = "-"
_PATTERN = re.compile(r"[*?\[]")
_CHUNK_BYTES = 1 << 16
_LONGEST_BYTES = 1 << 20  # of a path in a list; Linux opens none of more than 4,096


def check_inputs(words: Sequence[str]) -> int | None:
    """Count what inputs name, and say what is left out of folders; None where stdin names more.

    Raises:
        UsageError: A URL, stdin twice, or inputs that name no image; all of those.
    """
    problems, total = [_url_problem(word) for word in words if is_url(word)], 0
    if words.count(STDIN) > 1:
        problems.append("- is given twice, and stdin can be read once")
    for word in words:
        if word == STDIN or is_url(word):
            continue
        skipped = Skipped()
        count = sum(1 for _ in images_of(word, skipped))
        skipped.say(Path(word))
        total += count
        if not count:
            what = ", ".join(sorted(SUFFIXES))
            where = "no images in it" if os.path.isdir(word) else "nothing is called so"  # noqa: PTH112
            problems.append(f"{word}: {where} ({what})")
    if problems:
        raise UsageError("\n  ".join(problems))
    return None if STDIN in words else total


def _url_problem(url: str) -> str:
    if url.lower().startswith("file://"):
        return f"{url}: URLs are not read; write the path alone"
    return f"{url}: URLs are not fetched; download it, and name the file"


def images_of(word: str, skipped: Skipped) -> Iterator[str]:
    """The images that one input names, in the same order every time.

    A folder stands for what is named like an image in it and below. A pattern stands for the files
    that it matches, and ** in it for any folders; where its last part is * or ** alone, for those
    that are named like images. Neither follows links to folders below.

    Args:
        word: A file, a folder or a pattern. What there is of that name comes before a pattern.
        skipped: Counts what is left out.
    """
    word = word if os.path.lexists(word) else os.path.expanduser(word)  # noqa: PTH111
    if os.path.isdir(word):  # noqa: PTH112
        yield from map(str, walk_images(Path(word), skipped))
    elif os.path.lexists(word) or not _PATTERN.search(word):
        yield word
    else:
        yield from _of_pattern(word, skipped)


def listed_images(stream: BinaryIO, *, null: bool) -> Iterator[str]:
    """The images of a list, one a line, or with a NUL behind each; folders stand for theirs.

    Raises:
        InputError: It is no such list.
    """
    for path in read_list(stream, b"\0" if null else b"\n"):
        inside = False
        if os.path.isdir(path):  # noqa: PTH112
            for image in walk_images(Path(path)):
                inside = True
                yield str(image)
        if not inside:  # an empty folder is refused where it is read, as what it is
            yield path


def read_list(stream: BinaryIO, end: bytes) -> Iterator[str]:
    """Read paths as the system has them, whatever their encoding.

    Args:
        stream: Where the list comes from; read as the paths are consumed.
        end: What stands behind each path. The line ends of Windows are understood.

    Raises:
        InputError: A path of more than a megabyte.
    """
    rest = b""
    read = getattr(stream, "read1", stream.read)  # read1 gives what a pipe has, and does not wait
    while chunk := read(_CHUNK_BYTES):
        *paths, rest = (rest + chunk).split(end)
        yield from _decoded(paths, end)
        if len(rest) > _LONGEST_BYTES:
            raise InputError(
                "the list on stdin has a path of more than a megabyte; expected one a line, or "
                "with --null a NUL behind each"
            )
    yield from _decoded([rest], end)


def _decoded(paths: Sequence[bytes], end: bytes) -> Iterator[str]:
    for path in paths:
        name = path.removesuffix(b"\r") if end == b"\n" else path
        if name:
            yield os.fsdecode(name)


def _of_pattern(pattern: str, skipped: Skipped) -> Iterator[str]:
    parts: list[str] = []
    for part in pattern.split("/"):
        if part not in ("", ".") and (part, parts[-1:]) != ("**", ["**"]):
            parts.append(part)
    anywhere, by_suffix = "**" in parts, parts[-1] in ("*", "**")
    seen: set[str] | None = set() if parts.count("**") > 1 else None  # else nothing comes twice
    for path in _matches("/" if pattern.startswith("/") else "", parts, skipped):
        if path in (seen or ()):
            continue
        if seen is not None:
            seen.add(path)
        if os.path.isdir(path):  # noqa: PTH112
            if not anywhere:
                yield from map(str, walk_images(Path(path), skipped))
        elif by_suffix and not named_like_an_image(path):
            skipped.suffixes[Path(path).suffix.lower() or "without a suffix"] += 1
        else:
            yield path


def _matches(folder: str, parts: Sequence[str], skipped: Skipped) -> Iterator[str]:
    """What lies below a folder on the way that the parts of a pattern describe."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _matches(folder, rest or ["*"], skipped)
        for name in _names(folder, skipped):
            path = os.path.join(folder, name)  # noqa: PTH118
            below = os.path.isdir(path) and not os.path.islink(path)  # noqa: PTH112, PTH114
            if below and not is_system_folder(name):
                yield from _matches(path, parts, skipped)
        return
    if _PATTERN.search(part):
        hidden = part.startswith(".")
        names = [name for name in _names(folder, skipped) if fnmatchcase(name, part)]
        names = [name for name in names if hidden or not is_system_folder(name)]
    else:
        names = [part] if os.path.lexists(os.path.join(folder, part)) else []  # noqa: PTH118
    for name in names:
        path = os.path.join(folder, name)  # noqa: PTH118
        if not rest:
            yield path
        elif os.path.isdir(path):  # noqa: PTH112
            yield from _matches(path, rest, skipped)


def _names(folder: str, skipped: Skipped) -> list[str]:
    try:
        return sorted(os.listdir(folder or "."))  # noqa: PTH208
    except OSError as error:
        skipped.refuse(error)
        return []
