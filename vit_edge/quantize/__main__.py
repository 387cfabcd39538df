"""python -m vit_edge.quantize: see export/quantizing.py."""

from __future__ import annotations

import sys

from vit_edge import cli

if __name__ == "__main__":
    sys.exit(cli.main(["quantize", *sys.argv[1:]]))
