"""Cleaning of foreign text, for a terminal and for a file of one name a line; files of no use."""

from __future__ import annotations

import re
from pathlib import Path

from vit_edge.bundle.lfs import is_pointer
from vit_edge.errors import LFS_POINTER, CheckpointError

_ANSI = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\-_])")
# Whitespace, C0 and C1 controls, line separators, direction overrides, lone surrogates.
_UNFIT = re.compile("[\\s\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")


def one_line(text: str) -> str:
    """Drop terminal escapes; every run of white space and control characters is one space."""
    return _UNFIT.sub(" ", _ANSI.sub("", text)).strip()


def reason(error: BaseException) -> str:
    """Return the message of a library's exception, in one short line."""
    text = one_line(str(error))
    return text[:300] if text else type(error).__name__


def refuse_pointer(path: Path) -> None:
    """Refuse a file whose content Git LFS keeps elsewhere.

    Raises:
        CheckpointError: It is a pointer.
    """
    if is_pointer(path):
        raise CheckpointError(f"{path}: {LFS_POINTER}, not the file itself")
