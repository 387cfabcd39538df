"""The pictures of the README and the site: small, and of pages that still look so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from tests.support.modules import module_from


@pytest.fixture(scope="module")
def pictures(repository: Path) -> ModuleType:
    return module_from(repository / "scripts" / "pictures.py")


def test_each_picture_is_small_and_shows_what_the_pages_look_like_now(pictures: ModuleType) -> None:
    taken_of = json.loads(pictures.TAKEN_OF.read_text())
    assert taken_of.keys() == pictures.LOOKS.keys()
    for name, looks in taken_of.items():
        path = pictures.PICTURES / f"{name}.webp"
        assert path.stat().st_size <= pictures.LARGEST_BYTES
        with Image.open(path) as image:
            assert image.size == (pictures.WIDTH_PX, pictures.HEIGHTS_PX[name])
        assert looks == pictures.looks(name), (
            f"the page of {name} looks otherwise now; type: python scripts/pictures.py {name}"
        )


def test_another_style_makes_another_hash(
    pictures: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder in pictures.LOOKS["bench"]:
        (tmp_path / folder).mkdir(parents=True)
    style = tmp_path / "vit_edge/report/page.css"
    monkeypatch.setattr(pictures, "REPOSITORY", tmp_path)
    hashes = set()
    for text in ("a", "b"):
        style.write_text(text)
        hashes.add(pictures.looks("bench"))
    assert len(hashes) == 2


def test_the_drawing_asks_for_nothing_from_elsewhere(repository: Path) -> None:
    drawing = (
        (repository / "docs/pictures/flow.svg")
        .read_text()
        .replace('xmlns="http://www.w3.org/2000/svg"', "")
    )
    assert not re.search(r"https?:|<script|url\((?!#)|@import|href", drawing)
