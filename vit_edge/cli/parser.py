"""A command line: what argparse does, and errors that say what to type instead."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from vit_edge.cli import advice, words
from vit_edge.cli.versions import versions


class Parser(argparse.ArgumentParser):
    """The command line of one verb.

    Long options are never abbreviated: a script that says --calib would break with the next option
    of that beginning. Options and other words may stand in any order.
    """

    def __init__(self, verb: str, description: str, epilog: str) -> None:
        """Begin with --help and --version.

        Args:
            verb: As it is typed behind vit-edge: export, parity record.
            description: What it does.
            epilog: Real calls, and what else is worth a line at the end.
        """
        super().__init__(
            prog=f"vit-edge {verb}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.verb = verb
        self.old: dict[str, str] = {}  # an old spelling -> what it is called now
        self.add_argument(
            "--version",
            action=_Version,
            nargs=0,
            default=argparse.SUPPRESS,
            help="print the versions of vit-edge and the runtimes",
        )

    def add_argument(self, *flags: Any, **options: Any) -> argparse.Action:
        """As argparse's; the names of precisions and backends are read in any case."""
        if not {"--precision", "--backend"}.isdisjoint(flags):
            options.setdefault("type", str.lower)
        return super().add_argument(*flags, **options)

    def rename(self, old: str, new: str) -> None:
        """Let an option's old spelling go on working: --help is silent about it, its use is not."""
        self.old[old] = new

    def options(self) -> dict[str, argparse.Action]:
        """Every option that --help shows, by each of its spellings."""
        return {flag: action for action in self._actions for flag in action.option_strings}

    def positionals(self) -> list[argparse.Action]:
        """The words without a dash that are expected."""
        return [action for action in self._actions if not action.option_strings]

    def parse_known_args(  # type: ignore[override]  # argparse has overloads for namespaces
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse; old spellings are renewed, and what is none of ours is refused with a remedy."""
        line = self.read(sys.argv[1:] if args is None else args)
        for old, new in line.renewed:
            print(f"{old} is called {new} now", file=sys.stderr)
        refusal = advice.refusal(self, line)
        if refusal is not None:
            self.refuse(refusal)
        return super().parse_known_args(line.ordered(), namespace)

    def read(self, typed: Sequence[str]) -> words.Line:
        """Read words, those that will be refused included."""
        return words.read_line(typed, self.options(), self.old)

    def refuse(self, text: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: {text}\nhelp: {self.prog} --help\n")

    def error(self, message: str) -> NoReturn:
        """End with exit code 2; the usage of thirty options is left to --help."""
        example = re.search(r"vit-edge (?:[^\n\\]|\\\n)+", self.epilog or "")
        shown = f"\nfor example:\n  {example[0]}" if example else ""
        self.refuse(f"error: {message}{shown}")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(versions())
        parser.exit()
