"""`bench report`: results as Markdown, and as a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from vit_edge import cli
from vit_edge.bench.report.machines import machines
from vit_edge.bench.report.markdown import markdown
from vit_edge.bench.results.results import read_runs
from vit_edge.report.write import write_report

_BY_SUFFIX = {".html": "html", ".htm": "html", ".md": "markdown", ".markdown": "markdown"}


def parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "bench report",
        "Make a report of results, of one machine or several: as Markdown (on stdout, "
        "if no file is named), or as one self-contained HTML page (pip install "
        "'vit-edge[report]').",
        "example: vit-edge bench report results.json -o report.html",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="JSON files")
    cli.add_out(parser, "FILE", "write it: Markdown into .md, one HTML page into .html")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write Markdown")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one HTML page")
    return parser


def main(argv: list[str]) -> int:
    """Report from the command line; `argv` without the word report."""
    return cli.guarded(lambda: _report(parser().parse_args(argv)))


def _report(arguments: argparse.Namespace) -> int:
    cli.by_suffix(arguments, _BY_SUFFIX)
    found = machines(read_runs(arguments.results))
    pages: dict[Path, str] = {}  # written only when all of them could be made
    if arguments.html is not None:
        from vit_edge.bench.report.html import html_page

        pages[arguments.html] = html_page(found)
    if arguments.markdown is not None:
        pages[arguments.markdown] = markdown(found)
    for path, text in pages.items():
        write_report(path, text)
    if not pages:
        print(markdown(found), end="")
    return 0
