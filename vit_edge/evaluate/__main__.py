"""vit-edge evaluate BUNDLE --images DIR: how often is the model right?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit_edge import cli
from vit_edge.evaluate.api import evaluate
from vit_edge.images.folders import FOLDERS


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
    evaluation = evaluate(
        arguments.bundle,
        arguments.images,
        labels_from=arguments.labels_from,
        backend=arguments.backend,
        batch=arguments.batch,
        against=arguments.against,
        resume=arguments.resume,
    )
    measured = evaluation.as_dict()
    print(json.dumps(measured, indent=2) if arguments.json else cli.printable(text(measured)))
    return 4 if arguments.strict and evaluation.unreadable else 0


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
