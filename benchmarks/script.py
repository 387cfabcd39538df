"""What the scripts of this folder share: the command line, where a measurement was made, starts."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vit_edge import cli
from vit_edge.machine import cpus

REPOSITORY = Path(__file__).resolve().parents[1]
PHOTO = REPOSITORY / "vit_edge" / "data" / "photos" / "cat.jpg"


def parser(documentation: str | None) -> argparse.ArgumentParser:
    """A command line whose help is the script's docstring."""
    return argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run(
    parser: argparse.ArgumentParser,
    act: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
) -> int:
    """Read the command line and act on it; an error of ours is one line, and its exit code."""
    arguments = parser.parse_args(argv)
    return cli.guarded(lambda: act(arguments))


def command_line() -> list[str]:
    """How this script was started, for the facts of a run."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def machine() -> str:
    """The processor that the numbers belong to."""
    return f"{cpus.cpu_model()}, {cpus.usable_cpus()} CPUs, {' '.join(cpus.cpu_features())}"


def start(code: str, *arguments: object) -> None:
    """Run a fresh Python with this code to its end: what a cold start is timed by."""
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
