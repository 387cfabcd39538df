"""vit-edge verify: read every byte of a bundle; see bundle/integrity.py."""

from __future__ import annotations

import json
import os
import sys

from vit_edge import cli
from vit_edge.bundle import Bundle
from vit_edge.bundle.integrity import ensure_verified, layout_files
from vit_edge.callables import make_callable


def verify(bundle: str | os.PathLike[str] | Bundle) -> Bundle:
    """Read every byte of a bundle, and check that its model is safe to run.

    Args:
        bundle: Its directory, or a Bundle that was read.

    Returns:
        The bundle, read.

    Raises:
        IntegrityError: A file is not as the manifest, or parity.json of a layout, says.
        BundleError: It is no bundle, or an incomplete one.
        ModelError: Its model is unsafe to run.
    """
    opened = Bundle.read(bundle)
    ensure_verified(opened, full=True)
    layout_files(opened)
    return opened


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
        bundle = verify(arguments.bundle)
        files = bundle.manifest.files
        if arguments.json:
            names = sorted(files)
            print(json.dumps({"bundle": str(bundle.path), "verified": True, "files": names}))
        else:
            total = sum(record.size for record in files.values())
            print(f"{bundle.path}: {len(files)} files, {total / 1e6:.1f} MB, all as recorded")
        return 0

    return cli.guarded(run)


make_callable(__name__, __name__)

if __name__ == "__main__":
    sys.exit(main())
