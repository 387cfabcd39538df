"""vit-edge parity merge: results of several devices side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_edge import cli
from vit_edge.bundle import Bundle
from vit_edge.bundle.bundle import sha256_of
from vit_edge.errors import InputError, UsageError
from vit_edge.parity.report.read import read_results
from vit_edge.parity.report.sections import merged, overall, separate_note
from vit_edge.parity.report.text import text_of
from vit_edge.parity.result import SCHEMA_VERSION, Result, exit_code
from vit_edge.report.write import write_report
from vit_edge.strict import json_from_record


def parser() -> cli.Parser:
    """The command line."""
    options = cli.Parser(
        "parity merge",
        "Show results of several devices, which `vit-edge parity BUNDLE "
        "--out FILE` wrote there, side by side. Results of the same model and the same golden "
        "file share a table; others get sections of their own.",
        "example: vit-edge parity merge jetson.json laptop.json "
        "--html parity.html --bundle bundles/base-patch16-224-int8\n"
        "exit codes: 0 every run passed (or is inconclusive, without --strict), 4 not",
    )
    options.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="JSON files")
    cli.add_out(options, "FILE", "write one HTML page into .html, JUnit XML into .xml")
    options.add_argument("--html", type=Path, metavar="FILE", help="write one HTML page")
    options.add_argument(
        "--bundle", type=Path, metavar="DIR", help="for the page: where pictures and labels are"
    )
    options.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML")
    cli.add_json(options)
    options.add_argument(
        "--strict", action="store_true", help="exit with 4 where the images do not decide"
    )
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Merge from the command line."""
    return cli.guarded(lambda: _run(parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    cli.by_suffix(arguments, {".html": "html", ".htm": "html", ".xml": "junit"})
    if arguments.bundle is not None and arguments.html is None:
        raise UsageError("--bundle is for the pictures and labels of --html FILE, which is missing")
    results = read_results(arguments.results)
    if arguments.html is not None:
        _write_html(arguments.html, arguments.bundle, results)
    if arguments.junit is not None:
        from vit_edge.parity.report.junit import junit_xml

        write_report(arguments.junit, junit_xml(results, strict=arguments.strict))
    print(json.dumps(as_json(results), indent=2) if arguments.json else "\n".join(text_of(results)))
    return exit_code(results, strict=arguments.strict)


def _write_html(path: Path, bundle_path: Path | None, results: Sequence[Result]) -> None:
    from vit_edge.parity.report.html import html_page
    from vit_edge.parity.report.pictures import Pictures, pictures_of

    pictures: Pictures = {}
    labels = None
    if bundle_path is not None:
        bundle = Bundle.read(bundle_path)
        models = {result.bundle.model_sha256 for result in results}
        golden_sha256 = sha256_of(bundle.golden_path)
        same = [result for result in results if result.golden.sha256 == golden_sha256]
        if bundle.model_sha256 not in models or not same:
            raise InputError(
                f"{bundle_path}: none of the results is of this bundle's "
                f"{'golden.npz' if bundle.model_sha256 in models else 'model'}, so neither are its "
                "pictures and labels; name the bundle that was compared, or leave --bundle out"
            )
        labels = bundle.labels if models == {bundle.model_sha256} else None
        for result in same:
            pictures |= pictures_of(bundle.golden_path, result)
    write_report(path, html_page(results, pictures=pictures, labels=labels))


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """The sections, ready for JSON: what may be compared stands together."""
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": overall(results),
        "note": separate_note(merged(results)),
        "sections": [
            {
                "bundle": json_from_record(section.bundle),
                "golden": json_from_record(section.golden),
                "against": json_from_record(section.first.against),
                "runs": [
                    {"device": column.device, "machine": column.result.machine}
                    | json_from_record(column.run)
                    for column in section.columns
                ],
            }
            for section in merged(results)
        ],
    }
