"""Suites: every combination, each once, and every mistake told."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_edge.bench.run.plan import Sampling, Suite, read_suite
from vit_edge.errors import UsageError

SUITE = """
title = "small"
[sampling]
processes = 3
[[measure]]
bundles = ["a", "b"]
backends = ["ort", {name = "openvino", options = {mode = "throughput"}}]
batches = [1, 8]
stages = ["model", "end-to-end"]
[[measure]]
bundles = ["a"]
backends = ["ort"]
scenario = "offline"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    return path


def test_a_suite_is_every_combination(tmp_path: Path) -> None:
    suite = read_suite(written(tmp_path, SUITE), tmp_path)
    assert (suite.title, suite.sampling.processes) == ("small", 3)
    assert len(suite.configurations) == 2 * 2 * 2 * 2 + 1
    assert len({configuration.name for configuration in suite.configurations}) == 17
    assert suite.configurations[0].bundle == tmp_path / "a"
    assert suite.configurations[-1].scenario == "offline"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("title", "titel", "unknown keys: titel"),
        ("processes", "process", "sampling"),
        ("processes = 3", "processes = 0", "at least 1"),
        ("batches = [1, 8]", "batches = [0]", "at least one image"),
        ("batches", "batch", "measure 1: unknown keys: batch"),
        ('"offline"', '"server"', "'server' is not one of single-stream, offline"),
        ('"offline"', '"multi-stream"', "'multi-stream' is not one of single-stream, offline"),
        ("title", "queries_per_second = 10\ntitle", "unknown keys: queries_per_second"),
        ('"end-to-end"', '"both"', "model, end-to-end"),
        ('["a", "b"]', '["a", "a"]', "measured twice"),
        ("[[measure]]", "[[measure", "not a suite"),
        ("processes = 3", "processes = 2.5", "at least 1"),
        ("processes = 3", 'percentile = "0.9"', "percentile"),
        ("processes = 3", "at_least_s = nan", "at_least_s"),
        ("processes = 3", "strict = 1", "true or false"),
        ("processes = 3", 'images = "nowhere"', "is no folder"),
        ("[sampling]", "[[sampling]]", "one table .sampling."),
        ("batches = [1, 8]", 'batches = ["1"]', "batches must be a list of int"),
        ("batches = [1, 8]", "batches = 8", "batches must be a list of int"),
        ("batches = [1, 8]", "batches = []", "batches must be a list of int"),
        ('bundles = ["a", "b"]', 'bundles = "ab"', "bundles must be a list of str"),
        ('{name = "openvino"', "{name = 3", "expected a name"),
        ('stages = ["model", "end-to-end"]', "stages = [1]", "stages must be"),
    ],
)
def test_a_suite_with_a_mistake_is_refused(
    before: str, after: str, words: str, tmp_path: Path
) -> None:
    assert before in SUITE
    with pytest.raises(UsageError, match=words):
        read_suite(written(tmp_path, SUITE.replace(before, after, 1)), tmp_path)


def test_a_single_table_is_no_list_of_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="write tables"):
        read_suite(written(tmp_path, '[measure]\nbundles = ["a"]\nbackends = ["ort"]\n'), tmp_path)


def test_runs_of_offline_have_eight_images_unless_told_otherwise(tmp_path: Path) -> None:
    text = '[[measure]]\nbundles = ["a"]\nbackends = ["ort"]\nscenario = "offline"\n'
    (configuration,) = read_suite(written(tmp_path, text), tmp_path).configurations
    assert configuration.batch == 8


def test_images_of_a_suite_are_beside_it(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    text = SUITE.replace("processes = 3", 'images = "photos"')
    assert read_suite(written(tmp_path, text), Path()).sampling.images == tmp_path / "photos"


def test_a_suite_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a suite"):
        read_suite(tmp_path / "absent.toml", tmp_path)


def test_an_empty_suite_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        Suite("empty", ()).check()


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (Sampling(percentile=1.0), "percentile"),
        (Sampling(at_least_s=0), "at_least_s"),
        (Sampling(at_least_s=10, most_s=5), "at_least_s"),
    ],
)
def test_sampling_that_means_nothing_is_refused(sampling: Sampling, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sampling.check()
