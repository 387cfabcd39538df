"""vit-edge verify: read every byte of a bundle; see bundle/integrity.py."""

from __future__ import annotations

import json
import sys

from vit_edge import cli
from vit_edge.bundle import Bundle
from vit_edge.bundle.integrity import ensure_verified


def parser() -> cli.Parser:
    """The command line."""
    return cli.bundle_parser(
        "verify",
        "Read every byte of a bundle and check that its model is safe to run.",
        "vit-edge verify bundles/base-patch16-224-fp32",
    )


def main(argv: list[str] | None = None) -> int:
    """Verify a bundle from the command line."""

    def run() -> int:
        arguments = parser().parse_args(argv)
        bundle = Bundle.read(arguments.bundle)
        ensure_verified(bundle, full=True)
        files = bundle.manifest.files
        if arguments.json:
            names = sorted(files)
            print(json.dumps({"bundle": str(bundle.path), "verified": True, "files": names}))
        else:
            total = sum(record.size for record in files.values())
            print(f"{bundle.path}: {len(files)} files, {total / 1e6:.1f} MB, all as recorded")
        return 0

    return cli.guarded(run)


if __name__ == "__main__":
    sys.exit(main())
