"""Files that Polygraphy and we exchange: read by either, and refused where damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden
from vit_edge.errors import InputError, ResourceError
from vit_edge.parity import polygraphy
from vit_edge.parity.compare import compare_answers
from vit_edge.parity.limits import limit_for

requires = ("polygraphy", "onnxruntime")


@pytest.fixture(scope="module")
def saved(testing_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The testing bundle's golden file, as a run of Polygraphy."""
    path = tmp_path_factory.mktemp("run") / "run.json"
    with Golden(testing_bundle.golden_path) as golden:
        polygraphy.save_golden(path, golden, testing_bundle.manifest)
    return path


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


def test_what_is_saved_comes_back(saved: Path, testing_bundle: Bundle) -> None:
    (run,) = polygraphy.load(saved).values()
    inputs = polygraphy.load_inputs(polygraphy.inputs_path(saved))
    with Golden(testing_bundle.golden_path) as golden:
        assert len(run) == len(inputs) == len(golden)
        for index, answers in enumerate(run):
            expected = golden.answers([index])
            assert answers.keys() == expected.keys()
            assert all(np.array_equal(answers[name], expected[name]) for name in expected)
    (name,) = inputs[0]
    assert name == testing_bundle.manifest.input.name
    assert inputs[0][name].shape[0] == 1


def test_a_run_of_the_reference_itself_holds(saved: Path, testing_bundle: Bundle) -> None:
    (run,) = polygraphy.load(saved).values()
    replay = polygraphy.Replay(polygraphy.load_inputs(polygraphy.inputs_path(saved)), run)
    with Golden(testing_bundle.golden_path) as golden:
        comparison = compare_answers(
            replay, golden, testing_bundle.manifest, batches=[1, 3], limit=limit_for("fp32")
        )
    assert comparison.problems == []


def test_an_image_that_was_not_in_the_run_is_said(saved: Path) -> None:
    (run,) = polygraphy.load(saved).values()
    inputs = polygraphy.load_inputs(polygraphy.inputs_path(saved))
    replay = polygraphy.Replay(inputs[1:], run[1:])
    with pytest.raises(InputError, match="was not in this run"):
        replay.run(next(iter(inputs[0].values())))


def test_inputs_of_another_run_are_refused(saved: Path) -> None:
    (run,) = polygraphy.load(saved).values()
    inputs = polygraphy.load_inputs(polygraphy.inputs_path(saved))
    with pytest.raises(InputError, match="different runs"):
        polygraphy.Replay(inputs[1:], run)


@pytest.mark.parametrize("keep", [0, 1, 100, -1, -20, -2000])
def test_a_truncated_file_is_a_typed_error(saved: Path, tmp_path: Path, keep: int) -> None:
    (tmp_path / "cut.json").write_text(saved.read_text()[:keep])
    with pytest.raises(InputError, match="cut.json"):
        polygraphy.load(tmp_path / "cut.json")


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "7",
        '{"lst": 7, "polygraphy_class": "RunResults"}',
        '{"lst": [["a", 7]], "polygraphy_class": "RunResults"}',
        '{"lst": [["a", [{"x": 1}]]], "polygraphy_class": "RunResults"}',
        '{"array": "AAAA", "polygraphy_class": "ndarray"}',
        "[" * 100_000,
    ],
)
def test_other_json_is_a_typed_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(InputError, match="odd.json"):
        polygraphy.load(tmp_path / "odd.json")


@pytest.mark.parametrize("text", ["{}", "[7]", '[{"x": 1}]', '[{"x": "y"}]'])
def test_other_inputs_are_a_typed_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(InputError, match="odd.json"):
        polygraphy.load_inputs(tmp_path / "odd.json")


def test_a_run_is_no_list_of_inputs(saved: Path) -> None:
    with pytest.raises(InputError, match="RunResults; expected the inputs"):
        polygraphy.load_inputs(saved)


def test_a_missing_file_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nonesuch"):
        polygraphy.load(tmp_path / "nonesuch.json")


def test_a_place_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="nonesuch"):
        polygraphy.save(tmp_path / "nonesuch" / "run.json", "ort", [], [])


def test_nothing_is_printed(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    polygraphy.save(saved.with_name("again.json"), "x", [], polygraphy.load(saved).popitem()[1])
    with pytest.raises(InputError):
        polygraphy.load(saved.parent)
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
    inputs = polygraphy.load_inputs(polygraphy.inputs_path(saved))
    (run,) = polygraphy.load(saved).values()
    run[3]["logits"] = run[3]["logits"] + np.float32(0.01)
    polygraphy.save(tmp_path / "perturbed.json", "perturbed", inputs, run)
    done = polygraphy_run(testing_bundle, *against(saved, tmp_path / "perturbed.json"))
    assert done.returncode == 1, done.stdout
    assert f"Passed: {len(run) - 1}/{len(run)} iterations" in done.stdout


@pytest.mark.slow
def test_what_polygraphys_own_command_line_saves_is_read_and_holds(
    saved: Path, testing_bundle: Bundle, tmp_path: Path
) -> None:
    paths = {name: tmp_path / f"{name}.json" for name in ("inputs", "outputs")}
    done = polygraphy_run(
        testing_bundle, "--load-inputs", polygraphy.inputs_path(saved),
        "--save-inputs", paths["inputs"], "--save-outputs", paths["outputs"],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (run,) = polygraphy.load(paths["outputs"]).values()
    replay = polygraphy.Replay(polygraphy.load_inputs(paths["inputs"]), run)
    with Golden(testing_bundle.golden_path) as golden:
        comparison = compare_answers(
            replay, golden, testing_bundle.manifest, batches=[2], limit=limit_for("fp32")
        )
    assert comparison.problems == []


@pytest.mark.slow
def test_polygraphys_own_command_line_shows_what_we_saved(saved: Path) -> None:
    done = command("inspect", "data", saved)
    assert done.returncode == 0, done.stderr
    assert polygraphy.REFERENCE in done.stdout
