"""Paths for libraries in C++: whatever the locale, and names that are no UTF-8."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vit_edge.backends import ort
from vit_edge.bundle import Bundle
from vit_edge.errors import BackendError
from vit_edge.machine.paths import path_for

requires = ("onnxruntime",)

# Python's own remedies off: what a container or a cron job without a locale has had for decades.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

UNDER_ASCII = """
import sys
from pathlib import Path
from vit_edge import Predictor
from vit_edge.images.classnames import classes_of_names
from vit_edge.images.load import load_image
from vit_edge.machine.paths import path_for
assert sys.getfilesystemencoding() == "ascii"
bundle, photo = map(Path, sys.argv[1:])
assert ascii(path_for("it", photo)).endswith("\\\\u732b.jpg'")
assert Predictor(bundle).predict(photo).top
load_image(str(photo.parent) + "/\\u732b.jpg")  # as a table names it
assert classes_of_names([photo.stem], ["dog", "\\u732b"]) == ({photo.stem: 1}, [])
"""


def test_names_are_utf_8_for_libraries_where_the_locale_has_none(
    testing_bundle: Bundle, photos: list[Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(testing_bundle.path, tmp_path / "b\xfcndel")
    photo = Path(shutil.copyfile(photos[0], tmp_path / "\u732b.jpg"))
    done = subprocess.run(
        [sys.executable, "-c", UNDER_ASCII, str(folder), str(photo)],
        env=os.environ | ASCII, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_no_utf_8_is_said_to_be_that(testing_bundle: Bundle, tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/latin-\xe9")
    try:
        shutil.copytree(testing_bundle.path, name)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(BackendError, match=r"latin-\\udce9.*onnxruntime opens only paths .*UTF-8"):
        ort.load(Bundle.read(name), engine="never")
    (tmp_path / "link").symlink_to(name)  # the remedy that the message names
    ort.load(Bundle.read(tmp_path / "link"), engine="never").close()


def test_other_names_are_left_alone(tmp_path: Path) -> None:
    for name in ("plain", "with space #1 100%", "K\xe4fer \u732b"):
        assert path_for("it", tmp_path / name) == str(tmp_path / name)
