"""python -m vit_edge.export: a checkpoint becomes a verified bundle."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

from vit_edge import cli
from vit_edge.errors import MissingExtraError, UsageError
from vit_edge.manifest import PositionMethod
from vit_edge.variants import VARIANTS, variant

_NEEDED = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "tqdm")

_EPILOG = """\
SOURCE is one of
  hf:ID_OR_DIR          a Hugging Face repository or directory
  timm:NAME_OR_FILE     a timm model name, .safetensors, .pth, or directory
  jax:FILE.npz          an original JAX checkpoint
  seeded:N              random weights that depend on the image, for trials and tests
  embedded              the small trained model inside the package (CIFAR-10)
  a path                recognised by what it holds

examples
  python -m vit_edge.export --variant base-patch16-224
  python -m vit_edge.export --checkpoint embedded --out bundles/cifar10
  python -m vit_edge.export --variant large-patch32-384 --checkpoint seeded:0 --recipe gpu-fp32

exit codes: 0 published, 2 wrong usage, 3 bad input, 4 the parity gate refused it
"""


def image_size(text: str) -> tuple[int, int]:
    """Parse "384" or "320x448" (height x width)."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size; write 384 or 320x448 (height x width)"
        )
    return int(parts[0]), int(parts[-1])


# flag -> arguments of argparse's add_argument
_OPTIONS: dict[str, dict[str, Any]] = {
    "--variant": {
        "metavar": "NAME",
        "help": "a row of the table (--list-variants); may be left out where --checkpoint tells",
    },
    "--list-variants": {"action": "store_true", "help": "print the table of variants and stop"},
    "--checkpoint": {
        "metavar": "SOURCE",
        "help": "where the weights are, see below; default: the variant's own, from the hub",
    },
    "--revision": {"help": "commit, branch or tag of a hub repository"},
    "--recipe": {
        "default": "cpu-fp32",
        "metavar": "NAME|FILE",
        "help": "what to make: cpu-fp32 (default), gpu-fp32, or a .toml of your own",
    },
    "--image-size": {
        "type": image_size,
        "metavar": "HxW",
        "help": "another size in pixels, such as 384 or 320x448: the position embeddings are "
        "interpolated to it",
    },
    "--pos-interp": {
        "choices": get_args(PositionMethod),
        "help": "how they are interpolated; default: as the checkpoint's own library does",
    },
    "--outputs": {
        "default": "logits,features",
        "metavar": "A,B",
        "help": "of logits, features, tokens, pre_logits; default: logits,features",
    },
    "--max-batch": {
        "type": int,
        "metavar": "N",
        "help": "the largest batch that is proven and allowed; default: the recipe's, 32",
    },
    "--opset": {"type": int, "metavar": "N", "help": "ONNX operator set; default: the recipe's"},
    "--golden-images": {
        "type": Path,
        "metavar": "DIR",
        "help": "real images to prove parity on; default: the package's photos",
    },
    "--out": {
        "type": Path,
        "metavar": "DIR",
        "help": "the bundle to write; default: bundles/VARIANT-PRECISION",
    },
    "--force": {"action": "store_true", "help": "replace an existing bundle, in one step"},
    "--json": {"action": "store_true", "help": "print the result as JSON on stdout"},
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m vit_edge.export",
        description="Export a Vision Transformer to a verified bundle.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flag, options in _OPTIONS.items():
        made.add_argument(flag, **options)
    return made


def main(argv: list[str] | None = None) -> int:
    """Export from the command line."""
    arguments = parser().parse_args(argv)
    return cli.guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.list_variants:
        print(variants_table())
        return 0
    if arguments.variant is None and arguments.checkpoint is None:
        raise UsageError("nothing to export: give --variant, --checkpoint, or both (see --help)")
    row = None if arguments.variant is None else variant(arguments.variant)
    _require_extra()
    from vit_edge.checkpoints import Request
    from vit_edge.export.pipeline import ExportOptions, export_bundle
    from vit_edge.export.recipe import load_recipe

    options = ExportOptions(
        recipe=load_recipe(arguments.recipe).changed(
            opset=arguments.opset, max_batch=arguments.max_batch
        ),
        checkpoint=arguments.checkpoint,
        request=Request(row, arguments.image_size, arguments.pos_interp, arguments.revision),
        outputs=tuple(arguments.outputs.split(",")),
        golden_images=arguments.golden_images,
        out=arguments.out,
        force=arguments.force,
    )
    bundle = export_bundle(options)
    parity = bundle.parity()
    worst = max(parity["comparisons"], key=lambda row: float(row["relative"]))
    size = sum(record.size for record in bundle.manifest.files.values())
    if arguments.json:
        result = {
            "bundle": str(bundle.path),
            "variant": bundle.manifest.variant,
            "checkpoint": bundle.manifest.checkpoint.source,
            "size_bytes": size,
            "model_sha256": bundle.model_sha256,
            "parity": parity,
        }
        print(json.dumps(result, indent=2))
    else:
        print(f"bundle   {bundle.path} ({size / 1e6:.1f} MB)")
        print(f"model    {bundle.manifest.variant} from {bundle.manifest.checkpoint.source}")
        print(
            f"parity   holds; {worst['output']} differ most, by {worst['relative']:.1e} of the "
            f"reference's largest, allowed {worst['allowed_relative']:.0e}"
        )
    return 0


def _require_extra() -> None:
    import importlib.util

    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f'exporting needs {", ".join(missing)}: pip install "vit-edge[export]"'
        )


def variants_table() -> str:
    """The variants and what each source calls them, as text."""
    rows = [("variant", "classes", "hugging face", "timm", "jax (gs://vit_models/)")]
    rows += [
        (row.name, str(row.num_classes or "none"), row.hf or "-", row.timm or "-", row.jax or "-")
        for row in VARIANTS.values()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
