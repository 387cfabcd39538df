"""Completion for the shell: a script that shtab writes once, so that no key press starts Python."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from vit_edge import backends
from vit_edge.cli.parser import Parser
from vit_edge.cli.verbs import LINES, parser_of
from vit_edge.errors import MissingExtraError, UsageError

SHELLS = ("bash", "zsh", "tcsh")
_FOLDERS = {"DIR", "BUNDLE", "BUNDLE2"}  # metavars
_FILES = {
    "FILE", "FILE.npy", "INPUT", "SOURCE", "RESULTS", "RESULT", "A", "B", "NAME|FILE",
}  # fmt: skip


def completion(shell: str) -> str:
    """The script that a shell reads, of every verb and option.

    Raises:
        UsageError: No such shell.
        MissingExtraError: shtab is not installed.
    """
    if shell not in SHELLS:
        raise UsageError(f"no completion for {shell!r}; there is one for {', '.join(SHELLS)}")
    try:
        shtab: Any = importlib.import_module("shtab")
    except ModuleNotFoundError:
        raise MissingExtraError(
            "completion needs shtab, which is not installed; type: "
            "pip install 'vit-edge[completion]'"
        ) from None
    return str(shtab.complete(_tree(shtab), shell))


def _tree(shtab: Any) -> argparse.ArgumentParser:
    """One parser of all verbs, those behind others included."""
    top = argparse.ArgumentParser("vit-edge", allow_abbrev=False)
    top.add_argument("--version", action="store_true", help="print the versions")
    top.add_argument("--completion", choices=SHELLS, help="print a completion script")
    groups: dict[str, Any] = {"": top.add_subparsers(parser_class=argparse.ArgumentParser)}
    for verb, line in LINES.items():
        first, _, second = verb.partition(" ")
        parent = groups[first if second else ""]
        node = parent.add_parser(second or first, help=line, add_help=False)
        if any(other.startswith(f"{verb} ") for other in LINES):
            groups[verb] = node.add_subparsers(parser_class=argparse.ArgumentParser)
        _copy(parser_of(verb), node, shtab)
    return top


def _copy(parser: Parser, node: argparse.ArgumentParser, shtab: Any) -> None:
    """Add what a verb takes, with what may stand there."""
    node._add_container_actions(parser)
    for action in node._actions:
        untyped: Any = action
        if action.dest == "backend" and action.nargs is None:
            action.choices = backends.names()
        elif action.metavar in _FOLDERS:
            untyped.complete = shtab.DIRECTORY
        elif action.metavar in _FILES:
            untyped.complete = shtab.FILE
