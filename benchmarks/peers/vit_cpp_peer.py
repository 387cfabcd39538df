"""vit.cpp (https://github.com/staghado/vit.cpp): a binary and a model that the user brings.

VIT_CPP_BINARY names the binary, VIT_CPP_MODEL a file that its convert-pth-to-ggml.py (and quantize)
made. Each image is a process of its own; its latency is the "processing time" that it prints: all
but loading the model, so decoding and resizing too. The weights are the user's: no answers of the
reference belong to them, and none are compared.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PHOTO = Path(__file__).resolve().parents[2] / "vit_edge" / "data" / "photos" / "cat.jpg"
_TOOK = re.compile(r"(model load|processing) time\s*=\s*([0-9.]+) ms")


def main() -> int:
    step, request = sys.argv[1], sys.argv[4:]
    paths = [os.environ.get(name) for name in ("VIT_CPP_BINARY", "VIT_CPP_MODEL")]
    if not all(path and Path(path).is_file() for path in paths):
        print("VIT_CPP_BINARY and VIT_CPP_MODEL must name vit.cpp's binary and a model of its own",
              file=sys.stderr)  # fmt: skip
        return 3
    if step == "measure":
        binary, model = (str(path) for path in paths)
        print(json.dumps(measured(binary, model, json.loads(request[0]))))
    return 0


def measured(binary: str, model: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run it until there are enough samples; the first run warms the page cache.

    Raises:
        SystemExit: It takes no batches, it failed, or it prints no times.
    """
    if request["batch"] != 1:
        raise SystemExit("vit.cpp takes one image at a time")
    argv = [binary, "-m", model, "-i", str(PHOTO), "-t", str(request["threads"])]
    load_ms, first_ms = once(argv)
    started, latencies_ms, due_s = time.perf_counter(), list[float](), request["most_s"]
    while (spent_s := time.perf_counter() - started) < due_s:
        if len(latencies_ms) >= request["samples"] and spent_s >= request["at_least_s"]:
            break
        latencies_ms.append(once(argv)[1])
    peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # Linux tells KiB
    return {
        "latencies_ms": latencies_ms,
        "seconds": sum(latencies_ms) / 1e3,
        "images": len(latencies_ms),
        "warmup_runs": 1,
        "stable": True,  # every run is a process of its own: there is nothing to warm up
        "enough": len(latencies_ms) >= request["samples"],
        "cold_s": {"import": 0.0, "load": load_ms / 1e3, "first_answer": first_ms / 1e3},
        "memory_bytes": {"anonymous": peak, "file": 0, "peak": peak},  # it reads, and maps nothing
        "sensors": None,
        "model_bytes": Path(model).stat().st_size,
        "facts": {"runtime": "vit.cpp", "model": Path(model).name, "threads": argv[-1]},
    }


def once(argv: list[str]) -> tuple[float, float]:
    """Milliseconds of the load and of the rest."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    found = dict(_TOOK.findall(done.stderr + done.stdout))
    if done.returncode or len(found) != 2:
        raise SystemExit(f"{argv[0]}: exit code {done.returncode}, and times {found}")
    return float(found["model load"]), float(found["processing"])


if __name__ == "__main__":
    sys.exit(main())
