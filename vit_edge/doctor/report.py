"""The report: sections of aligned lines for people, the same as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from vit_edge import cli
from vit_edge.doctor.bundles import Examined
from vit_edge.doctor.findings import Finding, Mark, Probe
from vit_edge.doctor.remedies import Remedy

SCHEMA_VERSION = 1
_MARKS: Mapping[Mark, str] = {"ok": "ok", "absent": "--", "trouble": "!!"}


@dataclass(frozen=True)
class Report:
    """The findings and the bundles of one machine."""

    findings: Sequence[tuple[Probe, Finding]]
    bundles: Sequence[Examined]
    no_bundles: Sequence[str]  # what was named and is none, with the reason
    remedies: Sequence[Remedy]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "findings": {
                probe.name: {"section": probe.section, **_as_dict(finding)}
                for probe, finding in self.findings
            },
            "bundles": [
                {
                    "bundle": str(one.path),
                    "problem": one.problem or None,
                    "about": one.about,
                    "tuned": one.tuned_for or None,
                    "backends": {name: _as_dict(answer) for name, answer in one.answers.items()},
                }
                for one in self.bundles
            ],
            "no_bundles": list(self.no_bundles),
            "remedies": [remedy._asdict() for remedy in self.remedies],
        }

    def as_text(self) -> str:
        """For people; holds nothing that steers a terminal."""
        return cli.printable("\n".join(self._lines()))

    def _lines(self) -> Iterator[str]:
        width = max((len(probe.name) for probe, _ in self.findings), default=0)
        for section, group in groupby(self.findings, lambda item: item[0].section):
            yield section
            for probe, finding in group:
                yield f"  {_MARKS[finding.mark]}  {probe.name:<{width}}  {finding.text}"
            yield ""
        yield "bundles"
        if not self.bundles and not self.no_bundles:
            yield "  --  none here; name some, or vit-edge export --help"
        for bundle in self.bundles:
            yield from _bundle_lines(bundle)
        for problem in self.no_bundles:
            yield f"  !!  {problem}"
        yield ""
        yield "what would help here" if self.remedies else "nothing to install"
        for remedy in self.remedies:
            yield f"  {remedy.purpose}"
            yield f"      {remedy.command}"
        yield ""
        yield "ok: works   --: not here   !!: look at this"


def _bundle_lines(bundle: Examined) -> Iterator[str]:
    if bundle.problem:
        first, *others = bundle.problem.splitlines()
        yield f"  !!  {first}"
        yield from (f"      {line}" for line in others)
        return
    yield f"  {bundle.path}: {bundle.about}"
    width = max((len(name) for name in bundle.answers), default=0)
    for name, finding in bundle.answers.items():
        yield f"  {_MARKS[finding.mark]}  {name:<{width}}  {finding.text}"
    yield f"  {'ok' if bundle.tuned_for else '--'}  {'tuned':<{width}}  " + (
        bundle.tuned_for or bundle.untuned.partition(";")[0]
    )


def _as_dict(finding: Finding) -> dict[str, Any]:
    return {"mark": finding.mark, "text": finding.text, "facts": dict(finding.facts)}
