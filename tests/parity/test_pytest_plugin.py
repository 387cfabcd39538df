"""The fixture that other repositories use: red where a model drifts, and free where unused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.report_results import made_result, made_run, typed
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden, write_golden
from vit_edge.parity import run
from vit_edge.parity.pytest_plugin import check_parity, failure_text
from vit_edge.parity.result import DIED, FAIL, INCONCLUSIVE, PASS, Result

requires = ("onnxruntime",)

PLUGIN = "vit_edge.parity.pytest_plugin"


def drifted(bundle: Bundle, path: Path) -> Path:
    """The bundle's golden file, with logits that are off by a hundredth."""
    with Golden(bundle.golden_path) as golden:
        everything = range(len(golden))
        answers = golden.answers(everything)
        answers["logits"] = answers["logits"] + np.float32(0.01)
        write_golden(
            path,
            probes=golden.probes(),
            names=golden.names,
            images=golden.images(everything),
            answers=answers,
            reference_dtype="float64",
        )
    return path


def outcome(folder: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a user's test file in a pytest of its own, with this plugin alone."""
    (folder / "test_user.py").write_text(code)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    repository = str(Path(run.__file__).parents[2])
    path = os.pathsep.join([repository, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": path},
    )  # fmt: skip


def test_a_sound_bundle_is_green_and_a_drifted_one_red_with_the_reason(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    golden = drifted(testing_bundle, tmp_path / "drifted.npz")
    done = outcome(
        tmp_path,
        f"""
def test_sound(vit_edge_parity):
    result = vit_edge_parity({str(testing_bundle.path)!r}, backend="ort")
    assert result["runs"][0]["verdict"] == "pass"

def test_drifted(vit_edge_parity):
    vit_edge_parity({str(testing_bundle.path)!r}, backend="ort", golden={str(golden)!r})
""",
        "-p", PLUGIN,
    )  # fmt: skip
    assert "1 failed, 1 passed" in done.stdout
    assert re.search(r"AssertionError: \S+ \(testing, fp32\) drifts:", done.stdout)
    assert "ort: fail" in done.stdout
    assert "worst is image" in done.stdout
    assert "__tracebackhide__" not in done.stdout


def test_the_plugin_costs_nothing_when_no_test_uses_it(tmp_path: Path) -> None:
    code = """
import sys

def test_nothing_heavy_is_there():
    assert "vit_edge.parity.pytest_plugin" in sys.modules
    heavy = {"numpy", "PIL", "onnxruntime", "torch", "vit_edge.parity.run"}
    assert not heavy & set(sys.modules)
"""
    done = outcome(tmp_path, code, "-p", PLUGIN)
    assert done.returncode == 0, done.stdout


def test_pytest_finds_the_plugin_by_its_entry_point(repository: Path, tmp_path: Path) -> None:
    project = (repository / "pyproject.toml").read_text("utf-8")
    section = re.search(r'\[project.entry-points.pytest11\]\n(\w+) = "([\w.]+)"', project)
    assert section is not None
    record = tmp_path / "site" / "someone-1.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: someone\nVersion: 1\n")
    (record / "entry_points.txt").write_text(f"[pytest11]\n{section[1]} = {section[2]}\n")
    env = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    path = os.pathsep.join([str(tmp_path / "site"), str(repository)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--fixtures", "-q", "-p", "no:xdist"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**env, "PYTHONPATH": path},
    )  # fmt: skip
    assert "vit_edge_parity" in done.stdout, done.stderr
    assert "Compare a bundle with the reference's answers" in done.stdout


def judged(verdict: str, **entries: Any) -> Result:
    result = made_result(made_run() | {"verdict": verdict} | entries)
    result["bundle"] |= {"name": "mine", "variant": "testing"}
    return typed(result)


@pytest.mark.parametrize(
    ("verdict", "strict", "red"),
    [
        (PASS, True, False),
        (FAIL, False, True),
        (DIED, False, True),
        (INCONCLUSIVE, False, False),
        (INCONCLUSIVE, True, True),
    ],
)
def test_inconclusive_is_red_only_if_strict(
    monkeypatch: pytest.MonkeyPatch, verdict: str, strict: bool, red: bool
) -> None:
    monkeypatch.setattr(run, "compare", lambda *args, **kwargs: judged(verdict))
    if not red:
        assert check_parity("mine", strict=strict)["runs"][0]["verdict"] == verdict
        return
    with pytest.raises(AssertionError, match=f"ort: {verdict}"):
        check_parity("mine", strict=strict)


def test_the_words_of_the_verdict_are_all_there() -> None:
    text = failure_text(judged(FAIL, death="killed", problems=["a", "b"], open_questions=["c"]))
    assert text.splitlines() == [
        "mine (testing, int8) drifts:", "  ort: fail", "    killed", "    a", "    b", "    c",
    ]  # fmt: skip


def test_every_option_reaches_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def compare(bundle: str, **options: Any) -> Result:
        seen.update(options, bundle=bundle)
        return judged(PASS)

    monkeypatch.setattr(run, "compare", compare)
    check_parity(
        Path("mine"),
        backend="ort,openvino",
        target="top1_agreement=0.99",
        golden="g.npz",
        against="fp32",
        memory_limit="100MB",
    )
    assert seen["bundle"] == "mine"
    assert seen["backend_names"] == ["ort", "openvino"]
    assert (seen["golden"], seen["against"]) == (Path("g.npz"), Path("fp32"))
    assert seen["memory_limit_bytes"] == 100_000_000
    assert seen["target"].as_dict() == {"top1_agreement": 0.99}
