"""Peak memory of an export's whole process tree, against twice the weights plus 700 MB.

python benchmarks/export_memory.py base-patch16-224 large-patch32-384 huge-patch14-224-in21k
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path

from vit_edge.machine.child import run_child
from vit_edge.models.vit import parameter_shapes
from vit_edge.variants import variant


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="+")
    arguments = parser.parse_args()
    print(f"{'':<28} {'weights MB':>10} {'peak MB':>8} {'allowed MB':>10} {'seconds':>8}")
    over = False
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
        print(
            f"{name:<28} {weights / 1e6:>10.0f} {result.peak_rss_bytes / 1e6:>8.0f} "
            f"{allowed / 1e6:>10.0f} {result.wall_s:>8.0f}",
            flush=True,
        )
    return 4 if over else 0


if __name__ == "__main__":
    sys.exit(main())
