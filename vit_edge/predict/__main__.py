"""vit-edge predict BUNDLE IMAGE...: what the model sees in each image."""

from __future__ import annotations

import argparse
import json
import sys

from vit_edge import cli
from vit_edge.images.preprocess import DECODINGS
from vit_edge.predictor import DEFAULT_TOP_K, Failure, Predictor


def parser() -> cli.Parser:
    """The command line."""
    command_line = cli.bundle_parser(
        "predict",
        "Classify images with a bundle. A bad image is reported and does not stop the others; the "
        "exit code is 3 then. With --json one object a line.",
        "vit-edge predict bundles/base-patch16-224-fp32 cat.jpg --top-k 3\n"
        f"other verbs: {', '.join(verb for verb in cli.VERBS if verb != 'predict')}\n"
        "             (vit-edge VERB --help)",
    )
    command_line.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    cli.add_backend(command_line)
    command_line.add_argument(
        "--top-k", type=int, default=DEFAULT_TOP_K, metavar="K", help="classes to rank; default: 5"
    )
    command_line.add_argument(
        "--decoding",
        choices=DECODINGS,
        default="exact",
        help="fast: decode large JPEGs at a fraction of their size; default: exact",
    )
    return command_line


def main(argv: list[str] | None = None) -> int:
    """Predict from the command line."""
    return cli.guarded(lambda: _run(parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    failures = 0
    with Predictor(arguments.bundle, arguments.backend, decoding=arguments.decoding) as predictor:
        if predictor.bundle.manifest.labels_invented:
            print("labels are invented: the model's files name no class", file=sys.stderr)
        outcomes = predictor.stream(arguments.images, arguments.top_k, on_error="record")
        for image, outcome in zip(arguments.images, outcomes, strict=True):
            failed = isinstance(outcome, Failure)
            failures += failed
            if arguments.json:
                print(json.dumps({"image": image, **outcome.as_dict()}), flush=True)
            elif isinstance(outcome, Failure):
                print(f"{type(outcome.error).__name__}: {outcome.error}", file=sys.stderr)
            else:
                print(outcome.source)
                for ranked in outcome.top:
                    value = outcome.scores == "none"
                    score = f"{ranked.score:10.4g}" if value else f"{ranked.score:7.2%}"
                    print(f"  {score}  {ranked.label}")
    return 3 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
