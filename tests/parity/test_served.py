"""A server is judged as a backend is, and its own preprocessing with it."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import vit_edge
from tests.support.kserve_server import Answers, Model, serve
from vit_edge import Bundle, UsageError, cli
from vit_edge.images.preprocess import resized_from_source
from vit_edge.parity.result import Run
from vit_edge.parity.run import Question, compare_here

requires = ("onnxruntime",)


@pytest.mark.parametrize("encoded", [True, False])
def test_a_server_that_answers_right_passes(testing_bundle: Bundle, encoded: bool) -> None:
    model = Model(testing_bundle, encoded=encoded, max_batch=3)
    with serve(model) as url:
        result = vit_edge.parity(testing_bundle, against_url=url)
    (run,) = result.runs
    assert (run.verdict, run.problems) == ("pass", ())
    assert run.name == f"{url}/v2/models/m"
    assert run.facts["runtime"] == "stand-in 1.0"
    assert [check.name for check in run.checks] == ["preprocessing", "repeatability", "placement"]
    assert {row.batch for row in run.comparisons} == {1, 2, 3}  # the server's own limit
    assert max(model.requests) == 3
    assert ("sent whole" in run.checks[0].detail) is encoded


def judged(bundle: Bundle, url: str) -> Run:
    """What the child of a comparison finds, in this process."""
    return compare_here(Question(str(bundle.path), url, str(bundle.golden_path), None, url))


def plus(output: str, amount: float) -> Any:
    def spoil(answers: Answers) -> Answers:
        return {**answers, output: answers[output] + np.float32(amount)}

    return spoil


def nan(answers: Answers) -> Answers:
    return {**answers, "logits": answers["logits"] * np.float32(np.nan)}


def by_place(answers: Answers) -> Answers:
    return {name: values + np.arange(len(values))[:, None] for name, values in answers.items()}


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (plus("logits", 0.01), "logits, batch 1"),
        (plus("features", 0.01), "features"),
        (nan, "NaN or Inf"),
        (by_place, "placement"),
    ],
)
@pytest.mark.parametrize("binary", [True, False])
def test_a_server_that_answers_wrong_fails(
    testing_bundle: Bundle, spoil: Any, problem: str, binary: bool
) -> None:
    with serve(Model(testing_bundle, spoil=spoil, binary=binary)) as url:
        run = judged(testing_bundle, url)
    assert run.verdict == "fail"
    assert problem in "; ".join(run.problems)


def without_exif(file: bytes, steps: Any) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(file)) as opened:
        plain = io.BytesIO()
        opened.convert("RGB").save(plain, "PNG")
    return resized_from_source(plain.getvalue(), steps)


def blue_first(file: bytes, steps: Any) -> NDArray[np.uint8]:
    return np.ascontiguousarray(resized_from_source(file, steps)[..., ::-1])


def otherwise_resized(file: bytes, steps: Any) -> NDArray[np.uint8]:
    return resized_from_source(file, dataclasses.replace(steps, interpolation="nearest"))


def opaque(file: bytes, steps: Any) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(file)) as opened:
        if opened.mode == "RGBA":
            raise ValueError("no such images here")
    return resized_from_source(file, steps)


@pytest.mark.parametrize(
    ("resized", "problem"),
    [
        (without_exif, "probe exif-rotated.jpg: the answer differs"),
        (otherwise_resized, "probe plain.png: the answer differs"),
        (opaque, "probe rgba.png: .*HTTP 400: ValueError: no such images here"),
        (blue_first, "logits"),
    ],
)
def test_a_server_that_prepares_images_otherwise_fails(
    embedded_bundle: Bundle, resized: Any, problem: str
) -> None:
    with serve(Model(embedded_bundle, resized=resized, max_batch=4)) as url:
        run = judged(embedded_bundle, url)
    assert run.verdict == "fail"
    assert any(re.search(problem, text) for text in run.problems), run.problems


def test_a_server_that_goes_away_has_died(testing_bundle: Bundle) -> None:
    model = Model(testing_bundle, reply={"/v2/models/m/infer": (503, b'{"error": "overloaded"}')})
    with serve(model) as url:
        (run,) = vit_edge.parity(testing_bundle, against_url=url).runs
    assert run.verdict == "died"
    assert run.death is not None
    assert "HTTP 503: overloaded" in run.death


@pytest.mark.parametrize("wrong", [{"backend": "ort"}, {"localize": True}, {"memory_limit": "1GB"}])
def test_what_is_for_backends_here_is_refused(
    testing_bundle: Bundle, wrong: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="is for what runs here"):
        vit_edge.parity(testing_bundle, against_url="http://h:1", **wrong)


def test_another_bundles_answers_may_be_the_reference(testing_bundle: Bundle) -> None:
    with serve(Model(testing_bundle)) as url:
        result = vit_edge.parity(testing_bundle, against_url=url, against=testing_bundle)
    assert result.against is not None
    assert result.runs[0].verdict == "pass"
    (row,) = [row for row in result.runs[0].comparisons if row.place == "logits, batch 1"]
    assert row.summary["relative"] == 0  # the stand-in runs the same runtime


def test_a_page_of_a_server_is_written(testing_bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    page = tmp_path / "parity.html"
    with serve(Model(testing_bundle)) as url:
        words = ["parity", str(testing_bundle.path), "--against-url", url, "--html", str(page)]
        assert cli.main(words) == 0
    assert f"{url}/v2/models/m" in page.read_text("utf-8")


def test_the_command_reports_a_server_as_a_backend(
    testing_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "result.json", tmp_path / "junit.xml"
    words = ["parity", str(testing_bundle.path), "--against-url"]
    with serve(Model(testing_bundle)) as url:
        assert cli.main([*words, url, "--out", str(out), "--junit", str(page)]) == 0
        printed = capsys.readouterr().out
        assert f"on stand-in 1.0, {url}\nengine         model m, version 2\n" in printed
        assert printed.endswith("parity holds\n")
        assert cli.main(["parity", "merge", str(out)]) == 0
        assert cli.main([*words, f"{url}/v2/models/x"]) == 3
        assert "HTTP 404: unknown model" in capsys.readouterr().err
    (run,) = json.loads(out.read_text())["runs"]
    assert run["name"] == f"{url}/v2/models/m"
    assert "testsuite" in page.read_text()
    with serve(Model(testing_bundle, spoil=plus("logits", 1.0))) as url:
        assert cli.main([*words, url]) == 4
    assert cli.main([*words, "localhost:8000"]) == 2
