"""Where a user's state and caches go, and users that have no such place."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_edge.machine.userdirs import cache_dir, state_dir

FOLDERS = (("XDG_STATE_HOME", state_dir), ("XDG_CACHE_HOME", cache_dir))


@pytest.mark.parametrize(("variable", "folder"), FOLDERS)
def test_the_specification_is_followed(
    variable: str, folder: type[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(variable, str(tmp_path / "xdg"))
    assert folder() == tmp_path / "xdg" / "vit_edge"
    for useless in ("", "relative/path"):
        monkeypatch.setenv(variable, useless)
        found = folder()
        assert found is not None
        assert found.is_relative_to(tmp_path / "home")


@pytest.mark.parametrize(("variable", "folder"), FOLDERS)
@pytest.mark.parametrize("home", ["relative", None])
def test_there_is_none_without_a_home(
    variable: str, folder: type[Path], home: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(variable, raising=False)
    if home is None:
        monkeypatch.setattr(Path, "home", _no_home)
    else:
        monkeypatch.setenv("HOME", home)
    assert folder() is None


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")
