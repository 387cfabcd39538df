"""vit-edge evaluate BUNDLE --images DIR: how often is the model right?"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit_edge import __version__, cli
from vit_edge.bundle import Bundle
from vit_edge.errors import InputError, UsageError
from vit_edge.evaluate.accuracy import accuracy, drop, worst_classes
from vit_edge.evaluate.answers import Asked, ask, class_names
from vit_edge.evaluate.journal import Journal
from vit_edge.images.folders import FOLDERS, read_labelled
from vit_edge.machine.facts import machine_facts

SCHEMA_VERSION = 1


def result(bundle: Bundle, asked: Asked, against: tuple[Bundle, Asked] | None) -> dict[str, Any]:
    """What an evaluation found, ready for JSON.

    Args:
        bundle: The candidate.
        asked: Its answers.
        against: The reference and its answers to the same images.
    """
    labels = class_names(bundle)
    classes = len(labels)
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": f"vit_edge {__version__}",
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "bundle": _described(bundle, asked.facts),
        "scores": bundle.manifest.scores,
        "classes": len(bundle.labels),
        "images": int(asked.answers.read.sum()),
        "unreadable": asked.unreadable.as_dict(),
        **accuracy(asked.answers, classes),
        "worst_classes": worst_classes(asked.answers, labels),
        "against": None
        if against is None
        else {
            "bundle": _described(against[0], against[1].facts),
            **accuracy(against[1].answers, classes),
            **drop(asked.answers, against[1].answers),
        },
    }


def _described(bundle: Bundle, facts: dict[str, str]) -> dict[str, Any]:
    return {
        "name": bundle.path.resolve().name,
        "variant": bundle.manifest.variant,
        "precision": bundle.manifest.precision,
        "model_sha256": bundle.model_sha256,
        "facts": facts,
    }


def parser() -> cli.Parser:
    """The command line."""
    parser = cli.bundle_parser(
        "evaluate",
        "Measure accuracy on labelled images: top-1 and top-5 with 95 % intervals, the classes "
        "recognised least, and what was lost against another bundle. An image that cannot be "
        "read is listed and left out.",
        "vit-edge evaluate bundles/mine-int8 --images photos/val \\\n"
        "           --against bundles/mine-fp32 --resume mine.journal\n"
        "exit codes: 0 measured; 3 nothing could be read; 4 with --strict if any image could not",
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="where they lie")
    parser.rename("--data", "--images")
    parser.add_argument(
        "--labels-from",
        default=FOLDERS,
        metavar="SOURCE",
        help=f"{FOLDERS}: they lie in folders called like their classes, by label, number or "
        "WordNet synset; or a CSV file, path,label a line; default: %(default)s",
    )
    cli.add_backend(parser)
    parser.add_argument("--batch", type=int, metavar="N", help="images at a time; default: 8")
    parser.add_argument(
        "--against", metavar="BUNDLE2", help="the reference, such as the fp32 bundle"
    )
    parser.add_argument(
        "--resume", type=Path, metavar="FILE", help="keep answers there, and go on from them"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 4 if an image cannot be read"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Evaluate from the command line."""
    return cli.guarded(lambda: _run(parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    bundle = Bundle.read(arguments.bundle)
    other = None if arguments.against is None else Bundle.read(arguments.against)
    same = other is None or (
        other.labels == bundle.labels and other.manifest.scores == bundle.manifest.scores
    )
    if other is not None and not same:
        raise UsageError(
            f"{other.path} and {bundle.path} have different labels or scores: their accuracy "
            "cannot be compared image by image"
        )
    if bundle.manifest.scores == "none" and bundle.labels:
        raise UsageError(
            f"{bundle.path}: its outputs are values, as regression gives them, and no scores of "
            "classes: there is no accuracy to speak of. Predictor gives the values"
        )
    images = read_labelled(arguments.images, arguments.labels_from, bundle.labels)
    with contextlib.ExitStack() as stack:
        journal = None
        if arguments.resume is not None:
            journal = stack.enter_context(Journal(arguments.resume))
            print(f"{arguments.resume}: {len(journal):,} answers are there", file=sys.stderr)
        how = (arguments.backend, arguments.batch)
        # One after the other: a small device may not hold two models.
        asked = ask(bundle, images, *how, role="candidate", journal=journal)
        _require_any(asked, arguments.images)
        against = None
        if other is not None:
            against = (other, ask(other, images, *how, role="reference", journal=journal))
            _require_any(against[1], arguments.images)
    measured = result(bundle, asked, against)
    print(json.dumps(measured, indent=2) if arguments.json else cli.printable(text(measured)))
    return 4 if arguments.strict and asked.unreadable.count else 0


def _require_any(asked: Asked, data: Path) -> None:
    if not asked.answers.read.any():
        raise InputError(f"{data}: none of its images could be read{asked.unreadable.text()}")


def text(measured: dict[str, Any]) -> str:
    """A result for the terminal."""
    bundle, other = measured["bundle"], measured["against"]
    lines = [
        f"{bundle['name']} ({bundle['variant']}, {bundle['precision']}) on "
        f"{bundle['facts']['runtime']}, {bundle['facts']['device']}",
        f"images     {measured['images']:,}",
        *_accuracies(measured),
        *_meaning(measured),
    ]
    if other is not None:
        lines += [f"\nagainst    {other['bundle']['name']} ({other['bundle']['precision']})"]
        lines += [*_accuracies(other), *_drop(other)]
    if measured["worst_classes"]:
        rows = [("worst classes", "recall", "images", "taken for")]
        for entry in measured["worst_classes"]:
            taken = ", ".join(f"{t['label']} {t['count']}" for t in entry["taken_for"])
            recall = entry["recall"]
            rows.append((entry["label"], f"{recall['rate']:.1%}", str(recall["images"]), taken))
        lines += ["", cli.table(rows)]
    unreadable = measured["unreadable"]
    if unreadable["count"]:
        lines += [f"\nNOT READ   {unreadable['count']} images, which count nowhere"]
        lines += [f"  {problem}" for problem in unreadable["first"]]
    return "\n".join(lines)


def _meaning(measured: dict[str, Any]) -> Iterator[str]:
    """Say what counts as right where the classes do not exclude each other."""
    if measured["scores"] != "sigmoid":
        return
    if measured["classes"] == 1:
        yield "           of a yes or no: yes from a score of 50 % on"
    else:
        yield "           of classes that do not exclude each other: right is an image whose own"
        yield "           class has the highest score, whatever else is in it"


def _accuracies(measured: dict[str, Any]) -> Iterator[str]:
    for name in ("top1", "top5"):
        if measured[name] is not None:
            yield f"top-{name[-1]}      {_share(measured[name])}"


def _drop(other: dict[str, Any]) -> Iterator[str]:
    low, high = other["top1_drop_interval"]
    p_value = other["mcnemar_p_value"]
    yield f"agreement  {_share(other['agreement'])}"
    yield (
        f"drop       {100 * other['top1_drop']:+.2f} points (95 %: {100 * low:+.2f} to "
        f"{100 * high:+.2f}; only the reference is right {other['lost']} times, only the candidate "
        f"{other['won']} times: p = {p_value:.2g})"
    )


def _share(share: dict[str, Any]) -> str:
    low, high = share["interval"]
    return f"{share['rate']:.2%} (95 %: {low:.2%} to {high:.2%})"


if __name__ == "__main__":
    sys.exit(main())
