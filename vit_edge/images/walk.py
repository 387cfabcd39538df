"""The images below a folder, without what systems leave there, and with a count of the rest."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from vit_edge.errors import UsageError

_logger = logging.getLogger("vit_edge")

SUFFIXES = {
    ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".pjpeg",
    ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip

# Folders that a system makes among a user's files, and whose images are copies or thumbnails: of
# macOS in an archive, Synology, QNAP, Windows, Linux. Whatever begins with a dot is another:
# .ipynb_checkpoints, .AppleDouble, .Trash-1000, .thumbnails.
_SYSTEM_FOLDERS = {
    "__macosx", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin",
    "system volume information", "lost+found", "__pycache__",
}  # fmt: skip
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}


@dataclass
class Skipped:
    """Everything that a walk left out, by kind."""

    folders: Counter[str] = field(default_factory=Counter)  # name -> images in them
    files: Counter[str] = field(default_factory=Counter)  # of the system -> how many
    suffixes: Counter[str] = field(default_factory=Counter)  # of files not named like an image
    refused: Counter[str] = field(default_factory=Counter)  # folders that cannot be read, and why

    def refuse(self, error: OSError) -> None:
        """Count a folder that cannot be read."""
        self.refused[f"{error.filename}: {error.strerror}"] += 1

    def say(self, folder: Path) -> None:
        """Log what was left out, in one line; nothing if nothing was."""
        parts = []
        if self.folders:
            count = self.folders.total()
            parts.append(f"{count} images in folders of the system ({_counted(self.folders)})")
        if self.files:
            parts.append(f"{self.files.total()} files of the system ({_counted(self.files)})")
        if self.suffixes:
            count = self.suffixes.total()
            parts.append(f"{count} files not named like images ({_counted(self.suffixes)})")
        if parts:
            _logger.info("%s: skipped %s", folder, "; ".join(parts))
        if self.refused:
            count = len(self.refused)
            _logger.warning("%d folders cannot be read: %s", count, _counted(self.refused))


def walk_images(folder: Path, skipped: Skipped | None = None) -> Iterator[Path]:
    """Whatever below `folder` is named like an image, in the same order every time.

    Kept in memory are the names of one folder; links to folders are not followed.

    Args:
        folder: Where to look.
        skipped: Counts what is left out.

    Raises:
        UsageError: No such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such directory of images")
    skipped = Skipped() if skipped is None else skipped
    for path, folders, files in os.walk(folder, onerror=skipped.refuse):
        for name in [name for name in folders if is_system_folder(name)]:
            folders.remove(name)
            _count_images(Path(path, name), name, skipped)
        folders.sort()
        for name in sorted(files):
            if name.startswith(".") or name.casefold() in _SYSTEM_FILES:
                skipped.files["._*" if name.startswith("._") else name] += 1
            elif named_like_an_image(name):
                yield Path(path, name)
            else:
                skipped.suffixes[Path(name).suffix.lower() or "without a suffix"] += 1


def named_like_an_image(name: str) -> bool:
    """Tell by the suffix, in any case."""
    return PurePath(name).suffix.lower() in SUFFIXES


def is_system_folder(name: str) -> bool:
    """Tell by the name whether a system made a folder, and not its user."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS


def _count_images(folder: Path, name: str, skipped: Skipped) -> None:
    skipped.folders[name] += sum(
        named_like_an_image(file) for _, _, files in os.walk(folder) for file in files
    )


def _counted(kinds: Counter[str]) -> str:
    """The most frequent kinds, with their numbers."""
    most = [f"{kind!r} {count}" if "\r" in kind else f"{kind} {count}" for kind, count in
            kinds.most_common(5)]  # fmt: skip
    return ", ".join([*most, *(["..."] if len(kinds) > len(most) else [])])
