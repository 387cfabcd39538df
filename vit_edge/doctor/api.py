"""Look at this machine, and let it try bundles."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from vit_edge import backends
from vit_edge.bundle.bundle import local_folder
from vit_edge.doctor.bundles import bundles_in, examine
from vit_edge.doctor.findings import PROBE_TIMEOUT_S, Finding, Probe, find_out
from vit_edge.doctor.probes import PROBES
from vit_edge.doctor.remedies import remedies
from vit_edge.doctor.report import Report
from vit_edge.machine.cgroups import ROOT

DEFAULT_FOLDER = Path("bundles")
_QUIET_S = 1.0  # what is done within it needs no word about it


class Progress:
    """Says on stderr what is being done, once that takes longer than a second in all."""

    def __init__(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def __call__(self, what: str) -> None:
        """Say what comes next."""
        if sys.stderr is not None and time.monotonic() - self._started > _QUIET_S:
            print(f"doctor: {what} ...", file=sys.stderr, flush=True)


def diagnose(
    paths: Sequence[Path],
    *,
    probes: Sequence[Probe],
    root: Path = ROOT,
    timeout_s: float = PROBE_TIMEOUT_S,
) -> Report:
    """Look at this machine and let it try the bundles.

    Args:
        paths: Bundles, and directories of bundles; none: those in ./bundles.
        probes: What to look at.
        root: Where proc/, sys/, etc/ and the like are.
        timeout_s: For one probe.
    """
    progress = Progress()
    findings: list[tuple[Probe, Finding]] = []
    for probe in probes:
        progress(probe.name)
        findings.append((probe, find_out(probe, root, timeout_s)))
    bundles, no_bundles = [], []
    for path in paths or [DEFAULT_FOLDER]:
        folders = bundles_in(path)
        if paths and not folders:
            what = "no bundle in it" if path.is_dir() else "no such directory"
            no_bundles.append(f"{path}: {what}; vit-edge export makes bundles")
        bundles += [examine(bundle, backends.runtimes(), progress) for bundle in folders]
    by_name = {probe.name: finding for probe, finding in findings}
    return Report(findings, bundles, no_bundles, remedies(by_name, bundles))


def doctor(*bundles: str | os.PathLike[str], timeout_s: float = PROBE_TIMEOUT_S) -> Report:
    """Say what is on this machine, which backends run each bundle, and what to install otherwise.

    Args:
        *bundles: Bundles, and directories of bundles; none: those in ./bundles.
        timeout_s: For one probe.

    Returns:
        The report; `as_text()` is what the command prints. What cannot be read is in it.
    """
    return diagnose([local_folder(path) for path in bundles], probes=PROBES, timeout_s=timeout_s)
