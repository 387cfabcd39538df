"""The environments of the competitors: one for each file of pinned packages, made once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from script import REPOSITORY

from vit_edge.errors import BackendError

PEERS = Path(__file__).with_name("peers")


def tool_python(work: Path, name: str) -> str:
    """Python of a tool's environment, made below `work` from requirements-NAME.txt.

    Raises:
        BackendError: It does not install here.
    """
    if name == "none":  # the standard library, NumPy, or what vit_edge itself is installed with
        return sys.executable
    try:
        return str(environment(work / f"venv-{name}", f"requirements-{name}.txt"))
    except subprocess.CalledProcessError as error:
        raise BackendError(f"requirements-{name}.txt does not install here: {error}") from None


def environment(folder: Path, requirements: str) -> Path:
    """A competitors' environment, made unless pip has finished there with the same pins before."""
    python, done, pins = folder / "bin" / "python", folder / "installed", PEERS / requirements
    wanted = pins.read_text(encoding="utf-8")
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        done.unlink(missing_ok=True)  # until pip has finished it is neither of the two
        run(Path(sys.executable), "-m", "venv", folder)
        run(python, "-m", "pip", "install", "-r", pins)
        done.write_text(wanted, encoding="utf-8")
    return python


def child_environment() -> dict[str, str]:
    """Ours, with this checkout importable in the competitors' environments."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def run(python: Path, *arguments: str | Path) -> None:
    """Run Python to its end; what it prints goes to stderr."""
    argv = [str(part) for part in (python, *arguments)]
    subprocess.run(argv, check=True, stdout=sys.stderr, env=child_environment())
