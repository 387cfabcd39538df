"""Nothing that vit_edge starts reports to anybody: no file, no look-up, no line."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vit_edge.bundle import Bundle

requires = ("onnxruntime",)

PREDICT = """
import sys
from vit_edge import Predictor
from vit_edge.machine.child import call_in_child
with Predictor(sys.argv[1], "ort") as predictor:
    predictor.predict(sys.argv[2])
call_in_child("onnxruntime:get_available_providers")
"""
IMPORTED_ALONE = "import onnxruntime"


def environment(home: Path, **changes: str) -> dict[str, str]:
    """A home of its own, with our records elsewhere, and nothing that the user has set."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("XDG_") and "TELEMETRY" not in name
    }
    return kept | {"HOME": str(home), "XDG_STATE_HOME": str(home.parent / "state")} | changes


def left_in(home: Path, code: str, *arguments: object, **changes: str) -> list[str]:
    """Run code in a process of its own; what is in its home afterwards, and what it printed."""
    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment(home, **changes), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = [str(path.relative_to(home)) for path in home.rglob("*")]
    return files + (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize("writable", [True, False])
def test_predicting_leaves_no_file_and_no_line(
    writable: bool, testing_bundle: Bundle, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")  # as unwritable as a read-only home
    changes = {} if writable else {"XDG_CACHE_HOME": str(tmp_path / "file")}
    assert not left_in(tmp_path / "home", PREDICT, testing_bundle.path, photos[0], **changes)


def test_this_onnxruntime_would_leave_a_file_otherwise(tmp_path: Path) -> None:
    if not left_in(tmp_path / "alone", IMPORTED_ALONE):
        pytest.skip("this onnxruntime reports nothing on this system")
    assert not left_in(tmp_path / "ours", "import vit_edge, onnxruntime")
    assert left_in(  # what the user has set stays
        tmp_path / "asked", "import vit_edge, onnxruntime", ORT_DISABLE_TELEMETRY="0"
    )


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_no_host_is_asked(testing_bundle: Bundle, photos: list[Path], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [
            "strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmmsg", "-o", str(trace),
            sys.executable, "-c", PREDICT, str(testing_bundle.path), str(photos[0]),
        ],
        env=environment(tmp_path / "home"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "ptrace" in done.stderr:
        pytest.skip("this system forbids strace")
    assert done.returncode == 0, done.stderr
    assert "AF_INET" not in trace.read_text(encoding="utf-8", errors="replace")


def test_the_hub_is_told_of_no_machine() -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        pytest.skip("huggingface_hub is not installed")
    code = (
        "import vit_edge, sys; from huggingface_hub import constants;"
        "from huggingface_hub.utils import build_hf_headers as h;"
        "agent = h(library_name='vit_edge')['user-agent']; print(agent);"
        "sys.exit(not constants.HF_HUB_DISABLE_TELEMETRY or 'torch' in agent)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(Path.home()), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
