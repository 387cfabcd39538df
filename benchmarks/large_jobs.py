"""Large jobs against a plain stream over the same files: what the engines around it cost.

    python benchmarks/large_jobs.py --bundle BUNDLE --images DIR [--ray] [--rounds 5]

Every candidate answers all images in its turn, starting its processes included; Ray itself is
started before. With --ray, Ray Data's actors and the command's own are candidates, too. Where
others use the machine as well, look at CPU time: that of this process and all below it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import script
import timing

from vit_edge import Predictor
from vit_edge.images.walk import walk_images
from vit_edge.scale.batch import batch
from vit_edge.scale.ray_data import classify

STREAM = "stream"
BAR = 1 / 0.9
CPU_POLL_S = 0.2


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before; default: 1")
    parser.add_argument("--ray", action="store_true", help="needs ray[data]")
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    files = list(walk_images(arguments.images))
    chosen = candidates(arguments.bundle, arguments.images, files)
    if arguments.ray:
        chosen |= on_ray(arguments.bundle, arguments.images)
    clock = CpuClock()
    used: dict[str, list[float]] = {name: [] for name in chosen}

    def measured(name: str) -> float:
        before = clock.seconds()
        took = timing.seconds(chosen[name])
        used[name].append(clock.seconds() - before)
        return took

    measures = {name: partial(measured, name) for name in chosen}
    taken = timing.turns(measures, arguments.rounds, arguments.warmup)
    print(f"{script.machine()}\n{len(files)} images, {arguments.rounds} rounds")
    for what, values in (("wall", taken), ("CPU", used)):
        kept = {name: seconds[-arguments.rounds :] for name, seconds in values.items()}
        print(f"\n{what} time\n{timing.report(kept, STREAM, bar=round(BAR, 2))}")
        for name, seconds in kept.items():
            print(f"{name}: {len(files) / statistics.median(seconds):.0f} images per {what} second")
    return 0


class CpuClock:
    """CPU time of this process and of all that descend from it, also of those that ended.

    Ray's own daemon reaps its processes without adding up their time, so they are looked at while
    they live: of each the last fraction of a second is not counted.
    """

    def __init__(self) -> None:
        self._ticks: dict[tuple[str, str], int] = {}  # (pid, start) -> used
        threading.Thread(target=self._watch, daemon=True).start()

    def seconds(self) -> float:
        self._look()
        return sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK")

    def _watch(self) -> None:
        while True:
            time.sleep(CPU_POLL_S)
            self._look()

    def _look(self) -> None:
        stats = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                stats[path.parent.name] = path.read_text().rpartition(")")[2].split()
            except OSError:  # gone meanwhile
                continue
        ours = {str(os.getpid())}
        while more := {pid for pid, fields in stats.items() if fields[1] in ours} - ours:
            ours |= more
        for pid in ours & stats.keys():  # proc(5): 14 and 15 are user and system time, 22 the start
            fields = stats[pid]
            self._ticks[pid, fields[19]] = int(fields[11]) + int(fields[12])


def candidates(bundle: str, folder: Path, files: list[Path]) -> dict[str, Callable[[], object]]:
    """What answers on this machine."""

    def stream() -> None:
        with Predictor(bundle) as predictor:
            for _ in predictor.stream(files, on_error="record"):
                pass

    def local(workers: int) -> None:
        with tempfile.TemporaryDirectory() as out:
            batch(bundle, str(folder), out=out, workers=workers, shard_rows=1000)

    return {
        STREAM: stream,
        "batch, 1 worker": lambda: local(1),
        "batch, 2 workers": lambda: local(2),
    }


def on_ray(bundle: str, folder: Path) -> dict[str, Callable[[], object]]:
    """What answers on a cluster of this machine, whose actors have one thread each."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def data(read: Callable[[], Any]) -> None:
        with tempfile.TemporaryDirectory() as out:
            classify(read(), bundle).write_parquet(out)

    def paths() -> Any:
        return ray.data.from_items([{"path": str(path)} for path in walk_images(folder)])

    def contents() -> Any:
        return ray.data.read_binary_files(str(folder), include_paths=True)

    def engine() -> None:
        with tempfile.TemporaryDirectory() as out:
            batch(bundle, str(folder), out=out, engine="ray", shard_rows=1000)

    return {
        "batch --engine ray": engine,
        "Ray Data, paths": lambda: data(paths),
        "Ray Data, contents": lambda: data(contents),
    }


if __name__ == "__main__":
    sys.exit(main())
