"""The samples in C++ and JavaScript answer as Predictor does, and their proof finds what is wrong.

They need compilers and packages that Python's tests do not: `.ci/run` has a step that brings them.
VIT_EDGE_ORT_INCLUDE names the folder of onnxruntime_cxx_api.h, VIT_EDGE_NODE_MODULES a folder
where npm installed onnxruntime-node and onnxruntime-web.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest

from tests.parity.test_report_in_a_browser import NAMES, PHONE_PX, SCHEMES
from tests.support.bundles import TESTING, Exporter
from tests.support.faulty_preprocessing import FAULTS, plant
from vit_edge import Predictor, probes
from vit_edge.bundle import Bundle
from vit_edge.images.preprocess import preprocess

requires = ("onnx", "onnx_ir", "onnxruntime", "jinja2", "matplotlib")

HOLDS, FAILS = 0, 4
HEADERS = ("/usr/include/onnxruntime", "/usr/local/include/onnxruntime")


class Probed:
    """A bundle with its plain probes, and the same with each fault."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.bundle, self.folder = bundle, folder
        self.probes = probes(bundle, folder / "probes").folder

    @functools.cache  # noqa: B019 - it lives as long as the run
    def with_fault(self, fault: str) -> Path:
        return plant(self.bundle, self.folder / fault.replace(" ", "-"), fault)


@pytest.fixture(scope="module")
def probed(embedded_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    return Probed(embedded_bundle, tmp_path_factory.mktemp("probed"))


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, check=False
    )


# C++


@pytest.fixture(scope="module")
def built(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the C++ programs."""
    asked = os.environ.get("VIT_EDGE_ORT_INCLUDE")
    folders = [folder for folder in (asked, *HEADERS) if folder and Path(folder).is_dir()]
    if not folders or not shutil.which("cmake"):
        pytest.skip("C++: cmake, or the headers of ONNX Runtime (VIT_EDGE_ORT_INCLUDE), are absent")
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    build = tmp_path_factory.mktemp("cpp")
    made = run(
        "cmake", "-S", repository / "examples" / "cpp", "-B", build,
        f"-DORT_INCLUDE={folders[0]}", f"-DORT_LIBRARY={library}",
        "-DCMAKE_CXX_FLAGS=-O1 -Werror",
    )  # fmt: skip
    if made.returncode and "Could NOT find" in made.stderr + made.stdout:
        pytest.skip(f"C++: a library is absent:\n{made.stderr}")
    assert made.returncode == 0, made.stderr
    made = run("cmake", "--build", build)
    assert made.returncode == 0, made.stdout + made.stderr
    return build


@pytest.mark.slow
def test_cpp_proves_itself(built: Path, probed: Probed) -> None:
    for command in (("vit_edge_example", "prove"), ("golden_test",)):
        done = run(built / command[0], *command[1:], probed.bundle.path, probed.probes)
        assert done.returncode == HOLDS, done.stdout + done.stderr
        assert done.stdout.count("ok ") == 11 + 2
    for fault in FAULTS:
        done = run(built / "golden_test", probed.with_fault(fault), probed.probes)
        assert done.returncode == FAILS, (fault, done.stdout + done.stderr)
        assert "FAIL  pixels       pattern-large.png" in done.stdout, fault


@pytest.mark.slow
def test_cpp_answers_a_photo_as_predictor_does(
    built: Path, probed: Probed, photos: list[Path], tmp_path: Path
) -> None:
    program = built / "vit_edge_example"
    with Predictor(probed.bundle) as predictor:
        for photo in photos[:3]:
            done = run(program, "classify", probed.bundle.path, photo)
            expected = predictor.predict(photo, 5).top
            lines = [line.split(" %  ") for line in done.stdout.splitlines()]
            assert [label for _, label in lines] == [ranked.label for ranked in expected]
            for (share, _), ranked in zip(lines, expected, strict=True):
                assert float(share) == pytest.approx(100 * ranked.score, abs=0.011)
    run(program, "pixels", probed.bundle.path, photos[0], tmp_path / "pixels.bin")
    found = np.fromfile(tmp_path / "pixels.bin", "<f4")
    wanted = preprocess(photos[0], probed.bundle.manifest.preprocessing)
    # another build of libjpeg, or stb where there is none
    assert np.abs(found - wanted.reshape(-1)).max() * 127.5 <= 8


@pytest.mark.slow
def test_cpp_says_what_is_wrong_with_a_call(built: Path, probed: Probed, tmp_path: Path) -> None:
    assert run(built / "vit_edge_example", "prove").returncode == 2
    done = run(built / "vit_edge_example", "prove", tmp_path, probed.probes)
    assert (done.returncode, "manifest.json" in done.stderr) == (3, True)


@pytest.mark.slow
def test_cpp_proves_a_bundle_of_uint8_images(
    built: Path, export_once: Exporter, tmp_path: Path
) -> None:
    bundle = export_once(*TESTING, "--input", "uint8")
    plain = probes(bundle, tmp_path / "probes").folder
    done = run(built / "golden_test", bundle.path, plain)
    assert done.returncode == HOLDS, done.stdout + done.stderr


# JavaScript in Node.js


@pytest.fixture(scope="module")
def node_modules() -> Path:
    folder = os.environ.get("VIT_EDGE_NODE_MODULES")
    if not folder or not (Path(folder) / "onnxruntime-web").is_dir():
        pytest.skip("JavaScript: VIT_EDGE_NODE_MODULES names no folder with onnxruntime-web")
    return Path(folder)


@pytest.fixture(scope="module")
def script(repository: Path, node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sample, with its packages."""
    if not shutil.which("node"):
        pytest.skip("JavaScript: node is absent")
    folder = tmp_path_factory.mktemp("js") / "js"
    shutil.copytree(repository / "examples" / "js", folder)
    (folder / "node_modules").symlink_to(node_modules)
    return folder


@pytest.mark.slow
def test_node_proves_itself(script: Path, probed: Probed) -> None:
    done = run("node", script / "prove.mjs", probed.bundle.path, probed.probes)
    assert done.returncode == HOLDS, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 11 + 2
    for fault in FAULTS:
        done = run("node", script / "prove.mjs", probed.with_fault(fault), probed.probes)
        assert done.returncode == FAILS, (fault, done.stdout + done.stderr)
        assert "FAIL  pixels       pattern-large.png" in done.stdout, fault


@pytest.mark.slow
def test_the_ten_lines_for_node_pass_and_fail(
    script: Path, probed: Probed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROBES", str(probed.probes))
    for bundle, code in ((probed.bundle.path, 0), (probed.with_fault("BGR"), 1)):
        monkeypatch.setenv("BUNDLE", str(bundle))
        done = run("node", "--test", script / "golden.test.mjs")
        assert done.returncode == code, done.stdout + done.stderr


@pytest.mark.slow
def test_node_proves_a_bundle_of_uint8_images(
    script: Path, export_once: Exporter, tmp_path: Path
) -> None:
    bundle = export_once(*TESTING, "--input", "uint8")
    plain = probes(bundle, tmp_path / "probes").folder
    done = run("node", script / "prove.mjs", bundle.path, plain)
    assert done.returncode == HOLDS, done.stdout + done.stderr


# JavaScript in a browser

# Works the page from outside. The picture holds back the load event, and so the browser's end,
# until the page is done.
HARNESS = """<!DOCTYPE html><meta name="color-scheme" content="light dark"><img src="/hold">
<iframe src="/index.html" style="border: 0; width: {width_px}px; height: 900px"></iframe>
<script type="module">
const told = (body) => fetch("/report", {{ method: "POST", body: JSON.stringify(body) }});
const until = async (test) => {{ while (!test()) await new Promise((on) => setTimeout(on, 20)); }};
const frame = document.querySelector("iframe");
try {{
  await until(() => frame.contentDocument?.documentElement?.dataset.ready);
  const page = frame.contentDocument, view = frame.contentWindow;
  const text = (id) => page.getElementById(id).textContent;
  const dropped = async (name) => {{
    const files = new view.DataTransfer();
    files.items.add(new view.File([await (await fetch(name)).blob()], "photo"));
    const options = {{ dataTransfer: files, bubbles: true, cancelable: true }};
    page.getElementById("took").textContent = "";
    page.getElementById("drop").dispatchEvent(new view.DragEvent("drop", options));
    await until(() => text("took"));
    return {{ took: text("took"), best: [...page.querySelectorAll("#best li")].map(
      (item) => [...item.children].map((cell) => cell.textContent)) }};
  }};
  const photo = await dropped("/photo");
  const noPhoto = await dropped("/vit_edge.mjs");
  page.getElementById("prove").click();
  await until(() => /hold|Failed/i.test(text("verdict")));
  await told({{
    photo, noPhoto, about: text("about"), verdict: text("verdict"),
    rows: [...page.querySelectorAll("#proof tbody tr")].map(
      (row) => [...row.cells].map((cell) => cell.textContent)),
    scroll_px: page.documentElement.scrollWidth, width_px: view.innerWidth,
    paper: view.getComputedStyle(page.body).backgroundColor,
    requests: view.performance.getEntriesByType("resource").map((entry) => entry.name),
  }});
}} catch (error) {{
  await told({{ error: `${{error}} ${{error.stack}}` }});
}}
</script>
"""


class Site:
    """The page with a bundle and its probes, on a port of this machine."""

    def __init__(self, folder: Path, photo: Path) -> None:
        self.folder, self.photo = folder, photo
        self.width_px, self.found, self.done = 1280, dict[str, Any](), threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, self))
        self.address = f"http://127.0.0.1:{self.server.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    extensions_map: ClassVar = {
        ".mjs": "text/javascript", ".wasm": "application/wasm", ".html": "text/html",
    }  # fmt: skip

    def __init__(self, site: Site, *arguments: Any) -> None:
        self.site = site
        super().__init__(*arguments, directory=str(site.folder))

    def do_GET(self) -> None:
        if self.path == "/hold":
            self.site.done.wait(120)
            return self.send_error(404)
        content = {
            "/harness": lambda: HARNESS.format(width_px=self.site.width_px).encode(),
            "/photo": self.site.photo.read_bytes,
        }.get(self.path)
        if content is None:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if self.path == "/harness" else "image/jpeg")
        self.end_headers()
        self.wfile.write(content())
        return None

    def do_POST(self) -> None:
        self.site.found = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.site.done.set()

    def log_message(self, *_: object) -> None:
        """Keep the tests quiet."""


@contextlib.contextmanager
def served(
    repository: Path, node_modules: Path, folder: Path, bundle: Path, probed: Probed, photo: Path
) -> Iterator[Site]:
    """Lay the page out as its text says, and serve it."""
    folder.mkdir()
    for name, source in {
        "index.html": repository / "examples" / "web" / "index.html",
        "vit_edge.mjs": repository / "examples" / "js" / "vit_edge.mjs",
        "ort": node_modules / "onnxruntime-web" / "dist",
        "bundle": bundle,
        "probes": probed.probes,
    }.items():
        (folder / name).symlink_to(source)
    site = Site(folder, photo)
    thread = threading.Thread(target=site.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.done.set()
        site.server.shutdown()
        site.server.server_close()
        thread.join()


def looked_at(site: Site, profile: Path, *, width_px: int = 1280, scheme: str = "light") -> Any:
    """What the page shows once a photo was dropped and the proof ran."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip(f"no browser was found: none of {', '.join(NAMES)}")
    if run(browser, "--version").returncode:
        pytest.skip(f"{browser} does not start")
    site.width_px = width_px
    for _ in range(2):  # a browser on a busy machine may end before the page has begun
        site.found = {}
        site.done.clear()
        done = _browse(browser, profile, site, scheme)
        if site.found:
            break
    assert site.found, done.stderr
    assert "error" not in site.found, site.found
    return site.found


def _browse(
    browser: str, profile: Path, site: Site, scheme: str
) -> subprocess.CompletedProcess[str]:
    return run(
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--disable-background-networking", "--no-first-run", "--hide-scrollbars",
        f"--user-data-dir={profile}",
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", "--dump-dom",
        f"{site.address}/harness",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_classifies_a_photo_and_proves_itself(
    repository: Path, node_modules: Path, probed: Probed, photos: list[Path], tmp_path: Path
) -> None:
    photo = next(path for path in photos if path.stem == "cat")
    place = (repository, node_modules, tmp_path / "site", probed.bundle.path, probed, photo)
    with served(*place) as site, Predictor(probed.bundle) as predictor:
        found = looked_at(site, tmp_path / "profile")
        expected = predictor.predict(photo, 5).top
        assert [label for label, _ in found["photo"]["best"]] == [r.label for r in expected]
        for (_, share), ranked in zip(found["photo"]["best"], expected, strict=True):
            assert float(share.removesuffix(" %")) == pytest.approx(100 * ranked.score, abs=0.5)
        assert found["noPhoto"]["took"].startswith("Failed: ")
        assert found["verdict"] == "It holds on this device."
        assert len(found["rows"]) == 11 + 2
        pixels = [row for row in found["rows"] if row[0] == "pixels"]
        assert {row[2] for row in pixels} == {"0.00"}  # to the bit
        assert all(address.startswith(site.address) for address in found["requests"])
        assert "fp32" in found["about"]
        narrow = looked_at(site, tmp_path / "profile", width_px=PHONE_PX, scheme="dark")
        assert (narrow["scroll_px"], narrow["width_px"]) == (PHONE_PX, PHONE_PX)
        assert sum(map(int, narrow["paper"][4:-1].split(","))) < 150  # dark
        assert sum(map(int, found["paper"][4:-1].split(","))) > 600


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("fault", FAULTS)
def test_the_page_says_that_a_faulty_bundle_does_not_hold(
    repository: Path,
    node_modules: Path,
    probed: Probed,
    photos: list[Path],
    tmp_path: Path,
    fault: str,
) -> None:
    bundle = probed.with_fault(fault)
    place = (repository, node_modules, tmp_path / "site", bundle, probed, photos[0])
    with served(*place) as site:
        found = looked_at(site, tmp_path / "profile")
    assert found["verdict"] == "It does NOT hold on this device."
    wrong = {row[1] for row in found["rows"] if row[4] == "NO"}
    assert "pattern-large.png" in wrong
