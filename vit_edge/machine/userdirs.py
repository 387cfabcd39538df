"""The folders of a user's state and caches (XDG Base Directory Specification 0.8)."""

from __future__ import annotations

import os
from pathlib import Path


def state_dir() -> Path | None:
    """$XDG_STATE_HOME/vit_edge, by default ~/.local/state/vit_edge; None without a home."""
    return _below("XDG_STATE_HOME", ".local/state")


def cache_dir() -> Path | None:
    """$XDG_CACHE_HOME/vit_edge, by default ~/.cache/vit_edge; None without a home."""
    return _below("XDG_CACHE_HOME", ".cache")


def _below(variable: str, default: str) -> Path | None:
    base = os.environ.get(variable)
    if base and Path(base).is_absolute():  # the specification: others are to be ignored
        return Path(base) / "vit_edge"
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and a user without an entry in the password database
        return None
    return home / default / "vit_edge" if home.is_absolute() else None
