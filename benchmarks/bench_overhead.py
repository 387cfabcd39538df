"""What the bench adds to an inference of about a millisecond, and its sensors to that.

    python benchmarks/bench_overhead.py BUNDLE [--batch 4] [--backend ort] [--rounds 60]

The same runs in turns: alone, in the loop that samples latencies, and in that loop with the sensors
of a Jetson Orin (files in a folder, three rails and nine zones) looked at by their thread. On the
board a look at a rail waits for the I2C bus besides, asleep. The processor time of a look is told
too: it does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import script
import timing

from vit_edge import backends
from vit_edge.backends import auto
from vit_edge.bench.device.sensors import Watch
from vit_edge.bench.run.scenarios import Limits, one_after_another
from vit_edge.bundle import Bundle

RUNS = 300  # of each turn: long enough for some looks, short enough that both meet the same load
LOOKS = 200
RAILS, ZONES = 3, 9  # of an Orin Nano


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--backend", default=auto.DEFAULT)
    parser.add_argument("--rounds", type=int, default=60)
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    bundle = Bundle.read(arguments.bundle)
    backend = backends.module(arguments.backend).load(bundle)
    tensor = bundle.manifest.input
    pixels = np.zeros((arguments.batch, *tensor.shape[1:]), tensor.dtype)
    with tempfile.TemporaryDirectory() as folder:
        board = Path(folder)
        plant(board)

        def alone() -> float:
            started = time.perf_counter()
            for _ in range(RUNS):
                backend.run(pixels)
            return (time.perf_counter() - started) / RUNS

        def sampled(root: Path) -> float:
            found = one_after_another(
                lambda: backend.run(pixels), arguments.batch, Limits(RUNS, 0.0, 60.0), Watch(root)
            )
            return found.seconds / len(found.latencies_ms)

        look_s = look(Watch(board))
        taken = timing.turns(
            {
                "alone": alone,
                "sampled": partial(sampled, board / "nothing"),
                "sampled, sensors": partial(sampled, board),
            },
            arguments.rounds,
            1,
        )
    print(timing.report(taken, "alone"))
    print(f"one look: {1e6 * look_s:.0f} us of a processor, ten a second")
    return 0


def look(watch: Watch) -> float:
    """Processor seconds of a look at power, and a tenth of one at everything else."""
    started = time.process_time()
    for index in range(LOOKS):
        watch.look(heat=index % 10 == 0)
    return (time.process_time() - started) / LOOKS


def plant(root: Path) -> None:
    """A board's sensors, as files."""
    monitor = root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    zones = root / "sys/class/thermal"
    monitor.mkdir(parents=True)
    for index in range(1, RAILS + 1):
        (monitor / f"in{index}_label").write_text(f"VDD_{index}\n")
        (monitor / f"in{index}_input").write_text("5000\n")
        (monitor / f"curr{index}_input").write_text("1000\n")
    for index in range(ZONES):
        zone = zones / f"thermal_zone{index}"
        zone.mkdir(parents=True)
        (zone / "type").write_text(f"zone-{index}\n")
        (zone / "temp").write_text("45000\n")


if __name__ == "__main__":
    sys.exit(main())
