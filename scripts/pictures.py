"""Take the pictures of README.md and docs/: the page of a comparison and that of a benchmark.

    python scripts/pictures.py             both
    python scripts/pictures.py bench       one of them

It needs the packages that export and draw, and chromium. Beside the pictures it writes what they
were taken of, so that a test notices when the pages look otherwise now.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURES = REPOSITORY / "docs" / "pictures"
TAKEN_OF = PICTURES / "taken-of.json"
LARGEST_BYTES = 150_000
WIDTH_PX = 1200
# How high each picture is, and the files that decide how its page looks.
HEIGHTS_PX = {"parity": 900, "bench": 900}
LOOKS = {
    "parity": ("vit_edge/report", "vit_edge/parity/report"),
    "bench": ("vit_edge/report", "vit_edge/bench/report"),
}
RESULTS = "benchmarks/results/amd-epyc-2-cpus.json"
SEEDED = "base-patch16-224"  # what the picture of the benchmark shows


def main() -> int:
    """Take the pictures anew."""
    pages = {"parity": parity_page, "bench": bench_page}
    taken_of = json.loads(TAKEN_OF.read_text()) if TAKEN_OF.exists() else {}
    for name in sys.argv[1:] or pages:
        with tempfile.TemporaryDirectory() as scratch:
            take(name, pages[name](Path(scratch)), Path(scratch))
        taken_of[name] = looks(name)
    TAKEN_OF.write_text(json.dumps(taken_of, indent=2) + "\n")
    return 0


def looks(name: str) -> str:
    """A hash of what decides how a page looks: templates, styles, and the code that fills them."""
    digest = hashlib.sha256()
    for folder in LOOKS[name]:
        for path in sorted((REPOSITORY / folder).rglob("*")):
            if path.suffix in {".html", ".css", ".js"} or path.name in {"plots.py", "drawing.py"}:
                digest.update(path.relative_to(REPOSITORY).as_posix().encode() + b"\0")
                digest.update(path.read_bytes())
    return digest.hexdigest()


def parity_page(folder: Path) -> Path:
    """The page of two backends that answer for the embedded model in INT8."""
    bundle, page = folder / "cifar10-int8", folder / "parity.html"
    call("export", "--checkpoint", "embedded", "--precision", "int8", "--calibration",
         "vit_edge/data/photos", "--out", str(bundle))  # fmt: skip
    call("parity", str(bundle), "--backend", "ort,openvino", "--html", str(page))
    return page


def bench_page(folder: Path) -> Path:
    """The page of the newest measured runs, of one variant."""
    results, page = folder / "results.json", folder / "bench.html"
    kept = json.loads((REPOSITORY / RESULTS).read_text())
    for run in kept["runs"]:
        run["configurations"] = [
            entry
            for entry in run["configurations"]
            if entry["name"].endswith(" batch 1 single-stream") and is_shown(entry)
        ]
        run["warnings"] = [text for text in run["warnings"] if " batch " not in text]
    results.write_text(json.dumps(kept))
    call("bench", "report", str(results), "--html", str(page))
    return page


def is_shown(entry: dict[str, Any]) -> bool:
    """Whether a configuration is of the one variant, at its size, as the backend comes."""
    bundle = entry["bundle"] or {}
    at_its_size = bundle.get("variant") == SEEDED and bundle.get("image_hw") == [224, 224]
    return at_its_size and entry["stage"] == "model" and not entry["options"]


def call(verb: str, *arguments: str) -> None:
    """Run a verb of vit-edge on the code that stands here."""
    subprocess.run(
        [sys.executable, "-c", "from vit_edge.cli import main; raise SystemExit(main())",
         verb, *arguments],
        cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def take(name: str, page: Path, folder: Path) -> None:
    """Photograph the top of a page, and keep it as a small file.

    Raises:
        SystemExit: chromium is not here, or the picture is too large.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        raise SystemExit("chromium was not found: apt-get install chromium")
    shot, kept = folder / f"{name}.png", PICTURES / f"{name}.webp"
    subprocess.run(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--force-color-profile=srgb", "--blink-settings=preferredColorScheme=1",
         f"--user-data-dir={folder / 'profile'}", f"--screenshot={shot}",
         f"--window-size={WIDTH_PX},{HEIGHTS_PX[name]}", page.as_uri()],
        check=True, capture_output=True,
    )  # fmt: skip
    with Image.open(shot) as image:
        image.convert("RGB").save(kept, "WEBP", quality=82, method=6)
    size = kept.stat().st_size
    if size > LARGEST_BYTES:
        raise SystemExit(f"{kept.name} takes {size} bytes, at most {LARGEST_BYTES} are wanted")
    print(f"{kept.relative_to(REPOSITORY)}: {size // 1000} kB")


if __name__ == "__main__":
    sys.exit(main())
