"""python -m vit_edge.inspect: what is in a bundle."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from typing import Any

from vit_edge import cli, wire
from vit_edge.bundle import ENGINES_NAME, Bundle


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """Everything a bundle says of itself, ready for JSON.

    Raises:
        InputError: The model file or parity.json is damaged.
    """
    manifest = bundle.manifest
    facts = wire.read_model(bundle.model_path)
    engines = bundle.path / ENGINES_NAME
    parity = bundle.parity()
    return {
        "bundle": str(bundle.path),
        "manifest": dataclasses.asdict(manifest),
        "nodes": {domain: dict(types.most_common()) for domain, types in facts.operators.items()},
        "parameters": sum(math.prod(tensor.dims) for tensor in facts.initializers),
        "parity": {key: parity[key] for key in ("passed", "limit", "facts")},
        "engines": sorted(e.name for e in engines.iterdir()) if engines.is_dir() else [],
    }


def main(argv: list[str] | None = None) -> int:
    """Inspect a bundle from the command line."""
    parser = cli.bundle_parser(
        "python -m vit_edge.inspect",
        "Show what is in a bundle; `python -m vit_edge.verify` checks it.",
        "python -m vit_edge.inspect bundles/base-patch16-224-fp32",
    )
    arguments = parser.parse_args(argv)
    return cli.guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    bundle = Bundle.read(arguments.bundle)
    description = describe_bundle(bundle)
    if arguments.json:
        print(json.dumps(description, indent=2))
        return 0
    manifest = bundle.manifest
    shape, spec = manifest.architecture, manifest.preprocessing
    nodes = {kind: n for types in description["nodes"].values() for kind, n in types.items()}
    moved = manifest.checkpoint.position_interpolation
    rows = [
        ("bundle", str(bundle.path)),
        ("variant", manifest.variant),
        (
            "weights",
            f"{manifest.checkpoint.source}, {description['parameters'] / 1e6:.1f} M values",
        ),
        (
            "shape",
            f"width {shape.width}, depth {shape.depth}, heads {shape.heads}, mlp {shape.mlp_dim}, "
            f"patch {shape.patch_px} px, image {shape.image_hw[0]}x{shape.image_hw[1]} px",
        ),
        (
            "positions",
            "as trained" if moved is None else f"{moved.method} from {moved.from_grid_hw}",
        ),
        (
            "images",
            f"{spec.resize} to {spec.resize_hw[0]}x{spec.resize_hw[1]} ({spec.interpolation}), "
            f"crop {spec.crop_hw[0]}x{spec.crop_hw[1]}, mean {spec.mean}, std {spec.std}",
        ),
        ("precision", f"{manifest.precision}, opset {manifest.opset}, IR {manifest.ir_version}"),
        ("batch", f"1 to {manifest.max_batch}"),
        ("outputs", ", ".join(f"{t.name} {list(t.shape[1:])}" for t in manifest.outputs)),
        ("nodes", f"{sum(nodes.values())}: " + ", ".join(f"{n} {k}" for k, n in nodes.items())),
        ("parity", "held at export" if description["parity"]["passed"] else "FAILED"),
        (
            "engines",
            ", ".join(description["engines"]) or "none; python -m vit_edge.build makes one",
        ),
        ("files", ", ".join(f"{n} {r.size / 1e6:.1f} MB" for n, r in manifest.files.items())),
    ]
    for name, value in rows:
        print(f"{name:<10} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
