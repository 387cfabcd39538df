"""The page in a real browser: on a phone, in the dark, and what it may not do."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from tests.parity.report_results import (
    LABELS,
    full_result,
    made_pictures,
    made_result,
    made_run,
    typed,
)
from vit_edge.parity.report.html import html_page

requires = ("jinja2", "matplotlib")
pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Blink's setting behind prefers-color-scheme; --force-dark-mode only repaints the browser itself.
SCHEMES = {"dark": 0, "light": 1}
PHONE_PX = 390
# A headless window is at least 500 px wide. A frame is as wide as it is told, and media queries in
# it see that width.
FRAMED = """<!DOCTYPE html><meta name="color-scheme" content="light dark">
<iframe style="width: {width_px}px; height: 844px; border: 0" srcdoc="{page}"></iframe>
<script>
onload = () => {{
  const view = frames[0], page = view.document, root = page.documentElement;
  const texts = [...page.querySelectorAll("svg text")];
  const scale = ({{ownerSVGElement: svg}}) => svg.clientWidth / svg.viewBox.baseVal.width;
  document.documentElement.dataset.found = JSON.stringify({{
    scroll_px: root.scrollWidth,
    width_px: view.innerWidth,
    dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
    boxes_scroll: [...page.querySelectorAll(".scroll")].map(b => b.scrollWidth > b.clientWidth),
    pictures: [...page.images].map(image => image.naturalWidth),
    requests: view.performance.getEntriesByType("resource").map(entry => entry.name),
    text_px: texts.map(text => parseFloat(view.getComputedStyle(text).fontSize) * scale(text)),
    text_colours: texts.map(text => view.getComputedStyle(text).fill),
  }});
}};
</script>
"""


class Seen(NamedTuple):
    """What a browser made of a page."""

    found: dict[str, Any]
    console: list[str]


class Browser(NamedTuple):
    """Chromium, started anew for every look."""

    path: str
    folder: Path

    def run(self, page: str, scheme: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        file = self.folder / "page.html"
        file.write_text(page, encoding="utf-8")
        return subprocess.run(
            [
                self.path, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                "--disable-dev-shm-usage", "--force-color-profile=srgb", "--enable-logging=stderr",
                "--disable-background-networking", "--no-first-run",
                f"--user-data-dir={self.folder / 'profile'}",
                f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", *arguments,
                file.as_uri(),
            ],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip

    def look(self, page: str, *, width_px: int = 1280, scheme: str = "light") -> Seen:
        """Lay the page out at a width, and measure it from outside."""
        framed = FRAMED.format(width_px=width_px, page=html.escape(page))
        done = self.run(framed, scheme, "--dump-dom")
        found = re.search('data-found="([^"]*)"', done.stdout)
        assert found is not None, done.stderr
        console = re.findall(r"CONSOLE.*", done.stderr)
        return Seen(json.loads(html.unescape(found[1])), console)

    def corner(self, page: str, scheme: str) -> tuple[int, ...]:
        """The colour of the page's first pixel."""
        picture = self.folder / "picture.png"
        self.run(page, scheme, f"--screenshot={picture}", "--window-size=800,600")
        with Image.open(picture) as image:
            pixel = image.convert("RGB").getpixel((0, 0))
        assert isinstance(pixel, tuple)
        return pixel


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
    """A page with all there can be on one, of two machines."""
    results = [typed(full_result()), typed(made_result(made_run("openvino"), cpu="Cortex-A78AE"))]
    return html_page(results, pictures=made_pictures(), labels=LABELS)


@pytest.fixture(scope="module")
def on_a_phone(browser: Browser, page: str) -> Seen:
    return browser.look(page, width_px=PHONE_PX)


@pytest.fixture(scope="module")
def on_a_desk(browser: Browser, page: str) -> Seen:
    return browser.look(page)


def planted(page: str, markup: str) -> str:
    """The page with something in it that does not belong there."""
    assert "</main>" in page
    return page.replace("</main>", f"{markup}</main>")


@pytest.mark.parametrize("width_px", [320, 768])
def test_the_page_never_scrolls_sideways(browser: Browser, page: str, width_px: int) -> None:
    found = browser.look(page, width_px=width_px).found
    assert found["width_px"] == width_px
    assert found["scroll_px"] <= width_px


def test_a_phone_of_390_px_shows_the_whole_width(on_a_phone: Seen) -> None:
    assert on_a_phone.found["width_px"] == PHONE_PX
    assert on_a_phone.found["scroll_px"] <= PHONE_PX


def test_long_words_do_not_widen_the_page(browser: Browser) -> None:
    run = full_result()["runs"][0]
    run |= {"name": "n" * 80, "problems": ["p" * 300], "localized": "l" * 300}
    run["facts"] = {"f" * 100: "v" * 300}
    result = made_result(run, cpu="c" * 200)
    result["bundle"]["name"] = "b" * 200
    found = browser.look(html_page([typed(result)]), width_px=PHONE_PX).found
    assert found["scroll_px"] <= PHONE_PX


def test_what_is_too_wide_would_be_noticed(browser: Browser, page: str) -> None:
    wide = planted(page, '<div style="width: 600px">wide</div>')
    assert browser.look(wide, width_px=PHONE_PX).found["scroll_px"] > PHONE_PX


def test_tables_scroll_in_their_own_box_on_a_phone(on_a_phone: Seen) -> None:
    assert any(on_a_phone.found["boxes_scroll"])


def test_plots_can_be_read_on_a_phone(on_a_phone: Seen) -> None:
    assert min(on_a_phone.found["text_px"]) >= 11


def test_every_picture_is_shown(on_a_desk: Seen) -> None:
    pictures = on_a_desk.found["pictures"]
    assert len(pictures) == 6
    assert min(pictures) > 0


@pytest.mark.parametrize(
    ("scheme", "ground", "ink"),
    [("light", (255, 255, 255), "rgb(27, 31, 36)"), ("dark", (15, 19, 24), "rgb(230, 234, 239)")],
)
def test_the_page_and_its_plots_follow_the_colour_scheme(
    browser: Browser, page: str, scheme: str, ground: tuple[int, ...], ink: str
) -> None:
    assert browser.corner(page, scheme) == ground
    found = browser.look(page, scheme=scheme).found
    assert found["dark"] is (scheme == "dark")
    assert set(found["text_colours"]) == {ink}


def test_the_console_stays_silent_and_nothing_is_requested(on_a_desk: Seen) -> None:
    assert on_a_desk.console == []
    assert on_a_desk.found["requests"] == []


@pytest.mark.parametrize(
    "markup",
    [
        "<script>document.title = 'planted'</script>",
        '<img src="https://example.invalid/x.png">',
        '<link rel="stylesheet" href="https://example.invalid/x.css">',
        '<iframe src="https://example.invalid"></iframe>',
    ],
)
def test_the_pages_own_policy_stops_what_was_planted_in_it(
    browser: Browser, page: str, markup: str
) -> None:
    console = browser.look(planted(page, markup)).console
    assert any("Content Security Policy" in line for line in console)


def test_a_planted_error_would_be_heard(browser: Browser, page: str) -> None:
    lawless = re.sub("<meta http-equiv=[^>]*>", "", page)
    noisy = planted(lawless, "<script>console.error('planted')</script>")
    assert any("planted" in line for line in browser.look(noisy).console)
