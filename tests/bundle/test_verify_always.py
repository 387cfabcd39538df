"""What a cheap look at the files cannot see, and a Predictor that reads every byte."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from vit_edge.backends import ort
from vit_edge.bundle import Bundle, trust
from vit_edge.errors import IntegrityError, UsageError
from vit_edge.predictor import Predictor

requires = ("onnxruntime",)


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def change_unseen(file: Path) -> None:
    """Flip a bit of a file, such that its size, times and inode are those that were recorded.

    As root, a file system without times of change, or a clock that was set back can.
    """
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    with file.open("r+b") as same:
        same.write(content)
    record = trust._record_path(file.parent)
    assert record is not None
    known = json.loads(record.read_text())
    known["files"][file.name][0] = trust._identity(file)
    record.write_text(json.dumps(known))


def test_always_sees_a_changed_model(bundle: Bundle, photos: list[Path]) -> None:
    with Predictor(bundle.path, "ort") as predictor:
        predictor.predict(photos[0])
    change_unseen(bundle.model_path)
    Predictor(bundle.path, "ort").close()  # what SECURITY.md says of the default
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        Predictor(bundle.path, "ort", verify="always")


def test_always_sees_a_changed_engine(bundle: Bundle) -> None:
    engine = ort.build(bundle)
    with Predictor(bundle.path, "ort", verify="always") as predictor:
        assert predictor.facts["engine"] == engine.name
        sent = pickle.dumps(predictor)
    change_unseen(max(engine.glob("model.onnx*"), key=lambda file: file.stat().st_size))
    with pytest.raises(IntegrityError, match="changed since it was built"):
        Predictor(bundle.path, "ort", verify="always")
    with pytest.raises(IntegrityError, match="changed since it was built"):
        pickle.loads(sent)  # as in another process


def test_another_word_and_a_backend_that_is_open_are_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="always"):
        Predictor(bundle, "ort", verify="never")  # type: ignore[arg-type]
    opened = ort.load(bundle, engine="never")
    with pytest.raises(UsageError, match="by name"):
        Predictor(bundle, opened, verify="always")
    opened.close()
