"""`bench report`: results as Markdown, as a page, and as the tables of a README."""

from __future__ import annotations

import argparse
from pathlib import Path

from vit_edge import cli
from vit_edge.bench.report.inserts import with_tables
from vit_edge.bench.report.machines import machines
from vit_edge.bench.report.markdown import COMMAND, markdown
from vit_edge.bench.results.results import read_runs
from vit_edge.errors import InputError
from vit_edge.report.write import write_report


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m vit_edge.bench report",
        description="Make a report of results, of one machine or several: as Markdown (on stdout, "
        "if no file is named), as one self-contained HTML page (pip install 'vit-edge[report]'), "
        "or into a README between two markers.",
        epilog=f"example: {COMMAND} --markdown benchmarks/REPORT.md --html report.html",
    )
    made.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="JSON files")
    made.add_argument("--markdown", type=Path, metavar="FILE", help="write Markdown")
    made.add_argument("--html", type=Path, metavar="FILE", help="write one HTML page")
    made.add_argument(
        "--readme",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="write the tables between the markers of these documents anew",
    )
    return made


def main(argv: list[str]) -> int:
    """Report from the command line; `argv` without the word report."""
    arguments = parser().parse_args(argv)
    return cli.guarded(lambda: _report(arguments))


def _report(arguments: argparse.Namespace) -> int:
    found = machines(read_runs(arguments.results))
    made: dict[Path, str] = {}  # written only when all of it could be made
    if arguments.html is not None:
        from vit_edge.bench.report.html import html_page

        made[arguments.html] = html_page(found)
    for document in arguments.readme:
        made[document] = with_tables(_text(document), found)
    if arguments.markdown is not None:
        made[arguments.markdown] = markdown(found)
    for path, text in made.items():
        write_report(path, text)
    if not made:
        print(markdown(found), end="")
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
