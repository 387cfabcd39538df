"""The HTML page: what it says, and that nothing in a result can make it do anything else."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.parity.report_results import (
    CLASSES,
    GOLDEN_SHA256,
    LABELS,
    dead_run,
    failed_run,
    full_result,
    made_pictures,
    made_result,
    made_run,
    open_run,
    typed,
)
from tests.support.altered import altered
from vit_edge.bundle import Bundle
from vit_edge.errors import MissingExtraError
from vit_edge.parity.report import plots
from vit_edge.parity.report.html import html_page
from vit_edge.parity.report.junit import junit_xml
from vit_edge.parity.report.merge import main
from vit_edge.parity.report.pictures import SHOWN, data_uri, pictures_of, worst_images
from vit_edge.parity.report.plots import figures
from vit_edge.parity.report.read import result_from_json
from vit_edge.parity.report.sections import merged
from vit_edge.parity.report.text import text_of
from vit_edge.parity.run import compare
from vit_edge.strict import json_from_record

requires = ("jinja2", "matplotlib")

HOSTILE = "</style></title><script>alert(1)</script><img src=x onerror=alert(1)>\"'{{7*7}}${1}"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The elements and the text of a page; raises where tags do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def a_page(*runs: dict[str, Any], **options: Any) -> Page:
    return Page(html_page([typed(made_result(*runs))], **options))


@pytest.fixture(scope="module")
def whole() -> str:
    """A page with everything on it."""
    return html_page([typed(full_result())], pictures=made_pictures(), labels=LABELS)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (made_run(), "Parity holds"),
        (failed_run(), "Parity failed"),
        (open_run(), "Parity is inconclusive"),
        (dead_run(), "Parity failed"),
    ],
)
def test_the_verdict_comes_first(run: dict[str, Any], words: str) -> None:
    text = a_page(run).text
    assert words in text.partition("AMD EPYC")[0]


def test_a_result_without_runs_shows_no_pass() -> None:
    assert "Parity failed" in Page(html_page([typed(made_result() | {"runs": []})])).text


def test_the_page_asks_for_nothing_from_elsewhere(whole: str) -> None:
    own = re.sub(r"data:image/\w+;base64,[\w+/=]*", "", whole)
    assert re.findall(r"https?:|//[a-z]|@import|url\((?!#)", own) == []
    parsed = Page(whole)
    assert not {tag for tag, _ in parsed.elements} & {"script", "link", "iframe", "object", "base"}
    sources = [attributes["src"] for attributes in parsed.tags("img")]
    assert sources
    assert all(source and source.startswith("data:image/") for source in sources)
    links = [a["href"] for _, a in parsed.elements if "href" in a]
    assert all(link and link.startswith("#") for link in links)


def test_no_id_is_used_twice() -> None:
    other = made_result(cpu="Cortex-A78AE", model="2")
    page = Page(html_page([typed(full_result()), typed(other)]))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0


def replaced(value: Any) -> Any:
    """Every text in a result, but for the verdicts, as an attacker would have it."""
    if isinstance(value, dict):
        return {key: entry if key == "verdict" else replaced(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [replaced(entry) for entry in value]
    return HOSTILE if isinstance(value, str) else value


def test_no_text_of_a_result_becomes_markup() -> None:
    result = replaced(full_result())
    for run in result["runs"]:
        run["facts"] = {HOSTILE: HOSTILE}
    page = html_page([typed(result)], pictures=made_pictures(), labels=[HOSTILE] * CLASSES)
    parsed = Page(page)
    assert not parsed.tags("script")
    assert not [a for _, a in parsed.elements if any(name.startswith("on") for name in a)]
    assert "{{7*7}}" in parsed.text


@pytest.mark.slow
@pytest.mark.parametrize("text", ["\ud800", "a\x00b", "中🙂", "$\\frac{1}{$", "‮abc"])
def test_no_text_stops_the_page(text: str) -> None:
    result = full_result()
    for run in result["runs"]:
        run["name"] = text
    result["runs"][0]["blocks"][0]["tap"] = text
    html_page([typed(result)], labels=[text] * CLASSES).encode()


def test_every_picture_has_words_and_every_plot_a_label(whole: str) -> None:
    page = Page(whole)
    assert all(attributes["alt"] for attributes in page.tags("img"))
    plots = page.tags("svg")
    assert len(plots) == 5
    assert all(a["role"] == "img" and a["aria-label"] for a in plots)


def test_headings_do_not_skip_a_level(whole: str) -> None:
    page = Page(whole)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_statistics_carry_their_limits_and_the_reason() -> None:
    text = a_page(failed_run()).text
    assert ">= 20.0 dB" in text
    assert "smoothed, per-channel INT8 leaves 24 dB and more" in text


def test_both_answers_to_the_worst_images_are_named() -> None:
    run = failed_run()
    worst = run["images"][worst_images(typed(made_result(run)).runs)[0]]
    text = a_page(run, pictures=made_pictures(), labels=LABELS).text
    for answer in (worst["reference"], worst["candidate"]):
        assert f"{LABELS[answer[0][0]]} {answer[0][1]:.2f}" in text
    assert "flip over a margin of" in text


def test_classes_without_names_are_numbered() -> None:
    assert re.search(r"class \d \d", a_page(made_run()).text)


def test_an_answer_that_is_no_number_is_shown_as_such() -> None:
    run = failed_run()
    run["images"][0] |= {"candidate": [[3, None]], "kl": None, "relative_margin": None}
    text = a_page(run).text
    assert "class 3 no number" in text
    assert "KL infinite" in text


def test_a_run_that_died_is_shown_with_its_reason() -> None:
    assert "It died: it needed more than its limit of 100 MiB" in a_page(dead_run()).text


def test_several_machines_stand_side_by_side() -> None:
    results = [typed(made_result()), typed(made_result(cpu="Cortex-A78AE"))]
    page = Page(html_page(results))
    assert "A ort" in page.text
    assert "B ort" in page.text
    assert "2 backends on 2 machines: 2 passed." in page.text
    assert len([a for a in page.tags("th") if a.get("scope") == "col"]) > 0


def test_results_of_different_models_are_kept_apart_and_that_is_said() -> None:
    page = Page(html_page([typed(made_result()), typed(made_result(model="2"))]))
    assert "their numbers are kept apart" in page.text
    assert len(page.tags("section")) == 2


def test_the_same_results_make_the_same_page(whole: str) -> None:
    assert html_page([typed(full_result())], pictures=made_pictures(), labels=LABELS) == whole


def test_the_page_is_small(whole: str) -> None:
    assert len(whole) < 250_000


def test_2000_logits_per_backend_stay_small() -> None:
    run = made_run()
    values = np.random.default_rng(0).normal(size=2_000).tolist()
    run["scatter"] = {"reference": values, "candidate": values}
    (drawn,) = [
        f for f in figures(merged([typed(made_result(run))])[0], "s") if f.title == "Logits"
    ]
    assert len(drawn.svg) < 80_000


def test_plots_have_no_colours_of_their_own() -> None:
    for figure in figures(merged([typed(full_result())])[0], "s"):
        assert re.findall(r"#[0-9a-f]{6}\b", figure.svg) == []
        assert "var(--" in figure.svg


@pytest.mark.parametrize("value", [0.0, 1e-30, 3e38, -3e38])
def test_no_logit_stops_the_scatter(value: float) -> None:
    run = made_run()
    run["scatter"] = {"reference": [value], "candidate": [value]}
    assert "Logits" in a_page(run).text


def test_flips_come_before_what_keeps_its_class() -> None:
    images: list[dict[str, Any]] = [
        {"index": 0, "relative_margin": 0.0, "kl": 9.0},
        {"index": 1, "relative_margin": 0.1, "kl": 0.1},
        {"index": 2, "relative_margin": None, "kl": None},
        {"index": 3, "relative_margin": 0.0, "kl": None},
    ]
    answers: dict[str, Any] = {"name": "x", "reference": [], "candidate": []}
    run = made_run() | {"images": [answers | image for image in images]}
    assert worst_images(typed(made_result(run)).runs) == [2, 1, 3, 0]


def test_the_worst_images_of_several_runs_are_few_and_none_comes_twice() -> None:
    found = worst_images(typed(made_result(made_run(), failed_run())).runs)
    assert len(found) == len(set(found)) == SHOWN


@pytest.mark.parametrize("size_px", [1, 32, 72, 224, 1000])
def test_a_thumbnail_takes_a_few_kilobytes(size_px: int) -> None:
    y, x = np.mgrid[:size_px, :size_px] / size_px
    image = np.stack([255 * x, 255 * y, 127 * (1 + np.sin(20 * x))], axis=2).astype(np.uint8)
    kind, _, data = data_uri(image).partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    assert len(data) < 16_000
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert max(picture.size) <= 144


def test_small_images_keep_every_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    data = base64.b64decode(data_uri(image).partition(",")[2])
    with Image.open(io.BytesIO(data)) as picture:
        np.testing.assert_array_equal(np.asarray(picture), image)


def test_pictures_come_from_the_golden_file(bundle: Bundle) -> None:
    result = made_result()
    result["golden"]["sha256"] = GOLDEN_SHA256
    found = pictures_of(bundle.golden_path, typed(result))
    assert 0 < len(found) <= SHOWN
    assert {sha256 for sha256, _ in found} == {GOLDEN_SHA256}
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in found.values())


def test_a_real_comparison_becomes_a_page_with_its_pictures(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = compare(bundle, backend_names=("ort",))
    written = json.dumps(json_from_record(result))
    assert typed(json.loads(written)) == result
    (tmp_path / "a.json").write_text(written)
    page = tmp_path / "page.html"
    arguments = [str(tmp_path / "a.json"), "--html", str(page), "--bundle", str(bundle.path)]
    assert main(arguments) == 0
    shown = Page(page.read_text())
    assert "Parity holds" in shown.text
    assert len(shown.tags("img")) == SHOWN


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named_with_the_line_to_type(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"needs {package}.*vit-edge\[report\]"):
        html_page([typed(made_result())])


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb; source: WCAG 2.2, definition of that name."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
@pytest.mark.parametrize(
    ("ink", "ground", "least"),
    [
        *[(ink, ground, 4.5) for ink in ("ink", "muted") for ground in ("ground", "raised")],
        *[(state, ground, 4.5) for state in ("pass", "fail", "open")
          for ground in ("ground", "raised", f"{state}-ground")],
        ("ink", "open-ground", 4.5),
        *[(f"series-{place}", "raised", 3.0) for place in range(1, 7)],
    ],
)  # fmt: skip
def test_every_colour_stands_out_from_its_ground(
    repository: Path, scheme: int, ink: str, ground: str, least: float
) -> None:
    css = (repository / "vit_edge/report/templates/page.css").read_text()
    light, dark = css.split("@media (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", (light, dark)[scheme]))
    bright, dim = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
    assert (bright + 0.05) / (dim + 0.05) >= least


@pytest.mark.parametrize("wrong", [{"<b>": []}, [[]], "x" * 100, 1e39, -5, True])
def test_a_value_of_another_kind_is_refused_or_can_be_shown(
    wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        plots, "figures", lambda section, prefix: []
    )  # slow, and in test_report_html.py
    for result in altered(made_result(open_run()), wrong):
        read, problems = result_from_json(result)
        if not problems:
            assert list(text_of([read]))
            assert html_page([read], pictures=made_pictures(), labels=LABELS)
            assert junit_xml([read])
