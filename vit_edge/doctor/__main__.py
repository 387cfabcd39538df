"""vit-edge doctor: what is here, what runs here, and what to install otherwise."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from vit_edge import cli
from vit_edge.doctor.api import DEFAULT_FOLDER, doctor
from vit_edge.errors import BundleError


def parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "doctor",
        "Say what is on this machine, which backends run each bundle here (each is "
        "asked for an answer, in a process of its own), and what to install otherwise. Exit code "
        "3 if a bundle that was named cannot be read, 0 otherwise.",
        "example: vit-edge doctor bundles/base-patch16-224-int8\n"
        "         vit-edge doctor --json > device.json",
    )
    parser.add_argument(
        "bundles",
        nargs="*",
        type=Path,
        metavar="BUNDLE",
        help=f"a bundle, or a directory of bundles; default: ./{DEFAULT_FOLDER}, if it is there",
    )
    cli.add_json(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Diagnose from the command line."""
    return cli.guarded(lambda: _run(parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    report = doctor(*arguments.bundles)
    print(
        json.dumps(report.as_dict(), indent=2, default=str) if arguments.json else report.as_text()
    )
    unreadable = bool(report.no_bundles) or any(bundle.problem for bundle in report.bundles)
    return BundleError.exit_code if arguments.bundles and unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
