"""From starting Python to the first answer: a built bundle against an unbuilt one.

    python benchmarks/cold_start.py [--variant base-patch16-224] [--rounds 20]

The page cache is warm and the files' hashes are known, as on a device that has run the bundle
before. `import` is a Python that does nothing but start, as the floor.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import interleaved

from vit_edge import cpus
from vit_edge.backends import ort
from vit_edge.bundle import Bundle

PHOTO = Path(__file__).resolve().parents[1] / "vit_edge" / "data" / "photos" / "cat.jpg"
FIRST_ANSWER = """
import sys
from vit_edge import Bundle, Predictor
from vit_edge.backends import ort
backend = ort.load(Bundle.read(sys.argv[1]), engine=sys.argv[2])
Predictor(Bundle.read(sys.argv[1]), backend).predict(sys.argv[3])
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="base-patch16-224")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "bundle"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "vit_edge.export",
                "--variant",
                arguments.variant,
                "--checkpoint",
                "seeded:0",
                "--max-batch",
                "4",
                "--out",
                str(path),
            ],
            check=True,
            stdout=sys.stderr,
        )
        ort.build(Bundle.read(path))

        def first_answer(engine: str) -> None:
            subprocess.run([sys.executable, "-c", FIRST_ANSWER, path, engine, PHOTO], check=True)

        found = interleaved.timings(
            {
                "unbuilt": lambda: first_answer("never"),
                "built": lambda: first_answer("required"),
                "python alone": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
            },
            arguments.rounds,
        )
    print(f"{arguments.variant}, {cpus.cpu_model()}, {cpus.usable_cpus()} CPUs")
    print(interleaved.report(found, "unbuilt", bar=0.7))
    return 0


if __name__ == "__main__":
    sys.exit(main())
