"""Runs as one self-contained HTML page: no network, no other file, one script of its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vit_edge.bench.report.cells import table
from vit_edge.bench.report.looks import Looks
from vit_edge.bench.report.machines import Machine, apart, backend_facts, run_facts
from vit_edge.bench.report.markdown import EXPLANATION, noise_sentence
from vit_edge.bench.report.plots import figures
from vit_edge.bench.report.scaling import across
from vit_edge.report.page import filled

TEMPLATES = Path(__file__).parent / "templates"


def html_page(machines: Sequence[Machine]) -> str:
    """Render what was measured as one page.

    Args:
        machines: As `machines.machines` puts them in order.

    Returns:
        The page. Every text in the results is escaped, and the page's own policy allows one
        script, by its hash, and nothing from elsewhere. It can be read without the script.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    script = (TEMPLATES / "table.js").read_text(encoding="utf-8")
    looks = Looks([line for machine in machines for line in machine.lines])
    return filled(
        TEMPLATES,
        script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        explanation=EXPLANATION,
        machines=[_view(machine, looks, f"m{place}") for place, machine in enumerate(machines)],
    )


def _view(machine: Machine, looks: Looks, prefix: str) -> dict[str, Any]:
    """What the template shows of a machine."""
    whole, single = machine.warnings
    folds = any(group.at_its_size for group in machine.groups)
    return {
        "title": machine.title,
        "count": len(machine.lines),
        "warnings": [(run.started, text) for run, text in whole],
        "differing": apart(machine),
        "noise": noise_sentence(machine),
        "single": single,
        "groups": [
            {
                "title": group.title,
                "id": f"{prefix}-group-{place}",
                "folded": folds and not group.at_its_size,
                "figures": list(figures(group, looks, f"{prefix}g{place}")),
                "table": table(group.lines),
            }
            for place, group in enumerate(machine.groups)
        ],
        "across": list(across(machine.lines, looks, f"{prefix}s")),
        "failed": [(line.entry.name, line.entry.failed) for line in machine.failed],
        "facts": list(_facts(machine)),
    }


def _facts(machine: Machine) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for run in machine.runs:
        yield f"Run of {run.started}", list(run_facts(run).items())
        for backend, facts in backend_facts(run).items():
            yield f"Backend {backend}, run of {run.started}", list(facts.items())
