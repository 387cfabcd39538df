"""Peak memory of an export's whole process tree, against twice the weights plus 700 MB.

python benchmarks/export_memory.py base-patch16-224 large-patch32-384 huge-patch14-224-in21k
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path

import script

from vit_edge import cli
from vit_edge.machine.child import run_child
from vit_edge.models.vit import parameter_shapes
from vit_edge.variants import variant


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("variants", nargs="+")
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    rows, over = [("", "weights MB", "peak MB", "allowed MB", "seconds")], False
    for name in arguments.variants:
        row = variant(name)
        shapes = parameter_shapes(row.architecture).values()
        weights = 4 * sum(math.prod(shape) for shape in shapes)
        allowed = 2 * weights + 700e6
        with tempfile.TemporaryDirectory() as scratch:
            argv = [sys.executable, "-m", "vit_edge.export", "--variant", name]
            argv += ["--checkpoint", "seeded:0", "--out", str(Path(scratch) / "bundle")]
            argv += ["--outputs", "logits,features" if row.has_head else "features"]
            result = run_child(argv).check(name)
        over |= result.peak_rss_bytes > allowed
        sizes = (f"{size / 1e6:.0f}" for size in (weights, result.peak_rss_bytes, allowed))
        rows.append((name, *sizes, f"{result.wall_s:.0f}"))
    print(cli.table(rows))
    return 4 if over else 0


if __name__ == "__main__":
    sys.exit(main())
