"""What mkdocs does besides: pages made from the code, pages from elsewhere, a drawing.

mkdocs.yml names this file as a hook. Links of a page to files outside docs/ lead to the page that
is made of that file; of what the site does not show, the words stay.
"""

from __future__ import annotations

import argparse
import ast
import html
import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vit_edge.cli.verbs import LINES, parser_of

REPOSITORY = Path(__file__).resolve().parents[1]
# Files outside docs/ that the site shows, by the name that they have there.
ELSEWHERE = {
    "docker.md": "docker/README.md",
    "examples.md": "examples/README.md",
    "jetson.md": "examples/jetson.md",
    "report.md": "benchmarks/REPORT.md",
    "peers.md": "benchmarks/peers/README.md",
    "security.md": "SECURITY.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
COMMANDS = "reference/cli.md"
NOTEBOOK, CELLS = "notebook.md", "docs/notebooks/export.ipynb"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_FLOOR = re.compile(r"^ +(\d+)  (\S.*)$", re.MULTILINE)
_FIELDS = re.compile(r"<!-- fields of (\S+) -->")
_ARROW = re.compile(r"^ +\S+\[([\w.]+)\] --> \S+\[([\w.]+)\]$", re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made here."""
    from mkdocs.structure.files import File

    for name, source in ELSEWHERE.items():
        text = linked((REPOSITORY / source).read_text(encoding="utf-8"), source)
        text = text.replace(
            "<details>", '<details markdown="1">'
        )  # what is folded is Markdown, too
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, COMMANDS, content=command_line()))
    files.append(File.generated(config, NOTEBOOK, content=notebook()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links out of docs/ to where the site has that file, and draw the graph of rooms."""
    name = page.file.src_uri
    if name not in {*ELSEWHERE, COMMANDS, NOTEBOOK}:
        markdown = linked(markdown, f"docs/{name}")
    markdown = _FIELDS.sub(lambda place: fields(place[1]), markdown)
    return re.sub(r"```mermaid\ngraph TD\n.*?```", lambda _: rooms(markdown), markdown, flags=re.S)


def linked(markdown: str, source: str) -> str:
    """Rewrite the links of a file of the repository for the site.

    Args:
        markdown: The file's text.
        source: Its path in the repository.
    """
    kept: list[str] = []

    def keep(block: re.Match[str]) -> str:
        kept.append(block[0])
        return f"\0{len(kept) - 1}\0"

    here = posixpath.dirname(source)
    at = "" if not source.startswith("docs/") else posixpath.dirname(source.removeprefix("docs/"))

    def lead(link: re.Match[str]) -> str:
        picture, words, target, anchor = link[1], link[2], link[3], link[4] or ""
        if not target or "://" in target:
            return link[0]
        path = posixpath.normpath(posixpath.join(here, target))
        shown = {original: name for name, original in (*ELSEWHERE.items(), (NOTEBOOK, CELLS))}.get(
            path
        )
        if shown is None and path.startswith("docs/"):
            shown = path.removeprefix("docs/")
        if shown is None:
            return words
        return f"{picture}[{words}]({posixpath.relpath(shown, at or '.')}{anchor})"

    text = _LINK.sub(lead, _FENCE.sub(keep, markdown))
    return re.sub("\0(\\d+)\0", lambda place: kept[int(place[1])], text)


def notebook() -> str:
    """The notebook as a page: its text, its code, and what the code printed."""
    lines = []
    for cell in json.loads((REPOSITORY / CELLS).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            lines += [source, ""]
            continue
        lines += ["```python", source, "```", ""]
        printed = "".join("".join(one.get("text", "")) for one in cell.get("outputs", ()))
        if printed:
            lines += ["```text", printed.rstrip(), "```", ""]
    return linked("\n".join(lines) + "\n", CELLS)


# The command line


def command_line() -> str:
    """The page of every verb, from its own parser."""
    lines = [
        "# Command line",
        "",
        "`vit-edge --help` lists the verbs, `vit-edge VERB --help` the options of one.",
        "`python -m vit_edge.VERB` is the same as `vit-edge VERB`.",
        "Exit codes: 0 fine, 1 a bug of ours, 2 wrong usage, 3 bad input, 4 a check failed.",
        "",
    ]
    for verb, line in LINES.items():
        lines += section(verb, line, parser_of(verb))
    return "\n".join(lines) + "\n"


def section(verb: str, line: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """A verb: what it does, how it is called, its options, an example."""
    yield f"## vit-edge {verb}"
    yield ""
    yield f"*{line[0].upper()}{line[1:]}.* {html.escape(parser.description or '', quote=False)}"
    yield ""
    words = [f"[{_takes(each)}]" if each.nargs in ("?", "*") else _takes(each)
             for each in parser._actions if not each.option_strings]  # fmt: skip
    yield f"    {' '.join(['vit-edge', verb, *words, '[OPTION ...]'])}"
    yield ""
    yield "| argument | meaning |"
    yield "|---|---|"
    yield from (row(parser, each) for each in parser._actions if each.help != argparse.SUPPRESS)
    yield ""
    if parser.epilog:
        yield f"```text\n{parser.epilog.strip()}\n```"
        yield ""


def row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """An argument of a command."""
    takes = _takes(action)
    names = [f"{name} {takes}".strip() for name in action.option_strings] or [takes]
    meaning = parser._get_formatter()._expand_help(action) if action.help else ""
    if action.choices is not None and action.option_strings and not action.metavar:
        meaning += f" (one of {', '.join(map(str, action.choices))})"
    shown = "<br>".join(f"<code>{_cell(name)}</code>" for name in names)
    return f"| {shown} | {_cell(meaning)} |"


def _takes(action: argparse.Action) -> str:
    """The word that stands for the value of an argument."""
    if action.nargs == 0:
        return ""
    shown = action.metavar or action.dest.upper()
    return shown if isinstance(shown, str) else " ".join(shown)


def _cell(text: str) -> str:
    """Text for a cell of a table, in which nothing is markup but code between backticks."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "&#124;")


# The fields of results


def fields(source: str) -> str:
    """A table for each class of a module that has fields, from its source and comments.

    Args:
        source: The module's path in the repository.
    """
    text = (REPOSITORY / source).read_text(encoding="utf-8")
    lines, made = text.splitlines(), []
    for node in ast.parse(text).body:
        if not isinstance(node, ast.ClassDef):
            continue
        rows = [
            f"| `{one.target.id}` | `{_kind(one.annotation)}` | {_comment(lines, one)} |"
            for one in node.body
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        ]
        if rows:
            said = (ast.get_docstring(node) or "").partition("\n")[0]
            made += [f"### {node.name}", "", said, ""]
            made += ["| field | kind | |", "|---|---|---|", *rows, ""]
    return "\n".join(made)


def _kind(annotation: ast.expr) -> str:
    """A type as it is written, without what `strict` checks besides."""
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple):
        checked = ast.unparse(annotation.value) == "Annotated"
        annotation = annotation.slice.elts[0] if checked else annotation
    return ast.unparse(annotation).replace("|", "or")


def _comment(lines: Sequence[str], field: ast.AnnAssign) -> str:
    """What stands behind a field; a comment for a tool is none."""
    _, _, said = lines[(field.end_lineno or field.lineno) - 1].partition("  # ")
    return html.escape(said.removeprefix("fmt: skip"), quote=False).replace("|", "\\|")


# The graph of rooms


def rooms(markdown: str) -> str:
    """Draw the rooms by floor, and an arrow where one imports another."""
    floors = [names.split("  ") for _, names in _FLOOR.findall(markdown)]
    width, high = 1000, 78
    places = {
        name: ((at + 0.5) * width / len(names), 30 + floor * high)
        for floor, names in enumerate(floors)
        for at, name in enumerate(names)
    }
    shapes = []
    for upper, lower in _ARROW.findall(markdown):
        (x, y), (to_x, to_y) = places[_room(upper)], places[_room(lower)]
        bend = (x + to_x) / 2 + (0 if to_y - y <= high else 14)  # around the rooms between
        shapes.append(
            f'<path d="M{x:.0f} {y + 12} Q{bend:.0f} {(y + to_y) / 2:.0f} {to_x:.0f} {to_y - 12}"/>'
        )
    for name, (x, y) in places.items():
        shown = name.removeprefix("backends.")
        shapes.append(f'<text x="{x:.0f}" y="{y + 4}">{shown}</text>')
    return (
        f'<div><svg class="rooms" viewBox="0 0 {width} {high * len(floors)}" role="img" '
        f'aria-label="Which room imports which: the table above says it in words">'
        f"{''.join(shapes)}</svg></div>"
    )


def _room(name: str) -> str:
    """A room as the table of floors writes it; mermaid has no leading underscores."""
    return "__main__" if name == "main" else name
