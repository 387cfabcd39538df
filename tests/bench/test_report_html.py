"""The page of benchmarks: what is on it, and that nothing in a result becomes part of it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.report_runs import full_run, machines, made_entry, made_run
from tests.parity.test_report_html import Page
from vit_edge.bench import __main__ as bench
from vit_edge.bench.report.html import html_page
from vit_edge.bench.report.looks import ROWS
from vit_edge.bench.report.pareto import front
from vit_edge.bench.results import results

requires = ("jinja2", "matplotlib")

HOSTILE = "</style></title><script>alert(1)</script><img src=x onerror=alert(1)>\"'{{7*7}}${1}"
FIGURES = ["Speed, answers, memory", "Latencies", "Memory", "Cold start", "Scaling with batch",
           "Scaling with threads"]  # fmt: skip


def page_of(*runs: Any) -> Page:
    return Page(html_page(machines(list(runs))))


@pytest.fixture(scope="module")
def whole() -> str:
    """A page with everything on it, of two machines, one of them interrupted."""
    unfinished = full_run(cpu="Cortex-A78AE") | {"complete": False, "interrupted": "after 12"}
    return html_page(machines([full_run(), unfinished]))


def headings(page: Page, tag: str, html: str) -> list[str]:
    return re.findall(rf"<{tag}>([^<]*)</{tag}>", html)


def test_every_plot_is_there(whole: str) -> None:
    found = headings(Page(whole), "h4", whole)
    assert found[: len(FIGURES)] == FIGURES
    assert found.count("Scaling with image size") == found.count("Scaling with model") == 2
    assert "Models: 1 tiny-patch16-224; 17 base-patch16-224." in Page(whole).text


def test_a_plot_of_what_was_not_varied_is_not_drawn() -> None:
    html = html_page(machines([made_run(made_entry())]))
    assert headings(Page(html), "h4", html) == FIGURES[1:4]


def test_answers_that_nobody_looked_at_are_not_plotted() -> None:
    entries = [made_entry(precision) for precision in ("fp32", "int8")]
    assert FIGURES[0] in html_page(machines([made_run(*entries)]))
    unknown = [entry | {"parity": None} for entry in entries]
    assert FIGURES[0] not in html_page(machines([made_run(*unknown)]))


def test_the_front_names_who_is_on_it_and_leaves_out_wrong_answers() -> None:
    text = page_of(full_run()).text
    said = text[text.index("Dashed: the front") :].partition("Latencies")[0]
    assert "1 base-patch16-224-int8 on ort threads=4" in said
    assert "2 base-patch16-224-bf16 on openvino" in said
    assert "3 base-patch16-224-fp32 on openvino" in said
    assert "int4" not in said


def test_wrong_answers_are_not_on_the_front_however_fast() -> None:
    wrong, other = made_entry("int8"), made_entry("fp32")
    wrong["parity"] |= {"problems": ["logits: far away"], "sqnr_centred_db": 200.0}
    text = page_of(made_run(wrong, other)).text
    said = text[text.index("Dashed: the front") :].partition("Latencies")[0]
    assert "1 base-patch16-224-fp32 on ort" in said
    assert "int8" not in said
    assert "Crosses: answers that do not hold" in said


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(-10, 140)), min_size=1, max_size=30))
def test_nothing_beats_what_is_on_the_front(points: list[tuple[float, float]]) -> None:
    kept = front(points)
    for place, (x, y) in enumerate(points):
        beaten = any((a <= x and b >= y) and (a < x or b > y) for a, b in points)
        on_it = any(points[each] == (x, y) for each in kept)
        assert on_it is not beaten, place


def test_the_contents_lead_to_each_model(whole: str) -> None:
    links = re.findall(r'<a href="#([^"]+)">([^<]+)</a>', whole)
    titles = re.findall(r'<h3 id="([^"]+)">([^<]+)</h3>', whole)
    assert links == titles
    assert len(links) == len(dict(links)) == sum(len(m.groups) for m in machines([full_run()])) * 2
    assert "<nav" not in html_page(machines([made_run(made_entry())]))


def test_other_image_sizes_are_folded_where_the_model_has_its_own() -> None:
    def folded(*sizes: int) -> int:
        run = made_run(*(made_entry(size=side) | {"name": f"at {side}"} for side in sizes))
        return html_page(machines([run])).count("<summary>Another image size")

    assert folded(224, 384, 512) == 2
    assert folded(384, 512) == 0  # all there is to see


def test_warnings_stand_above_the_plots(whole: str) -> None:
    before = Page(whole.partition("<figure>")[0] + "</div></section></main></body></html>").text
    assert "other processes used 34%" in before
    assert "⚠ marks 1 of" in before
    assert "its processes differ" not in before
    assert re.search(r"INCOMPLETE\s+interrupted after 12", Page(whole).text)


def test_the_table_can_be_read_without_its_script(whole: str) -> None:
    bare = re.sub(r"(?s)<script>.*?</script>", "", whole)
    page = Page(bare)
    assert not page.tags("button")
    assert not page.tags("input")
    rows = re.findall(r"<tr><th scope=row.*?</tr>", bare)
    assert len(rows) == 2 * len(machines([full_run()])[0].lines)


def test_the_page_asks_for_nothing_from_elsewhere(whole: str) -> None:
    assert re.findall(r"https?:|//[a-z]|@import|url\((?!#)|\bfetch\b|import\(", whole) == []
    parsed = Page(whole)
    assert not {tag for tag, _ in parsed.elements} & {"link", "iframe", "object", "base", "img"}
    assert len(parsed.tags("script")) == 1


def test_the_policy_allows_the_one_script_by_its_hash(whole: str) -> None:
    (script,) = re.findall(r"(?s)<script>(.*?)</script>", whole)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in whole


def replaced(value: Any, kept: tuple[str, ...] = ("scenario", "stage", "started")) -> Any:
    """Every text in a run as an attacker would have it."""
    if isinstance(value, dict):
        return {k: v if k in kept else replaced(v) for k, v in value.items()}
    if isinstance(value, list):
        return [replaced(entry) for entry in value]
    return HOSTILE if isinstance(value, str) else value


def test_no_text_of_a_result_becomes_markup() -> None:
    run = replaced(full_run())
    for place, entry in enumerate(run["configurations"]):
        entry["name"] += str(place)
    run["facts"] |= {HOSTILE: HOSTILE}
    parsed = page_of(run)
    assert len(parsed.tags("script")) == 1
    assert not parsed.tags("img")
    assert not [a for _, a in parsed.elements if any(name.startswith("on") for name in a)]
    assert "{{7*7}}" in parsed.text


@pytest.mark.parametrize("text", ["\ud800", "a\x00b", "中🙂", "$\\frac{1}{$", "‮abc", "_x", ""])
def test_no_name_stops_the_page(text: str) -> None:
    run = made_run(made_entry(), made_entry(batch=2))
    for entry in run["configurations"]:
        entry["bundle"] |= {"name": text, "precision": text, "variant": text}
        entry["backend"] = text
    html_page(machines([run])).encode()


@pytest.mark.parametrize(("level", "spread"), [(1e-9, 1e3), (1e-3, 0.0), (1.0, 1e-15), (1e6, 1e3)])
def test_no_latency_stops_the_plots(level: float, spread: float) -> None:
    entries = [made_entry(), made_entry(batch=2), made_entry("fp32")]
    for entry in entries:
        for process in entry["processes"]:
            process["latencies_ms"] = [level, level * (1 + spread)]
    entries[0]["processes"] = entries[0]["processes"][:1]
    entries[2]["processes"][0]["memory_bytes"] = dict.fromkeys(("anonymous", "file", "peak"), 0)
    assert "Latencies" in html_page(machines([made_run(*entries)]))


@pytest.mark.parametrize("runs", [[], [made_run()], [made_run(made_entry() | {"processes": []})]])
def test_a_page_of_nothing_is_a_page(runs: list[Any]) -> None:
    assert "Benchmarks" in Page(html_page(machines(runs))).text


def test_no_id_is_used_twice(whole: str) -> None:
    ids = [a["id"] for _, a in Page(whole).elements if "id" in a]
    assert len(ids) == len(set(ids)) > 0


def test_headings_do_not_skip_a_level(whole: str) -> None:
    levels = [int(tag[1]) for tag, _ in Page(whole).elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_plots_have_words_and_no_colours_of_their_own(whole: str) -> None:
    page = Page(whole)
    assert all(a["role"] == "img" and a["aria-label"] for a in page.tags("svg"))
    for svg in re.findall(r"(?s)<svg.*?</svg>", whole):
        assert re.findall(r"#[0-9a-f]{6}\b", svg) == []


def test_the_same_runs_make_the_same_page() -> None:
    run = made_run(made_entry(), made_entry("fp32"), made_entry(batch=2))
    assert html_page(machines([run])) == html_page(machines([run]))


def test_where_not_all_are_drawn_the_page_says_so() -> None:
    entries = [made_entry(options={"arena": place}, count=12) for place in range(ROWS + 5)]
    assert f"The {ROWS} fastest of {ROWS + 5}." in page_of(made_run(*entries)).text


def test_a_hundred_configurations_of_10_000_samples_stay_small(tmp_path: Path) -> None:
    entries = []
    for place in range(100):
        precision = ("fp32", "bf16", "int8", "int4")[place % 4]
        batch, arena = 2 ** (place // 4 % 5), place // 20
        entry = made_entry(precision, batch=batch, options={"arena": arena}, count=1, processes=2)
        random = np.random.default_rng(place)
        for process in entry["processes"]:
            process["latencies_ms"] = (10 + random.exponential(1.0, 5000)).round(4).tolist()
        entries.append(entry)
    path = tmp_path / "r.json"
    with results.appending(path) as save:
        save(made_run(*entries))
    assert bench.main(["report", str(path), "--html", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert len(page) < 3_000_000
    assert len(re.findall("<tr><th scope=row", page)) == 100
