"""vit-edge quantize BUNDLE: the command line of lowering.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_edge import cli
from vit_edge.bundle import Bundle
from vit_edge.export.api import require_extra
from vit_edge.export.options import PUBLISHING, calibration_from
from vit_edge.export.printing import print_bundle

_OPTIONS: dict[str, dict[str, Any]] = {
    "--precision": {
        "metavar": "P",
        "help": "fp16, bf16, int8, int8-dynamic, int8-weights, int4 or fp8",
    },
    "--calibration": {
        "metavar": "DIR",
        "help": "images to choose scales and ranges on, of the kind that the model will meet",
    },
    "--calibration-images": {"type": int, "metavar": "N", "help": "default: 128"},
    "--calibration-seed": {"type": int, "metavar": "N", "help": "default: 0"},
    "--recipe": {
        "metavar": "NAME|FILE",
        "help": "what to make; default: TARGET-PRECISION, for the target of the fp32 bundle",
    },
    "--set": {
        "action": "append",
        "default": [],
        "metavar": "NAME=VALUE",
        "help": "a setting of the quantizer; `vit-edge export --precision P --set help` lists them",
    },
    "--target": {
        "dest": "parity_target",
        "metavar": "T",
        "help": "what must hold, such as top1_agreement=0.99; default: the recipe's",
    },
    "--images": {
        "dest": "golden_images",
        "type": Path,
        "metavar": "DIR",
        "help": "images to prove it on, answered by the fp32 graph; default: those in the bundle",
    },
    "--max-batch": {"type": int, "metavar": "N", "help": "default: the fp32 bundle's"},
    **PUBLISHING,
}


def parser() -> cli.Parser:
    """The command line."""
    parser = cli.bundle_parser(
        "quantize",
        "Make a bundle of lower precision out of an fp32 bundle, without its checkpoint; published "
        "only if it keeps the reference's answers.",
        "vit-edge quantize bundles/mine-fp32 --precision int8 --calibration photos/",
    )
    cli.add_out(parser, "DIR", "the bundle to write; default: bundles/VARIANT-PRECISION")
    for flag, options in _OPTIONS.items():
        parser.add_argument(flag, **options)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Quantize from the command line."""
    return cli.guarded(lambda: _run(parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    require_extra()
    from vit_edge.export.lowering import choose_recipe, quantize

    given = Bundle.read(arguments.bundle)
    recipe = choose_recipe(given, arguments.precision, arguments.recipe)
    made = quantize(
        given,
        calibration=calibration_from(arguments),
        out=arguments.out,
        force=arguments.force,
        include_preprocessing=arguments.include_preprocessing,
        layout=arguments.layout,
        recipe=recipe.changed(quantization=arguments.set),
        max_batch=arguments.max_batch,
        target=arguments.parity_target,
        golden_images=arguments.golden_images,
    )
    print_bundle(made, as_json=arguments.json)
    return 0
