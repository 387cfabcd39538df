"""Files that Polygraphy reads: its own reader and its command line find what we wrote."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.errors import MissingExtraError, ResourceError
from vit_edge.parity import polygraphy

requires = ("polygraphy", "onnxruntime")


@pytest.fixture(scope="module")
def saved(testing_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The testing bundle's golden file, as a run of Polygraphy."""
    path = tmp_path_factory.mktemp("run") / "run.json"
    write(path, testing_bundle)
    return path


def write(path: Path, bundle: Bundle) -> None:
    with Golden(bundle.golden_path) as golden:
        polygraphy.save_golden(path, golden, bundle.manifest)


def run_results(path: Path) -> Any:
    """The answers in a file, by Polygraphy's own reader."""
    return importlib.import_module("polygraphy.comparator").RunResults.load(str(path))


def polygraphy_run(bundle: Bundle, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`polygraphy run` with ONNX Runtime, in this environment."""
    return command("run", bundle.model_path, "--onnxrt", *arguments)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Polygraphy's command line, of this environment."""
    script = Path(sys.executable).with_name("polygraphy")
    return subprocess.run(
        [script, *arguments], capture_output=True, text=True, check=False, timeout=300
    )


def against(saved: Path, outputs: Path) -> list[str | Path]:
    tolerances = ["--atol", "1e-4", "--rtol", "1e-4"]
    return ["--load-inputs", polygraphy.inputs_path(saved), "--load-outputs", outputs, *tolerances]


def test_polygraphy_reads_the_answers_and_the_inputs(saved: Path, testing_bundle: Bundle) -> None:
    (entry,) = run_results(saved).items()
    runner, iterations = entry
    json = importlib.import_module("polygraphy.json")
    inputs = json.load_json(str(polygraphy.inputs_path(saved)))
    assert runner == polygraphy.REFERENCE
    with Golden(testing_bundle.golden_path) as golden:
        assert len(iterations) == len(inputs) == len(golden)
        for index, answers in enumerate(iterations):
            expected = golden.answers([index])
            assert answers.keys() == expected.keys()
            assert all(np.array_equal(answers[name], expected[name]) for name in expected)
    (name,) = inputs[0]
    assert name == testing_bundle.manifest.input.name
    assert inputs[0][name].shape[0] == 1


def test_a_place_that_cannot_be_written_is_a_typed_error(
    testing_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(ResourceError, match="nonesuch"):
        write(tmp_path / "nonesuch" / "run.json", testing_bundle)


def test_without_polygraphy_the_line_to_type_is_named(
    testing_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy.comparator", None)
    with pytest.raises(MissingExtraError, match=r"vit-edge\[polygraphy\]"):
        write(tmp_path / "run.json", testing_bundle)


def test_nothing_is_printed(
    testing_bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "again.json", testing_bundle)
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_polygraphys_own_command_line_passes_what_we_saved(
    saved: Path, testing_bundle: Bundle
) -> None:
    done = polygraphy_run(testing_bundle, *against(saved, saved))
    assert done.returncode == 0, done.stdout
    assert "PASSED" in done.stdout


@pytest.mark.slow
def test_polygraphys_own_command_line_fails_what_was_perturbed(
    saved: Path, testing_bundle: Bundle, tmp_path: Path
) -> None:
    results = run_results(saved)
    ((runner, iterations),) = results.items()
    answers = [dict(iteration) for iteration in iterations]
    answers[3]["logits"] = answers[3]["logits"] + np.float32(0.01)
    perturbed = type(results)()
    perturbed.add(answers, runner_name=runner)
    perturbed.save(str(tmp_path / "perturbed.json"))
    done = polygraphy_run(testing_bundle, *against(saved, tmp_path / "perturbed.json"))
    assert done.returncode == 1, done.stdout
    assert f"Passed: {len(answers) - 1}/{len(answers)} iterations" in done.stdout


@pytest.mark.slow
def test_polygraphys_own_command_line_shows_what_we_saved(saved: Path) -> None:
    done = command("inspect", "data", saved)
    assert done.returncode == 0, done.stderr
    assert polygraphy.REFERENCE in done.stdout
