"""vit-edge inspect: what is in a bundle."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vit_edge import cli, onnxfile
from vit_edge.bundle import Bundle
from vit_edge.bundle.bundle import ENGINES_NAME
from vit_edge.bundle.manifest import Manifest
from vit_edge.callables import make_callable

_OF_PARITY = ("passed", "limit", "target", "simulated", "facts", "merging")


@dataclass(frozen=True)
class Description:
    """What is in a bundle."""

    bundle: Bundle
    nodes: Mapping[str, Mapping[str, int]]  # domain -> operator -> how many, the most first
    parameters: int
    parity: Mapping[str, Any]  # the verdict of the gate; Bundle.parity() has all of it
    engines: tuple[str, ...]  # built here, by the names of their folders

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON, with the manifest."""
        return {
            "bundle": str(self.bundle.path),
            "manifest": dataclasses.asdict(self.bundle.manifest),
            "nodes": {domain: dict(counts) for domain, counts in self.nodes.items()},
            "parameters": self.parameters,
            "parity": dict(self.parity),
            "engines": list(self.engines),
        }


def inspect(bundle: str | os.PathLike[str] | Bundle) -> Description:
    """Look at what is in a bundle; `verify` checks it.

    Args:
        bundle: Its directory, or a Bundle that was read.

    Raises:
        InputError: The bundle, its model file or parity.json is damaged.
    """
    opened = Bundle.read(bundle)
    facts = onnxfile.read_model(opened.model_path)
    engines, parity = opened.path / ENGINES_NAME, opened.parity()
    return Description(
        opened,
        {domain: dict(types.most_common()) for domain, types in facts.operators.items()},
        sum(math.prod(tensor.dims) for tensor in facts.initializers),
        {key: parity.get(key) for key in _OF_PARITY},
        tuple(sorted(e.name for e in engines.iterdir()) if engines.is_dir() else ()),
    )


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """Everything a bundle says of itself, ready for JSON; see `inspect`."""
    return inspect(bundle).as_dict()


def parser() -> cli.Parser:
    """The command line."""
    return cli.bundle_parser(
        "inspect",
        "Show what is in a bundle; `vit-edge verify` checks it.",
        "vit-edge inspect bundles/base-patch16-224-fp32",
    )


def main(argv: list[str] | None = None) -> int:
    """Inspect a bundle from the command line."""
    return cli.guarded(lambda: _run(parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    described = inspect(arguments.bundle)
    bundle, description = described.bundle, described.as_dict()
    if arguments.json:
        print(json.dumps(description, indent=2))
        return 0
    manifest = bundle.manifest
    spec, taken = manifest.preprocessing, manifest.input
    nodes = {kind: n for types in description["nodes"].values() for kind, n in types.items()}
    rows = [
        ("bundle", str(bundle.path)),
        ("variant", manifest.variant),
        (
            "weights",
            f"{manifest.checkpoint.source}, {description['parameters'] / 1e6:.1f} M values",
        ),
        ("shape", _shape(manifest)),
        *_merging(manifest),
        ("positions", _positions(manifest)),
        (
            "images",
            f"{spec.resize} to {spec.resize_hw[0]}x{spec.resize_hw[1]} ({spec.interpolation}), "
            f"crop {spec.crop_hw[0]}x{spec.crop_hw[1]}, mean {spec.mean}, std {spec.std}",
        ),
        ("precision", f"{manifest.precision}, opset {manifest.opset}, IR {manifest.ir_version}"),
        *_quantization(manifest),
        ("input", f"{taken.name} {taken.dtype} {taken.layout} {list(taken.shape[1:])}"),
        ("batch", f"1 to {manifest.max_batch}"),
        ("classes", _classes(manifest)),
        ("outputs", ", ".join(f"{t.name} {list(t.shape[1:])}" for t in manifest.outputs)),
        ("nodes", f"{sum(nodes.values())}: " + ", ".join(f"{n} {k}" for k, n in nodes.items())),
        ("parity", _parity(bundle.parity())),
        (
            "engines",
            ", ".join(description["engines"]) or "none; vit-edge build makes one",
        ),
        ("files", ", ".join(f"{n} {r.size / 1e6:.1f} MB" for n, r in manifest.files.items())),
    ]
    for name, value in rows:
        print(f"{name:<10} {value}")
    return 0


def _shape(manifest: Manifest) -> str:
    shape = manifest.architecture
    if shape is None:
        height, width = manifest.preprocessing.crop_hw
        return f"not known: a graph from another exporter; image {height}x{width} px"
    tokens = "" if shape.tokenizer == "patches" else f" ({shape.tokenizer})"
    projected = "" if shape.projection_dim is None else f", projected to {shape.projection_dim}"
    height, width = shape.image_hw
    return (
        f"width {shape.width}, depth {shape.depth}, heads {shape.heads}, mlp {shape.mlp_dim}, "
        f"patch {shape.patch_px} px{tokens}, image {height}x{width} px{projected}"
    )


def _merging(manifest: Manifest) -> list[tuple[str, str]]:
    """How many tokens each block merges, where any does."""
    shape = manifest.architecture
    if shape is None or not shape.merged_tokens:
        return []
    counts = ", ".join(map(str, shape.merged_tokens))
    return [("merging", f"{counts} tokens in the blocks; {shape.block_tokens[-1]} are left")]


def _classes(manifest: Manifest) -> str:
    if manifest.output("logits") is None:
        return "none: no logits"
    invented = "; labels are invented" if manifest.labels_invented else ""
    scale = None if manifest.architecture is None else manifest.architecture.logit_scale
    texts = "" if scale is None else f"cosines with texts, times {scale:.4g}, "
    return f"{manifest.num_classes}, {texts}scores by {manifest.scores}{invented}"


def _quantization(manifest: Manifest) -> list[tuple[str, str]]:
    """The numbers and words of the quantizer's record; --json has the rest."""
    if manifest.quantization is None:
        return []
    known = {k: v for k, v in manifest.quantization.items() if isinstance(v, str | int | float)}
    return [("quantizer", ", ".join(f"{name} {value}" for name, value in known.items()))]


def _positions(manifest: Manifest) -> str:
    moved = manifest.checkpoint.position_interpolation
    if moved is not None:
        return f"{moved.method} from {moved.from_grid_hw}"
    return "as trained" if manifest.architecture is not None else "in the graph"


def _parity(parity: Mapping[str, Any]) -> str:
    """The verdict of the export, with its least signal-to-noise ratio and agreement."""
    words = ["held at export" if parity["passed"] else "FAILED"]
    rows = [row for row in parity.get("comparisons", ()) if row.get("sqnr_centred_db") is not None]
    noisiest = min(rows, key=lambda row: float(row["sqnr_centred_db"]), default=None)
    if noisiest is not None:
        words.append(f"{noisiest['output']} {noisiest['sqnr_centred_db']:.0f} dB above the noise")
    agreements = [row["top1_agreement"] for row in rows if row.get("top1_agreement") is not None]
    if agreements:
        words.append(f"top-1 agreement {min(agreements):.2%} on {rows[0]['images']} images")
    if parity.get("simulated"):
        words.append(f"simulated: {parity['simulated']}")
    return "; ".join(words)


make_callable(__name__, __name__)

if __name__ == "__main__":
    sys.exit(main())
