"""What the command lines share: dispatch, options, and errors without tracebacks."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import re
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from vit_edge import backends
from vit_edge.backends import auto
from vit_edge.cli.advice import refusal_of_verb
from vit_edge.cli.parser import Parser as Parser
from vit_edge.cli.refusals import refusal_of_machine
from vit_edge.cli.streams import ReaderGoneError, prepared_streams
from vit_edge.cli.table import printable as printable
from vit_edge.cli.table import table as table
from vit_edge.cli.verbs import VERBS as VERBS
from vit_edge.cli.verbs import overview
from vit_edge.cli.versions import versions
from vit_edge.errors import UsageError, VitEdgeError

_UNITS = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30,
}  # fmt: skip


def guarded(run: Callable[[], int]) -> int:
    """Run a command, the reading of its arguments included, and return its exit code.

    Our own errors are printed without a traceback. Printing works on any terminal: see
    streams.prepared_streams.
    """
    _allow_open_files()
    with prepared_streams(), _messages_on_stderr():
        try:
            code = _exit_code(run)
        except SystemExit:  # of argparse, which may have printed its help
            if lost := _exit_code(_flush):
                return lost
            raise
        return code or _exit_code(_flush)


def _exit_code(run: Callable[[], int]) -> int:
    try:
        try:
            return run()
        except (OSError, MemoryError) as error:
            refusal = refusal_of_machine(error)
            if refusal is None:
                raise
            raise refusal from error
    except VitEdgeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ReaderGoneError:
        return 0


def _allow_open_files() -> None:
    """Raise the soft limit of open files to the hard one, which costs nothing."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _flush() -> int:
    sys.stdout.flush()
    return 0


def bundle_parser(verb: str, description: str, example: str) -> Parser:
    """What the verbs that work on a bundle have in common: BUNDLE and --json.

    Args:
        verb: As it is typed behind vit-edge.
        description: What it does.
        example: A real call, and what else is worth a line at the end.
    """
    parser = Parser(verb, description, f"example: {example}")
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's directory")
    add_json(parser)
    return parser


def add_json(parser: Parser) -> None:
    """Add --json to a verb with a result."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def add_out(parser: Parser, metavar: str, help: str, *, required: bool = False) -> None:
    """Add --out to a verb that writes.

    Args:
        parser: The verb's.
        metavar: FILE or DIR.
        help: What is written.
        required: Whether it has to be given.
    """
    parser.add_argument("-o", "--out", type=Path, metavar=metavar, help=help, required=required)


def by_suffix(arguments: argparse.Namespace, options: Mapping[str, str]) -> None:
    """Give what --out names to the option that writes its kind, by a table of suffix -> option.

    Raises:
        UsageError: No option writes such a file, or another one is given for that kind.
    """
    if arguments.out is None:
        return
    option = options.get(arguments.out.suffix.lower())
    if option is None:
        raise UsageError(f"--out {arguments.out}: it must end in {', '.join(options)}")
    if getattr(arguments, option) is not None:
        raise UsageError(f"--out {arguments.out} and --{option}: give one of them")
    setattr(arguments, option, arguments.out)


def add_backend(parser: Parser) -> None:
    """Add --backend to a verb that runs one."""
    parser.add_argument(
        "-b", "--backend", default=backends.AUTO, metavar="NAME", help=f"one {backend_help()}"
    )


def backend_help() -> str:
    """What backends there are, and which is taken by default."""
    names = ", ".join(backends.names())
    return (
        f"of {names}; default: {backends.AUTO}, what `build --tune` found best, "
        f"or else {auto.DEFAULT}"
    )


def size_bytes(text: str) -> int:
    """Read a size such as 100MB, 64MiB or 2GB.

    Raises:
        UsageError: It is none.
    """
    parts = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(parts[2].upper()) if parts else None
    if parts is None or unit is None or float(parts[1]) == 0:
        raise UsageError(f"{text!r} is no size; write a number with {', '.join(_UNITS)}: 100MB")
    return int(float(parts[1]) * unit)


def limit_bytes(limit: str | int | None) -> int | None:
    """Read a limit of memory: bytes, or a size such as 100MB; None for none.

    Raises:
        UsageError: It is none of these.
    """
    if isinstance(limit, str):
        return size_bytes(limit)
    if limit is not None and (type(limit) is not int or limit < 1):
        raise UsageError(f"--memory-limit must be bytes or a size such as 100MB, not {limit!r}")
    return limit


def whole_numbers(text: str, option: str) -> list[int]:
    """Read whole numbers separated by commas.

    Raises:
        UsageError: They are not.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text}: expected whole numbers, such as 1,8") from None


@contextlib.contextmanager
def _messages_on_stderr() -> Iterator[None]:
    """Show what vit_edge logs, from INFO on, and leave the logging of a caller as it was."""
    logger = logging.getLogger("vit_edge")
    level, handler = logger.level, logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def main(argv: list[str] | None = None) -> int:
    """`vit-edge VERB ...`, the same as `python -m vit_edge.VERB ...`."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in VERBS:
        return int(importlib.import_module(VERBS[arguments[0]]).main(arguments[1:]))
    return guarded(lambda: _without_verb(arguments))


def _without_verb(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        print(versions())
    elif arguments[:1] == ["--completion"]:
        from vit_edge.cli.completion import completion  # which opens every verb

        print(completion("".join(arguments[1:])))
    elif not arguments or arguments[0] in {"-h", "--help"}:
        print(overview())
    else:
        print(f"vit-edge: {refusal_of_verb(arguments)}\nhelp: vit-edge --help", file=sys.stderr)
        return UsageError.exit_code
    return 0
