"""What `import vit_edge` costs, against importing NumPy and Pillow.

    python benchmarks/import_cost.py [--rounds 40]

The time of a Python that starts and does nothing is subtracted from both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial

import script
import timing

LEAST = "import numpy, PIL.Image"


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    codes = {LEAST: LEAST, "import vit_edge": "import vit_edge", "nothing": ""}
    taken = timing.timings(
        {name: partial(script.start, code) for name, code in codes.items()}, arguments.rounds
    )
    print(timing.report(taken, LEAST))
    floor, theirs, ours = (
        statistics.median(taken[name]) for name in ("nothing", LEAST, "import vit_edge")
    )
    print(f"above the floor: {ours - floor:.4f} s against {theirs - floor:.4f} s,", end=" ")
    print(f"ratio {(ours - floor) / (theirs - floor):.3f} (bar: 0.3)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
