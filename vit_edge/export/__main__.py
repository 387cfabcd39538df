"""vit-edge export: a checkpoint becomes a verified bundle."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from vit_edge import cli
from vit_edge.bundle.manifest import PositionMethod, Scores
from vit_edge.errors import UsageError
from vit_edge.export.api import export, require_extra
from vit_edge.export.naming import named
from vit_edge.export.options import PUBLISHING, calibration_from
from vit_edge.export.printing import print_bundle
from vit_edge.variants import matching, variant

_EPILOG = """\
SOURCE is one of
  ORG/NAME              a repository of the Hugging Face hub, the same as hf:ORG/NAME
  a path                a directory or file, recognised by what it holds
  FILE.onnx             the graph of another exporter, see --onnx
  a variant             its published weights, see --variant
  hf:ID_OR_DIR          a Hugging Face repository or directory
  timm:NAME_OR_FILE     a timm model name, .safetensors, .pth, .ckpt, or directory
  torchvision:FILE      a state_dict of torchvision's vit_b_16, vit_l_32 ...
  t2t:FILE              T2T-ViT, as yitu-opensource/T2T-ViT publishes it (.pth.tar)
  open_clip:ID_OR_FILE  a CLIP tower of open_clip's: LAION, DataComp, MetaCLIP, DFN, ...
  jax:FILE.npz          an original JAX checkpoint
  seeded:N              random weights that depend on the image, for trials and tests
  embedded              the small trained model inside the package (CIFAR-10)

examples
  vit-edge export embedded -o bundles/cifar10
  vit-edge export google/vit-base-patch16-224
  vit-edge export my-model/ --precision int8 --calibration photos/
  vit-edge export my-model/ --recipe orin-nano --calibration photos/
  vit-edge export seeded:0 --variant large-patch32-384 --recipe gpu-fp32
  vit-edge export model.onnx --preprocess timm-augreg
  vit-edge export openai/clip-vit-base-patch32 \\
      --text-embeddings texts.npy --labels labels.txt

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
    "--list-variants": {
        "nargs": "*",
        "metavar": "WORD",
        "help": "print the tables of families and variants and stop; of those rows that have all "
        "the words, such as dino small",
    },
    "--checkpoint": {
        "metavar": "SOURCE",
        "help": "where the weights are, see below; default: the variant's own, from the hub",
    },
    "--onnx": {
        "type": Path,
        "metavar": "FILE",
        "help": "a graph that another exporter made, instead of a checkpoint: torch.onnx of a ViT "
        "of timm's or transformers', opset 17 or newer; needs --preprocess",
    },
    "--preprocess": {
        "metavar": "NAME|FILE",
        "help": "how images become pixels for --onnx: google-vit, timm-augreg, deit, timm-deit, "
        "torchvision; or a preprocessor_config.json, a timm config.json, a bundle's manifest.json",
    },
    "--labels": {
        "type": Path,
        "metavar": "FILE",
        "help": "the classes, where the source brings no labels: one a line, or JSON, such as a "
        "config.json with id2label, a list, or an object of label and number",
    },
    "--text-embeddings": {
        "type": Path,
        "metavar": "FILE.npy",
        "help": "a zero-shot head for CLIP: one embedded text a class, float32[classes, width], "
        "made with the same checkpoint's text half; needs --labels",
    },
    "--logit-scale": {
        "type": float,
        "metavar": "X",
        "help": "what the cosines of a zero-shot head are multiplied with; default: the "
        "checkpoint's own, or 100",
    },
    "--revision": {"help": "commit, branch or tag of a hub repository"},
    "--key": {
        "metavar": "NAME",
        "help": "which of several models in a weight file: an entry, such as teacher or "
        "state_dict_ema, or what its tensors' names begin with, such as backbone",
    },
    "--precision": {
        "metavar": "P",
        "help": "fp32 (default), fp16, bf16, int8, int8-dynamic, int8-weights, int4 or fp8; lower "
        "ones are published only if they keep the reference's answers",
    },
    "--recipe": {
        "metavar": "NAME|FILE",
        "help": "what to make, for which target: cpu-PRECISION (default), gpu-PRECISION, a device "
        "(orin-nano, orin-nx-agx, thor, rtx-desktop, datacenter), or a .toml of your own",
    },
    "--input": {
        "choices": ("float32", "uint8"),
        "help": "what the model takes: pixels, scaled and normalised (float32, the default), or "
        "images as they were resized (uint8), which it normalises in its first weights",
    },
    "--calibration": {
        "metavar": "DIR",
        "help": "images to choose scales and ranges on, of the kind that the model will meet; "
        "other ones than it is judged by. The word random asks for noise",
    },
    "--calibration-images": {
        "type": int,
        "metavar": "N",
        "help": "how many of them to take, drawn by the seed; default: 128",
    },
    "--calibration-seed": {"type": int, "metavar": "N", "help": "default: 0"},
    "--target": {
        "dest": "parity_target",
        "metavar": "T",
        "help": "what must hold, such as top1_agreement=0.99 or sqnr_centred_db=30,kl_median=1e-3: "
        "the Linears that hurt most stay in float until it does; default: the recipe's",
    },
    "--merge-tokens": {
        "metavar": "R",
        "help": "make the model faster by letting each block merge the R patches that are most "
        "alike (ToMe); one number a block, such as 0,0,8,8; or auto: as many as --target allows "
        "(default: top1_agreement=0.99) on the --calibration images",
    },
    "--set": {
        "action": "append",
        "default": [],
        "metavar": "NAME=VALUE",
        "help": "a setting of the quantizer, such as block_size=64 or float_budget=2; may be "
        "repeated; `--set help` lists them",
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
        "metavar": "A,B",
        "help": "of logits, features, tokens, pre_logits, reconstruction (pixels, of a model for "
        "masked images); default: logits,features. For --onnx it says what the graph's output is: "
        "logits or features",
    },
    "--scores": {
        "choices": get_args(Scores),
        "help": "what makes scores of the logits: softmax for one class of several, sigmoid where "
        "each class is a yes or no of its own, none for values; default: as problem_type of "
        "config.json says, or else softmax",
    },
    "--max-batch": {
        "type": int,
        "metavar": "N",
        "help": "the largest batch that is proven and allowed; default: the recipe's",
    },
    "--opset": {"type": int, "metavar": "N", "help": "ONNX operator set; default: the recipe's"},
    "--images": {
        "dest": "golden_images",
        "type": Path,
        "metavar": "DIR",
        "help": "real images to prove parity on; default: the package's photos",
    },
    **PUBLISHING,
}


def parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser("export", "Export a Vision Transformer to a verified bundle.", _EPILOG)
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="what to export, see below")
    parser.add_argument("-m", "--model", metavar="SOURCE", help="the same, named")
    for flag, options in _OPTIONS.items():
        parser.add_argument(flag, **options)
    parser.rename("--parity-target", "--target")
    parser.rename("--golden-images", "--images")
    cli.add_out(parser, "DIR", "the bundle to write; default: bundles/VARIANT-PRECISION")
    cli.add_json(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Export from the command line."""
    return cli.guarded(lambda: _run(parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.list_variants is not None:
        print(variants_table(arguments.list_variants))
        return 0
    if "help" not in arguments.set:
        read_source(arguments)
        _check_source(arguments)
    row = None if arguments.variant is None else variant(arguments.variant)
    require_extra()
    from vit_edge.checkpoints import Request
    from vit_edge.export.plan import ForeignFile
    from vit_edge.export.recipe import find_recipe

    recipe = find_recipe(arguments.recipe, arguments.precision)
    if "help" in arguments.set:
        print(settings_table(recipe.precision))
        return 0
    file, labels = arguments.onnx, arguments.labels
    bundle = export(
        arguments.checkpoint
        if file is None
        else ForeignFile(file, arguments.preprocess, labels, arguments.outputs),
        calibration=calibration_from(arguments),
        out=arguments.out,
        force=arguments.force,
        include_preprocessing=arguments.include_preprocessing,
        layout=arguments.layout,
        recipe=recipe.changed(opset=arguments.opset, quantization=arguments.set),
        outputs=arguments.outputs if file is None else None,
        scores=arguments.scores,
        max_batch=arguments.max_batch,
        input=arguments.input,
        target=arguments.parity_target,
        merge_tokens=arguments.merge_tokens,
        golden_images=arguments.golden_images,
        request=Request(
            variant=row,
            image_hw=arguments.image_size,
            position_method=arguments.pos_interp,
            revision=arguments.revision,
            key=arguments.key,
            labels=None if file is not None else labels,
            text_embeddings=arguments.text_embeddings,
            logit_scale=arguments.logit_scale,
        ),
    )
    print_bundle(bundle, as_json=arguments.json)
    return 0


# What SOURCE stands for -> the options that say otherwise.
_RIVALS = {
    "variant": ("variant", "onnx"),
    "checkpoint": ("checkpoint", "onnx"),
    "onnx": ("onnx", "checkpoint", "variant"),
}


def read_source(arguments: argparse.Namespace) -> None:
    """Put SOURCE and --model where --variant, --checkpoint or --onnx of the same meaning stands.

    Raises:
        UsageError: They contradict each other.
    """
    typed = {kind: f"--{kind}" for kind in _RIVALS}
    for spelling, text in (("SOURCE", arguments.source), ("--model", arguments.model)):
        if text is None:
            continue
        kind, value = named(text)
        for rival in _RIVALS[kind]:
            there = getattr(arguments, rival)
            if there is not None and (rival != kind or str(there) != str(value)):
                raise UsageError(
                    f"two sources that contradict each other: {spelling} {text} and "
                    f"{typed[rival]} {there}; give one of them"
                )
        setattr(arguments, kind, value)
        typed[kind] = spelling


def _check_source(arguments: argparse.Namespace) -> None:
    """Insist on exactly one source; what else belongs to it is for `export` to know."""
    if arguments.onnx is None:
        if arguments.variant is None and arguments.checkpoint is None:
            raise UsageError(
                "nothing to export: name a SOURCE, such as google/vit-base-patch16-224 or a "
                "directory (see --help)"
            )
        if arguments.preprocess is not None:
            raise UsageError("--preprocess is for --onnx; a checkpoint brings its own")
        return
    if arguments.preprocess is None:
        raise UsageError(
            "--onnx needs --preprocess: the file does not say how images become pixels"
        )
    both = [f"--{name}" for name in ("checkpoint", "opset") if getattr(arguments, name) is not None]
    if both:
        raise UsageError(f"{', '.join(both)} cannot be had with --onnx: the graph is as it is")


def variants_table(words: Sequence[str]) -> str:
    """The families, and the variants with what each source calls them, as text."""
    families, variants = matching(words)
    text = []
    if families:
        rows = [("family", "paper", "published as")]
        rows += [(row.name, row.paper, row.published.replace("`", "")) for row in families]
        text.append(cli.table(rows))
    if variants:
        named = [("variant", "classes", "hugging face", "timm", "jax (gs://vit_models/), t2t")]
        for v in variants:
            classes, file = str(v.num_classes or "none"), v.jax or v.t2t
            named.append((v.name, classes, v.hf or "-", v.timm or "-", file or "-"))
        text.append(cli.table(named))
    return "\n\n".join(text)


def settings_table(precision: str) -> str:
    """List what --set can choose, as text."""
    import vit_edge.quantize as quantize

    if precision == quantize.FLOAT:
        raise UsageError("fp32 has no settings; name a precision, --precision int8 --set help")
    rows = [("setting", "default", "values")]
    for name, default, values in quantize.describe_settings(precision):
        rows.append((name, default, values))
    return cli.table(rows)


if __name__ == "__main__":
    sys.exit(main())
