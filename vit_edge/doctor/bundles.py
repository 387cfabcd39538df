"""The backends that run a bundle here: each is asked to, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vit_edge import backends
from vit_edge.backends import Option, auto, name_of
from vit_edge.bench.run.plan import Configuration
from vit_edge.bundle import Bundle
from vit_edge.bundle.bundle import MANIFEST_NAME
from vit_edge.doctor.findings import Finding, Mark, in_child, one_line
from vit_edge.errors import VitEdgeError
from vit_edge.machine.memory import memory, readable_size

# The first load on a machine reads and hashes every byte, off an SD card at some 20 MB/s.
ANSWER_TIMEOUT_S = 180.0
_WHERE = ("provider", "device")  # the options of backends that say what of the machine computes


@dataclass(frozen=True)
class Examined:
    """A bundle, and each backend's answer; a broken bundle has a `problem` instead."""

    path: Path
    problem: str = ""
    about: str = ""
    tuned_for: str = ""  # what `build --tune` chose; empty where it did not
    untuned: str = ""  # and why there is no such record
    answers: Mapping[str, Finding] = field(default_factory=dict)


def bundles_in(path: Path) -> list[Path]:
    """The bundle at a path, or those in the directory that it is; empty if neither."""
    try:
        if (path / MANIFEST_NAME).exists():
            return [path]
        return sorted(folder for folder in path.iterdir() if (folder / MANIFEST_NAME).exists())
    except OSError:
        return []


def examine(
    path: Path,
    names: Sequence[str],
    say: Callable[[str], None],
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> Examined:
    """Let backends answer a golden image of a bundle.

    Args:
        path: Its directory.
        names: The backends to ask.
        say: Called with what is being done, before it is.
        timeout_s: For each backend.
    """
    try:
        bundle = Bundle.read(path)
    except Exception as error:
        return Examined(path, problem=_said(error))
    manifest = bundle.manifest
    about = (
        f"{manifest.variant}, {manifest.precision}, opset {manifest.opset}, "
        f"{readable_size(bundle.model_bytes)}, batches to {manifest.max_batch}"
    )
    record = in_child(f"{__name__}:tuning", str(path), timeout_s=timeout_s)
    chosen, untuned = record.value or ("", record.reason)
    answers = {}
    for name in names:
        say(f"{path}: asking {name}")
        listed = in_child(f"{__name__}:list_placements", str(path), name, timeout_s=timeout_s)
        for options in listed.value or [{}]:
            answers[name_of(name, options)] = _ask(path, name, options, timeout_s)
    return Examined(path, "", about, chosen, one_line(untuned), answers)


def tuning(path: str) -> tuple[str, str]:
    """Read what `build --tune` chose here, or why there is no such record (the child's side)."""
    choices, reason = auto.read(Bundle.read(path))
    words = (f"batch {batch}: {choice.name}" for batch, choice in sorted(choices.items()))
    return "; ".join(words), reason


def list_placements(path: str, name: str) -> list[dict[str, Option]]:
    """List a backend's default, and where else it can run here (the child's side).

    Raises:
        VitEdgeError: It cannot be used here.
    """
    bundle = Bundle.read(path)
    placements: list[dict[str, Option]] = [{}]
    for options in backends.module(name).configurations(bundle):
        where = {key: value for key, value in options.items() if key in _WHERE}
        if where not in placements:
            placements.append(where)
    return placements


def _ask(path: Path, name: str, options: Mapping[str, Option], timeout_s: float) -> Finding:
    left = memory().available_bytes
    # At most what is free: a model that is too large for this machine ends itself and nobody else.
    outcome = in_child(
        "vit_edge.bench.run.session:answer",
        Configuration(path, name, options),
        timeout_s=timeout_s,
        memory_limit_bytes=left or None,
    )
    if outcome.value is None:
        reason = outcome.reason.removeprefix(f"{path}: ")
        reason = reason.removeprefix(f"backend {name} cannot be used here: ")
        mark: Mark = "absent" if outcome.refused else "trouble"
        return Finding(mark, one_line(reason), {"runs": False, "reason": reason})
    answer = {**outcome.value, "peak_rss_bytes": outcome.peak_rss_bytes, "available_bytes": left}
    difference = answer["difference"]
    wrong = difference is None or difference >= 1  # as far off as the logits are large
    words = [
        "answers WRONG: run vit-edge parity" if wrong else "runs",
        f"first answer {answer['first_answer_s']:.2f} s",
        f"peak memory {readable_size(outcome.peak_rss_bytes)}",
        "logits not finite" if difference is None else f"logits off by {difference:.1g} at most",
        f"engine {answer['facts'].get('engine', 'none')}",
    ]
    return Finding("trouble" if wrong else "ok", ", ".join(words), {"runs": not wrong, **answer})


def _said(error: Exception) -> str:
    """Return the message of our own errors; others get their type."""
    ours = isinstance(error, VitEdgeError)
    return str(error) if ours else f"{type(error).__name__}: {one_line(str(error))}"
