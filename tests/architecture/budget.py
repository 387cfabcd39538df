"""Lines of each room, and of the core path: a budget that may fall, and rises with a reason only.

python -m tests.architecture.budget            what each room has, against what it may have
python -m tests.architecture.budget --write    take today's numbers as the budget
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.architecture import layers

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
BUDGET = HERE / "budget.json"

# What one reads to follow an image from its file to its labels on ONNX Runtime.
CORE_PATH = (
    "vit_edge/errors.py",
    "vit_edge/bundle/manifest.py",
    "vit_edge/bundle/bundle.py",
    "vit_edge/images/files.py",
    "vit_edge/images/load.py",
    "vit_edge/images/preprocess.py",
    "vit_edge/images/resize.py",
    "vit_edge/backends/__init__.py",
    "vit_edge/backends/ort/__init__.py",
    "vit_edge/backends/ort/session.py",
    "vit_edge/answers.py",
    "vit_edge/images/ahead.py",
    "vit_edge/predictor.py",
)


def lines_of(root: Path = REPOSITORY) -> dict[str, int]:
    """Lines of every room, of the benchmarks, of the core path and of all together."""
    rooms: dict[str, int] = {}
    for module, path in layers.module_names(root).items():
        room = layers.room_of(module)
        rooms[room] = rooms.get(room, 0) + _lines(path)
    rooms["benchmarks"] = sum(_lines(path) for path in (root / "benchmarks").rglob("*.py"))
    total = sum(rooms.values())
    core = sum(_lines(root / name) for name in CORE_PATH)
    return {**dict(sorted(rooms.items())), "core path": core, "all": total}


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def main() -> int:
    """Show the table, or write it."""
    today = lines_of()
    if sys.argv[1:] == ["--write"]:
        BUDGET.write_text(json.dumps(today, indent=2) + "\n", encoding="utf-8")
        return 0
    allowed = json.loads(BUDGET.read_text(encoding="utf-8"))
    for name, count in today.items():
        print(f"{name:20} {count:6} of {allowed.get(name, 0):6}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
