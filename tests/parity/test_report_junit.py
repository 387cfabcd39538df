"""JUnit XML: its structure, and that nothing red turns green in it."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from tests.parity.report_results import (
    dead_run,
    failed_run,
    made_result,
    made_run,
    open_run,
    typed,
)
from vit_edge.parity.report.junit import junit_xml

# testsuites > testsuite > testcase, as the Jenkins JUnit plugin's schema (junit-10.xsd) has it:
# element -> required attributes, allowed children.
SCHEMA: dict[str, tuple[set[str], set[str]]] = {
    "testsuites": (set(), {"testsuite"}),
    "testsuite": ({"name", "tests", "failures", "errors"}, {"properties", "testcase"}),
    "properties": (set(), {"property"}),
    "property": ({"name", "value"}, set()),
    "testcase": ({"name", "classname"}, {"failure", "error", "skipped", "system-out"}),
    "failure": (set(), set()),
    "error": (set(), set()),
    "skipped": (set(), set()),
    "system-out": (set(), set()),
}


def suites(*runs: dict[str, Any], strict: bool = False) -> ElementTree.Element:
    return ElementTree.fromstring(junit_xml([typed(made_result(*runs))], strict=strict))


def counts(element: ElementTree.Element) -> tuple[int, ...]:
    return tuple(int(element.attrib[count]) for count in ("tests", "failures", "errors", "skipped"))


def test_the_document_has_the_structure_that_ci_systems_read() -> None:
    for element in suites(made_run(), failed_run(), open_run(), dead_run()).iter():
        attributes, children = SCHEMA[element.tag]
        assert attributes <= set(element.attrib)
        assert {child.tag for child in element} <= children


def test_every_check_output_and_batch_size_is_a_case() -> None:
    names = [case.attrib["name"] for case in suites(made_run()).iter("testcase")]
    assert names == [
        "preprocessing", "repeatability", "logits, batch 1", "logits, batch 4",
        "features, batch 4", "verdict",
    ]  # fmt: skip


def test_the_counts_are_those_of_the_cases() -> None:
    root = suites(made_run(), failed_run("openvino"), open_run("eager"), dead_run("trt"))
    found = tuple(
        sum(1 for _ in root.iter(tag)) for tag in ("testcase", "failure", "error", "skipped")
    )
    assert counts(root) == found
    assert tuple(map(sum, zip(*map(counts, root), strict=True))) == found


def test_a_run_that_passes_has_neither_failures_nor_errors() -> None:
    assert counts(suites(made_run())) == (6, 0, 0, 0)


def test_a_failure_carries_the_words() -> None:
    failures = list(suites(failed_run()).iter("failure"))
    assert any("centred SQNR is" in (failure.text or "") for failure in failures)


def test_a_failed_check_fails_its_case() -> None:
    run = failed_run()
    run["checks"][0] = {"name": "preprocessing", "passed": False, "detail": "probe exif: 90 levels"}
    case = next(suites(run).iter("testcase"))
    assert [said.attrib["message"] for said in case.iter("failure")] == ["probe exif: 90 levels"]


def test_a_verdict_that_no_statistic_explains_is_a_failure_all_the_same() -> None:
    run = made_run(verdict="fail")
    run["problems"] = ["placement: the same images in reverse order differ"]
    assert counts(suites(run))[1] == 1


def test_a_statistic_beyond_its_limit_is_a_failure_whatever_the_verdict_says() -> None:
    assert counts(suites(made_run(noise=3.0, verdict="pass")))[1] >= 2


def test_a_run_that_died_is_an_error_with_its_reason() -> None:
    root = suites(dead_run())
    assert counts(root) == (1, 0, 1, 0)
    (error,) = root.iter("error")
    assert error.attrib["message"] == "it needed more than its limit of 100 MiB"


def test_what_the_images_do_not_decide_is_skipped() -> None:
    assert counts(suites(open_run()))[1:] == (0, 0, 3)


def test_what_the_images_do_not_decide_fails_when_strict() -> None:
    assert counts(suites(open_run(), strict=True))[1:] == (3, 0, 0)


@pytest.mark.parametrize("text", ["<&>\"'", "]]>", "a\x00b\x1b[31m", "\ud800", "é中🙂", "\ufffe"])
def test_no_text_can_break_the_document(text: str) -> None:
    run = failed_run(text)
    run |= {"problems": [text], "facts": {text: text}, "localized": text}
    run["checks"][0] |= {"name": text, "passed": False, "detail": text}
    xml = junit_xml([typed(made_result(run, cpu=text))])
    assert len(list(ElementTree.fromstring(xml.encode()).iter("testcase"))) == 6


def test_the_machines_of_several_results_are_told_apart() -> None:
    results = [typed(made_result(cpu=cpu)) for cpu in ("Cortex-A78AE", "AMD EPYC")]
    root = ElementTree.fromstring(junit_xml(results))
    assert [suite.attrib["name"] for suite in root] == ["A base-1 on ort", "B base-1 on ort"]
    assert len({case.attrib["classname"] for case in root.iter("testcase")}) == 2
