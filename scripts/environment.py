"""Make, or find again, the virtual environment that the scripts run in; print its python.

    scripts/environment.py --extras cpu,export,dev

The environment is `.venv`, or what VIT_EDGE_VENV names. It is made anew when pyproject.toml, the
pins or the Python version change, and gains what is missing when more extras are asked for;
otherwise a second run takes a moment. Versions come from constraints/, packages from wherever
pip's own settings say (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OLDEST_PIP = (22, 2)  # the first with install --dry-run --report

# Megabytes of the Linux x86-64 wheels in constraints/py313.txt, those of more than 4 MB; all the
# others together are REST_MB.
SIZES_MB = {
    "fonttools": 5,
    "hf-xet": 5,
    "matplotlib": 10,
    "mypy": 15,
    "numpy": 17,
    "onnx": 9,
    "onnxruntime": 24,
    "opencv-python-headless": 62,
    "pillow": 7,
    "pyarrow": 55,
    "ruff": 11,
    "scipy": 35,
    "sympy": 6,
    "transformers": 13,
}
REST_MB = 20
TORCH_CPU_MB, TORCH_CUDA_MB = 190, 530
NVIDIA_MB = 2200  # what the CUDA build needs beside itself, triton included


def main(argv: list[str] | None = None) -> int:
    """Print the path of a python that has the extras installed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--extras", required=True, help="of pyproject.toml, separated by commas")
    parser.add_argument("--constraints", type=Path, help="default: the file of this Python")
    arguments = parser.parse_args(argv)
    extras = set(arguments.extras.split(","))
    constraints = arguments.constraints or default_constraints()
    folder = Path(os.environ.get("VIT_EDGE_VENV") or ROOT / ".venv").absolute()
    python = folder / "bin" / "python"
    record = folder / "vit-edge.json"
    key = fingerprint(constraints)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two scripts at once: the second waits for the first
        there = json.loads(record.read_text()) if record.exists() else {}
        if there.get("key") != key:
            create(folder)
            there = {"key": key, "extras": []}
        if not extras <= set(there["extras"]):
            record.unlink(missing_ok=True)
            install(python, extras, constraints)
            there["extras"] = sorted(extras | set(there["extras"]))
            record.write_text(json.dumps(there))
    print(python)
    return 0


def default_constraints() -> Path | None:
    """The pins of this Python; None, and a word about it, if it is newer than all of them."""
    path = ROOT / "constraints" / f"py{sys.version_info[0]}{sys.version_info[1]}.txt"
    if path.exists():
        return path
    say(f"no pins for Python {platform.python_version()} in constraints/: the newest versions that")
    say("pyproject.toml allows are used. PYTHON=python3.12 picks a Python with pins.")
    return None


def fingerprint(constraints: Path | None) -> str:
    """What the environment depends on, in one hash."""
    digest = hashlib.sha256(f"{sys.version} {platform.machine()} {ROOT}".encode())
    project, _, _ = (ROOT / "pyproject.toml").read_bytes().partition(b"\n[tool.ruff]")
    digest.update(project)  # how it is linted and tested below does not change what is installed
    digest.update(constraints.read_bytes() if constraints else b"")
    return digest.hexdigest()


def create(folder: Path) -> None:
    """Make an empty environment, in place of one that is outdated."""
    if folder.exists() and not (folder / "pyvenv.cfg").exists():
        raise SystemExit(f"{folder} is no virtual environment: move it away, or set VIT_EDGE_VENV")
    say(f"making {folder} with Python {platform.python_version()}")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        venv.create(folder, symlinks=True, with_pip=True)
    except subprocess.CalledProcessError:
        raise SystemExit(
            "this Python cannot make environments with pip in them; on Debian and Ubuntu: "
            "apt install python3-venv"
        ) from None
    python = folder / "bin" / "python"
    text = subprocess.check_output([python, "-m", "pip", "--version"], text=True)
    if tuple(int(part) for part in text.split()[1].split(".")[:2]) < OLDEST_PIP:
        pip(python, "--upgrade", "pip")


def install(python: Path, extras: Iterable[str], constraints: Path | None) -> None:
    """Say what will be downloaded, then install the checkout, editable, with its extras."""
    pins = ["--constraint", str(constraints)] if constraints else []
    project = f"{ROOT}[{','.join(sorted(extras))}]"
    # Built here and not in isolation, so that the build backends are pinned as well. setuptools:
    # tensorrt-rtx-cu13 is a source distribution, and the one that venv brings cannot make wheels.
    pip(python, *pins, "hatchling", "editables", "setuptools")
    arguments = [*pins, "--no-build-isolation", "--editable", project]
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        say("asking the package index what is needed ...")
        pip(python, "--quiet", "--dry-run", "--report", str(report), *arguments)
        announce(json.loads(report.read_text())["install"])
    pip(python, *arguments)


def announce(packages: list[dict[str, Any]]) -> None:
    """Say how much is going to be fetched, and how to have less where torch brings CUDA."""
    names = {package["metadata"]["name"].lower().replace("_", "-") for package in packages}
    cuda = any(name.startswith("nvidia-") for name in names)
    torch_mb = (TORCH_CUDA_MB + NVIDIA_MB if cuda else TORCH_CPU_MB) if "torch" in names else 0
    total_mb = torch_mb + sum(SIZES_MB.get(name, 0) for name in names) + REST_MB
    say(f"{len(names)} packages, about {total_mb:,} MB where pip's cache does not have them yet")
    if torch_mb:
        say(f"  of it about {torch_mb:,} MB for torch{' and the NVIDIA libraries' * cuda}")
    if cuda:
        say(f"  Without a GPU, PyTorch's CPU build is enough (about {TORCH_CPU_MB} MB): stop here,")
        say("  set PIP_EXTRA_INDEX_URL to the CPU index shown on PyTorch's installation page, and")
        say("  start again; the pinned version is taken from there by itself.")


def pip(python: Path, *arguments: str) -> None:
    """Run pip install, its output on our standard error; leave with its exit code if it fails."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    code = subprocess.run([*command, *arguments], stdout=sys.stderr, check=False).returncode
    if code:
        say("pip failed. Offline, or behind a mirror? pip's own settings are honoured:")
        say("PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, PIP_CERT, pip.conf.")
        raise SystemExit(code)


def say(text: str) -> None:
    """Tell the person in front of the terminal; standard output is for the result."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
