"""Answers under a memory limit that the kernel enforces."""

from __future__ import annotations

import pytest
from memory import answer_within

from vit_edge.backends import ort
from vit_edge.bundle import Bundle
from vit_edge.errors import ResourceError
from vit_edge.machine import cgroups

requires = ("torch", "onnx", "onnxscript", "onnxruntime")

LOW = {"arena": False, "micro_batch": 1}


@pytest.fixture
def built(bundle: Bundle) -> Bundle:
    ort.build(bundle)
    return bundle


@pytest.fixture
def cgroup() -> None:
    group = cgroups.memory_group(10**9)
    if group is None:
        pytest.skip("no memory cgroup can be made here: needs root or a delegated cgroup")
    group.close()


def test_a_bundle_answers_without_a_limit_and_its_memory_is_told(built: Bundle) -> None:
    found = answer_within(built, "ort", LOW, None, timeout_s=60, runs=2)
    assert found.relative <= 1e-5
    assert found.peak_rss_bytes > found.peak_anonymous_bytes > 10_000_000
    assert found.first_answer_s > 0.001 * found.median_ms > 0


def test_a_bundle_answers_within_a_limit(built: Bundle, cgroup: None) -> None:
    found = answer_within(built, "ort", LOW, 200 * 10**6, timeout_s=60, runs=2)
    assert found.relative <= 1e-5


def test_a_limit_below_what_python_needs_is_told_as_such(built: Bundle, cgroup: None) -> None:
    with pytest.raises(ResourceError, match="needed more than its limit of 10 MiB"):
        answer_within(built, "ort", LOW, 10 * 2**20, timeout_s=60)


def test_a_process_that_takes_too_long_is_told_as_such(built: Bundle) -> None:
    with pytest.raises(ResourceError, match=r"longer than 0\.05 s"):
        answer_within(built, "ort", LOW, None, timeout_s=0.05)
