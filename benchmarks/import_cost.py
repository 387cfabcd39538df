"""What `import vit_edge` costs, against importing NumPy and Pillow.

    python benchmarks/import_cost.py [--rounds 40]

The time of a Python that starts and does nothing is subtracted from both.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import numpy as np
from harness import measure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()

    def start(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    found = measure.timings(
        {
            "import numpy, PIL.Image": lambda: start("import numpy, PIL.Image"),
            "import vit_edge": lambda: start("import vit_edge"),
            "nothing": lambda: start(""),
        },
        arguments.rounds,
    )
    print(measure.report(found, "import numpy, PIL.Image"))
    floor = np.median(found["nothing"])
    ours, theirs = (
        float(np.median(found[name]) - floor)
        for name in ("import vit_edge", "import numpy, PIL.Image")
    )
    print(f"above the floor: {ours * 1e3:.1f} ms against {theirs * 1e3:.1f} ms,", end=" ")
    print(f"ratio {ours / theirs:.3f} (bar: 0.3)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
