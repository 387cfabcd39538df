"""The least memory in which a bundle answers, and in which it runs at full speed.

    python benchmarks/memory_limit.py BUNDLE [--limits 250,200,160,...] [--timeout 5]

Each line is a fresh process in a fresh memory cgroup without swap, the bundle's files dropped from
the page cache first. "Answers" is: the golden logits' precision as without a limit, within the time
from the start of the process. "Full speed" is: at most 1.1 times the median without a limit. Needs
root, or a delegated cgroup. Build the bundle first (vit-edge build BUNDLE).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

import script
from memory import Answered, answer_within

from vit_edge import cli
from vit_edge.bundle import Bundle
from vit_edge.errors import ResourceError

FORMS: Mapping[str, Mapping[str, object]] = {
    "default": {},
    "low memory": {"arena": False, "micro_batch": 1},
    "least memory": {"trim": True, "micro_batch": 1},
}
LIMITS_MB = "300,250,200,180,160,140,120,100,90,80,72,64,56"
FULL_SPEED = 1.1


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--limits", default=LIMITS_MB, metavar="MB,MB", help="largest first")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds to the first answer")
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    bundle = Bundle.read(arguments.bundle)
    limits = [10**6 * size for size in cli.whole_numbers(arguments.limits, "--limits")]
    print(f"{script.machine()}; {bundle.path}")
    for name, options in FORMS.items():
        print(f"\n{name}: {dict(options)}")
        free = answer_within(bundle, "ort", options, None, timeout_s=60.0)
        print(line(None, free, free))
        rows = [(limit, tried(bundle, options, limit, arguments.timeout, free)) for limit in limits]
        answering = [limit for limit, found in rows if found is not None]
        fast = [
            limit
            for limit, found in rows
            if found is not None and found.median_ms <= FULL_SPEED * free.median_ms
        ]
        print(f"answers from {smallest(answering)}, at full speed from {smallest(fast)}")
    return 0


def tried(
    bundle: Bundle, options: Mapping[str, object], limit: int, timeout_s: float, free: Answered
) -> Answered | None:
    """Run within a limit, print how it went, and give it if it counts as an answer."""
    try:
        found = answer_within(bundle, "ort", options, limit, timeout_s=60.0)
    except ResourceError as error:
        print(f"{limit // 10**6:>5} MB  {str(error).splitlines()[0][:110]}", flush=True)
        return None
    right = found.relative <= 1.001 * free.relative + 1e-6
    in_time = found.first_answer_s <= timeout_s
    print(line(limit, found, free) + ("" if right else "  WRONG") + ("" if in_time else "  LATE"))
    return found if right and in_time else None


def line(limit: int | None, found: Answered, free: Answered) -> str:
    """One row of the table."""
    shown = "none" if limit is None else f"{limit // 10**6} MB"
    return (
        f"{shown:>8}  first answer {found.first_answer_s:5.2f} s  median {found.median_ms:6.0f} ms "
        f"({found.median_ms / free.median_ms:4.2f}x)  own {found.peak_anonymous_bytes / 1e6:4.0f} "
        f"MB  with files {found.peak_rss_bytes / 1e6:4.0f} MB"
    )


def smallest(limits: list[int]) -> str:
    """The least of the limits that hold."""
    return f"{min(limits) // 10**6} MB" if limits else "none of these"


if __name__ == "__main__":
    sys.exit(main())
