"""The page of benchmarks in a real browser: sorted, filtered, on a phone, in the dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from tests.bench.report_runs import full_run, machines, made_entry, made_run
from tests.parity.test_report_in_a_browser import NAMES, PHONE_PX, Browser, Seen, planted
from vit_edge.bench.report.html import html_page

requires = ("jinja2", "matplotlib")
pytestmark = pytest.mark.browser

# Works the page from outside: its own policy lets nothing but its own script run inside.
WORKED = """<!DOCTYPE html>
<iframe style="width: 1280px; height: 844px; border: 0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const view = frames[0], page = view.document, table = page.querySelector("table.sortable");
  const header = (name) => [...table.tHead.rows[0].cells].find(c => c.textContent === name);
  const click = (name) => header(name).querySelector("button").click();
  const column = (name) => [...table.tBodies[0].rows].filter(row => !row.hidden)
    .map(row => row.cells[header(name).cellIndex].firstChild.textContent);
  const type = (text) => {{
    const input = page.querySelector(".filter input");
    input.value = text;
    input.dispatchEvent(new view.Event("input"));
  }};
  const told = () => page.querySelector(".filter span").textContent;
  document.documentElement.dataset.found = JSON.stringify((() => {{ {work} }})());
}};
</script>
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser was found: none of {', '.join(NAMES)}")
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    if done.returncode:  # Ubuntu's package is a script that asks for snap
        pytest.skip(f"{path} does not start: {done.stderr.strip()}")
    return Browser(path, tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def page() -> str:
    return html_page(machines([full_run(), full_run(cpu="Cortex-A78AE")]))


@pytest.fixture(scope="module")
def small() -> str:
    """Three configurations, one of them with a p99, one whose answers nobody looked at."""
    entries = [made_entry("fp32"), made_entry("int8", count=400), made_entry("bf16")]
    entries[2]["parity"] = None
    return html_page(machines([made_run(*entries)]))


def worked(browser: Browser, page: str, work: str) -> Any:
    done = browser.run(WORKED.format(page=html.escape(page), work=work), "light", "--dump-dom")
    found = re.search('data-found="([^"]*)"', done.stdout)
    assert found is not None, done.stderr
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def on_a_phone(browser: Browser, page: str) -> Seen:
    return browser.look(page, width_px=PHONE_PX)


def test_a_column_is_sorted_by_its_numbers_up_and_down(browser: Browser, small: str) -> None:
    before, up, down, said = worked(
        browser, small,
        """const before = column("precision");
        click("p50 ms"); const up = column("precision");
        click("p50 ms"); const down = column("precision");
        return [before, up, down, header("p50 ms").getAttribute("aria-sort")];""",
    )  # fmt: skip
    assert before == ["fp32", "bf16", "int8"]
    assert up == ["int8", "bf16", "fp32"]
    assert down == up[::-1]
    assert said == "descending"


def test_words_are_sorted_as_words_and_one_column_at_a_time(browser: Browser, small: str) -> None:
    found, first = worked(
        browser, small,
        """click("p50 ms"); click("precision");
        return [column("precision"), header("p50 ms").hasAttribute("aria-sort")];""",
    )  # fmt: skip
    assert found == ["bf16", "fp32", "int8"]
    assert first is False


def test_what_has_no_value_comes_last_either_way(browser: Browser, small: str) -> None:
    up, down = worked(
        browser, small,
        """click("p99 ms"); const up = column("precision");
        click("p99 ms"); return [up, column("precision")];""",
    )  # fmt: skip
    assert up[0] == down[0] == "int8"


def test_answers_are_sorted_by_their_noise(browser: Browser, small: str) -> None:
    found = worked(browser, small, 'click("answers"); return column("answers");')
    assert found == ["hold, 25 dB", "hold, 128 dB", "not looked at"]


def test_rows_are_filtered_by_all_words(browser: Browser, page: str) -> None:
    some, said, none, all_ = worked(
        browser, page,
        """type("INT8 openvino"); const some = column("precision"), said = told();
        type("int8 nothing"); const none = column("precision").length;
        type(" "); return [some, said, none, told()];""",
    )  # fmt: skip
    assert some == ["int8"] * 4
    assert said == "4 of 34"
    assert none == 0
    assert all_ == "34 of 34"


@pytest.mark.parametrize("width_px", [320, 768])
def test_the_page_never_scrolls_sideways(browser: Browser, page: str, width_px: int) -> None:
    assert browser.look(page, width_px=width_px).found["scroll_px"] <= width_px


def test_a_phone_shows_the_whole_width_and_readable_plots(on_a_phone: Seen) -> None:
    assert on_a_phone.found["scroll_px"] <= PHONE_PX
    assert any(on_a_phone.found["boxes_scroll"])
    assert min(on_a_phone.found["text_px"]) >= 11


def test_long_words_do_not_widen_the_page(browser: Browser) -> None:
    entry = made_entry()
    entry["bundle"] |= {"name": "n" * 200, "variant": "v" * 200, "precision": "p" * 100}
    failed = made_entry(batch=2) | {"name": "f" * 200, "failed": "r" * 300, "processes": []}
    run = made_run(entry, failed, cpu="c" * 200) | {"warnings": ["w" * 300]}
    found = browser.look(html_page(machines([run])), width_px=PHONE_PX).found
    assert found["scroll_px"] <= PHONE_PX


@pytest.mark.parametrize(
    ("scheme", "ink"), [("light", "rgb(27, 31, 36)"), ("dark", "rgb(230, 234, 239)")]
)
def test_the_plots_follow_the_colour_scheme(
    browser: Browser, page: str, scheme: str, ink: str
) -> None:
    found = browser.look(page, scheme=scheme).found
    assert found["dark"] is (scheme == "dark")
    assert set(found["text_colours"]) == {ink}


def test_the_console_stays_silent_and_nothing_is_requested(on_a_phone: Seen) -> None:
    assert on_a_phone.console == []
    assert on_a_phone.found["requests"] == []


@pytest.mark.parametrize(
    "markup",
    [
        "<script>document.title = 'planted'</script>",
        '<img src="https://example.invalid/x.png">',
    ],
)
def test_the_pages_own_policy_stops_what_was_planted_in_it(
    browser: Browser, page: str, markup: str
) -> None:
    console = browser.look(planted(page, markup)).console
    assert any("Content Security Policy" in line for line in console)
