"""Results as JUnit XML, which every CI system shows.

The structure is the one that the Jenkins JUnit plugin and GitLab read: testsuites > testsuite >
properties, testcase > failure | error | skipped, system-out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from vit_edge.parity.report.sections import device_words, devices
from vit_edge.parity.result import DIED, FAIL, INCONCLUSIVE, PASS, Result, Run
from vit_edge.parity.targets import STATISTICS

# XML 1.0, section 2.2: what no document may hold, escaped or not.
_NO_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")
_TAGS = {FAIL: "failure", DIED: "error", INCONCLUSIVE: "skipped"}


class Case(NamedTuple):
    """One testcase."""

    name: str
    status: str
    words: str


def junit_xml(results: Sequence[Result], *, strict: bool = False) -> str:
    """Write results as JUnit XML.

    Args:
        results: What `vit_edge.parity.run.compare` returned, here or elsewhere.
        strict: Take what the images do not decide for a failure; otherwise it is skipped.

    Returns:
        The document: a testsuite per result and backend. It has a testcase per check, per output
        and batch size, per bound of the target, and one for the verdict itself.
    """
    root = ElementTree.Element("testsuites", name="vit_edge parity")
    for device, result in zip(devices(len(results)), results, strict=True):
        for run in result.runs:
            root.append(_suite(result, run, device, strict=strict))
    for count in ("tests", "failures", "errors", "skipped"):
        root.set(count, str(sum(int(suite.attrib[count]) for suite in root)))
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _suite(result: Result, run: Run, device: str, *, strict: bool) -> ElementTree.Element:
    name = f"{result.bundle.name} on {run.name}"
    suite = ElementTree.Element("testsuite", name=_legal(f"{device} {name}".strip()))
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in {**result.machine, **run.facts}.items():
        ElementTree.SubElement(properties, "property", name=_legal(key), value=_legal(value))
    parts = ("vit_edge.parity", device, result.bundle.name, run.name)
    classname = _legal(".".join(filter(None, parts)))
    counts = dict.fromkeys(_TAGS.values(), 0)
    cases = list(_cases(run))
    for case in cases:
        element = ElementTree.SubElement(
            suite, "testcase", classname=classname, name=_legal(case.name), time="0"
        )
        status = FAIL if strict and case.status == INCONCLUSIVE else case.status
        if status in _TAGS:
            tag = _TAGS[status]
            counts[tag] += 1
            _say(element, tag, case)
    element.set("time", f"{run.seconds.total:.3f}")  # the last: the verdict took it all
    if run.localized is not None:
        ElementTree.SubElement(element, "system-out").text = _legal(run.localized)
    suite.set("hostname", _legal(device_words(result)))
    suite.set("timestamp", _legal(result.created))
    suite.set("time", f"{run.seconds.total:.3f}")
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(counts["failure"]))
    suite.set("errors", str(counts["error"]))
    suite.set("skipped", str(counts["skipped"]))
    return suite


def _say(element: ElementTree.Element, tag: str, case: Case) -> None:
    first = case.words.partition("\n")[0]
    said = ElementTree.SubElement(element, tag, message=_legal(first))
    if tag != "skipped":
        said.set("type", case.status)
    said.text = _legal(case.words)


def _cases(run: Run) -> Iterator[Case]:
    """The verdict comes last, and is there for a run that died before it compared anything."""
    for check in run.checks:
        yield Case(check.name, PASS if check.passed else FAIL, check.detail)
    for row in run.comparisons:
        findings = run.findings_of(row)
        wrong = [f.words for f in findings if f.rule == "limit" and f.status == FAIL]
        yield Case(row.place, FAIL if wrong else PASS, "\n".join(wrong))
        for finding in findings:
            if finding.rule == "target":
                words = STATISTICS[finding.statistic].words
                yield Case(f"{row.place}: target {words}", finding.status, finding.words)
    reasons = [*run.failures, *run.open_questions]
    yield Case("verdict", run.verdict, "\n".join(reasons) or run.verdict)


def _legal(text: str) -> str:
    """Text without what XML cannot hold; escaping is ElementTree's."""
    return _NO_XML.sub("\ufffd", text)
