"""Comparisons in children: what dies is a result, and what does not decide is open."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.report_results import made_result, typed
from tests.parity.test_low_precision import MANIFEST, Candidate, compared, reference
from vit_edge import backends, plugins
from vit_edge.bundle import Bundle
from vit_edge.bundle.golden import Golden, Probe, write_golden
from vit_edge.machine import child
from vit_edge.parity import judge, run
from vit_edge.parity.__main__ import main
from vit_edge.parity.compare import Comparison, compare_answers
from vit_edge.parity.invariance import check_invariance, failed
from vit_edge.parity.limits import limit_for
from vit_edge.parity.result import DIED, FAIL, PASS, Scatter, exit_code
from vit_edge.parity.run import Question, compare, compare_here
from vit_edge.parity.targets import parse_target
from vit_edge.parity.witness import SCATTER, Witness
from vit_edge.strict import json_from_record

requires = ("onnxruntime",)


def test_a_result_says_what_was_compared_with_what_and_where(testing_bundle: Bundle) -> None:
    result = compare(testing_bundle, backend_names=["ort"])
    json.dumps(json_from_record(result), allow_nan=False)
    assert result.schema_version == 3
    assert result.bundle.model_sha256 == testing_bundle.model_sha256
    assert result.golden.images == 16
    assert {"cpu", "cpus", "memory", "system"} <= result.machine.keys()
    (found,) = result.runs
    assert found.verdict == PASS
    assert (found.memory.peak_rss_bytes or 0) > (found.memory.peak_anonymous_bytes or 0) > 10e6
    assert found.seconds.total > found.seconds.running > 0
    assert [entry.index for entry in found.images] == list(range(16))
    assert len(found.scatter.reference) == len(found.scatter.candidate) > 100


def test_each_backend_runs_in_a_process_of_its_own_in_the_order_asked_for(
    testing_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "compare_here", lambda question: pytest.fail("in this process"))
    pytest.importorskip("openvino")
    result = compare(testing_bundle, backend_names=["openvino", "ort"])
    assert [entry.name for entry in result.runs] == ["openvino", "ort"]
    assert [entry.facts["backend"] for entry in result.runs] == ["openvino", "ort"]


# Children that die


def test_a_child_that_needs_too_much_memory_is_a_result(
    testing_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(testing_bundle.path), "--backend", "ort", "--memory-limit", "20MB"]
    assert main(arguments) == 4
    said = capsys.readouterr().out
    assert "it needed more than its limit of 19 MiB" in said
    assert "parity FAILED: it died" in said


def test_a_child_that_is_killed_is_a_result_and_the_next_backend_runs(
    testing_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = child.attempted_call, []

    def killed_once(target: str, *arguments: Any, **limits: Any) -> child.Call:
        calls.append(target)
        if len(calls) > 1:
            return real(target, *arguments, **limits)
        return real("tests.parity.test_run:kill_yourself", **limits)

    monkeypatch.setattr(child, "attempted_call", killed_once)
    result = compare(testing_bundle, backend_names=["ort", "auto"])
    first, second = result.runs
    assert (first.verdict, first.death) == (DIED, "killed by SIGKILL")
    assert second.verdict == PASS
    assert exit_code([result], strict=False) == 4


def kill_yourself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_that_takes_too_long_is_a_result(testing_bundle: Bundle) -> None:
    (found,) = compare(testing_bundle, backend_names=["ort"], timeout_s=0.05).runs
    assert found.verdict == DIED
    assert "it took longer than 0.05 s" in (found.death or "")


def test_a_backend_that_refuses_the_bundle_is_a_result(
    testing_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vit_edge.errors import BackendError

    def refusing(*arguments: Any, **limits: Any) -> Any:
        raise BackendError("no such device")

    monkeypatch.setattr(child, "attempted_call", refusing)
    (found,) = compare(testing_bundle, backend_names=["ort"]).runs
    assert found.death == "BackendError: no such device"


def test_a_damaged_bundle_is_an_error_and_no_result(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle.golden_path.write_bytes(b"")
    assert main([str(bundle.path), "--backend", "ort"]) == 3
    assert "golden.npz" in capsys.readouterr().err


# Verdicts


def unproven(comparison: Comparison) -> list[str]:
    judged = judge.findings(comparison.rows(), comparison.limit, comparison.target)
    return judge.open_questions(judged)


def test_a_rate_that_the_images_do_not_prove_is_open_and_says_how_many_would() -> None:
    golden = reference(16)
    target = parse_target("top1_agreement=0.99")
    found = compared("int8", golden, Candidate(golden.logits, golden.features), target)
    assert found.problems == []
    (question,) = unproven(found)
    assert "top-1 agreement at least 99.00% is not proven" in question
    assert "about 381 images" in question


def test_a_rate_is_judged_where_all_images_were_seen() -> None:
    """At batch 1, 2 and 3 only 64 are compared, which prove no more than 94 %."""
    golden = reference(500)
    target = parse_target("top1_agreement=0.99")

    def judged(logits: Any) -> Any:
        return compare_answers(
            Candidate(logits, golden.features), golden, MANIFEST, batches=[1, 100],
            limit=limit_for("int8"), target=target,
        )  # fmt: skip

    found = judged(golden.logits)
    assert {row.images for row in found.rows()} == {64, 500}
    assert unproven(found) == []
    assert found.problems == []
    wrong = golden.logits.copy()
    wrong[100:] = np.roll(wrong[100:], 1, axis=1)
    assert any("target: top-1 agreement" in problem for problem in judged(wrong).problems)


def test_an_open_question_fails_where_the_user_is_strict(
    testing_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(testing_bundle.path), "--backend", "ort", "--target", "top1_agreement=0.99"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "OPEN: logits" in said
    assert said.rstrip().endswith("parity INCONCLUSIVE")
    assert main([*arguments, "--strict"]) == 4


def test_a_golden_file_cannot_steer_the_terminal(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    with Golden(bundle.golden_path) as golden:
        (probe, *_), names = golden.probes(), golden.names
        places = range(len(golden))
        images, answers = golden.images(places), golden.answers(places)
    evil = Probe("\x1b[2J.png", b"no image", probe.resized)
    other = bundle.path / "other.npz"
    write_golden(
        other, probes=[evil], names=names, images=images, answers=answers, reference_dtype="\x1b[1m"
    )
    assert main([str(bundle.path), "--backend", "ort", "--golden", str(other)]) == 4
    said = capsys.readouterr().out
    assert "probe" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_reference_that_is_broken_itself_is_refused(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    with Golden(bundle.golden_path) as golden:
        places = range(len(golden))
        images, answers = golden.images(places), golden.answers(places)
        answers["logits"][3, 2] = value
        other = bundle.path / "other.npz"
        write_golden(
            other, probes=golden.probes(), names=golden.names, images=images, answers=answers,
            reference_dtype="float64",
        )  # fmt: skip
    assert main([str(bundle.path), "--backend", "ort", "--golden", str(other)]) == 3
    assert "image 3: logits holds NaN or Inf: the reference itself" in capsys.readouterr().err


def test_a_verdict_outranks_a_report_that_cannot_be_written(
    testing_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = str(tmp_path / "absent" / "x.xml")
    arguments = [str(testing_bundle.path), "--backend", "ort", "--junit", nowhere]
    assert main(arguments) not in (0, 4)
    assert "parity holds" in capsys.readouterr().out
    assert main([*arguments, "--target", "sqnr_centred_db=290"]) == 4


def test_a_backend_that_is_not_installed_is_refused_before_any_runs(
    testing_bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "attempted_call", lambda *_, **__: pytest.fail("one ran"))
    absent = backends.Availability(False, "openvino is not installed: pip install it")
    # Not by backends.module(): that refuses what is not installed, as it may not be here.
    monkeypatch.setattr(plugins.load("vit_edge.backends", "openvino"), "available", lambda: absent)
    assert main([str(testing_bundle.path), "--backend", "ort,openvino"]) == 3
    assert "openvino is not installed" in capsys.readouterr().err


def test_what_a_child_raises_is_the_result_of_its_backend_alone(
    testing_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = child.attempted_call, []

    def raising_once(target: str, *arguments: Any, **limits: Any) -> child.Call:
        calls.append(target)
        if len(calls) > 1:
            return real(target, *arguments, **limits)
        return real("tests.parity.test_run:leave_without_a_word", **limits)

    monkeypatch.setattr(child, "attempted_call", raising_once)
    first, second = compare(testing_bundle, backend_names=["ort", "auto"]).runs
    assert "ended without an answer" in (first.death or "")
    assert second.verdict == PASS


def leave_without_a_word() -> None:
    os._exit(0)


def test_nothing_compared_is_no_success() -> None:
    assert exit_code([], strict=False) == 4
    assert exit_code([typed(made_result() | {"runs": []})], strict=False) == 4


# Against another bundle


def test_another_bundle_can_be_the_reference(bundle: Bundle, testing_bundle: Bundle) -> None:
    result = compare(bundle, backend_names=["ort"], against=testing_bundle.path)
    assert result.against is not None
    assert result.against.model_sha256 == testing_bundle.model_sha256
    (found,) = result.runs
    assert found.verdict == PASS
    assert result.golden.reference_dtype.startswith("fp32 on onnxruntime")
    rows = [row for row in found.comparisons if row.batch == 1]
    assert all(row.summary["max_abs_diff"] == 0 for row in rows)  # itself


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backend", "ort,tpu"], "no backend 'tpu'; there are: auto"),
        (["--backend", "ort,ort"], "ort is given twice"),
        (["--localize"], "name it with --against"),
        (["--memory-limit", "much"], "is no size"),
    ],
)
def test_wrong_usage_is_refused(
    testing_bundle: Bundle, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main([str(testing_bundle.path), *arguments]) == 2
    assert said in capsys.readouterr().err


# An image's answer, again and elsewhere


class Double:
    """A candidate whose logits are a fixed function of each image, unless a subclass spoils it."""

    def run(self, pixels: Any) -> Any:
        flat = pixels.reshape(len(pixels), -1)
        return {"logits": flat[:, :10] + flat.mean(axis=1, keepdims=True)}


class Forgetful(Double):
    """Another answer every time."""

    calls = 0

    def run(self, pixels: Any) -> Any:
        self.calls += 1
        return {"logits": super().run(pixels)["logits"] * (1 + 0.1 * self.calls)}


class Placed(Double):
    """The place in the batch counts."""

    def run(self, pixels: Any) -> Any:
        answers = super().run(pixels)["logits"]
        return {"logits": answers * np.linspace(1, 1.1, len(pixels))[:, None]}


class Leaking(Double):
    """The first image of a batch is in all answers."""

    def run(self, pixels: Any) -> Any:
        answers = super().run(pixels)["logits"]
        return {"logits": answers + 0.01 * answers[:1]}


class Overwriting(Double):
    """Reuses its output."""

    buffer: Any = None

    def run(self, pixels: Any) -> Any:
        answers = super().run(pixels)["logits"]
        if self.buffer is None or self.buffer.shape != answers.shape:
            self.buffer = np.empty_like(answers)
        self.buffer[:] = answers
        return {"logits": self.buffer}


def checks(candidate: Any, bundle: Bundle, precision: str = "fp32") -> list[str]:
    with Golden(bundle.golden_path) as golden:
        found = check_invariance(candidate, golden, bundle.manifest, limit_for(precision))
    return failed(found)


def test_a_sound_candidate_passes_also_if_it_reuses_its_output(testing_bundle: Bundle) -> None:
    assert checks(Double(), testing_bundle) == []
    assert checks(Overwriting(), testing_bundle) == []


@pytest.mark.parametrize(
    ("candidate", "named"),
    [(Forgetful(), "repeatability"), (Placed(), "placement"), (Leaking(), "placement")],
    ids=["forgetful", "placed", "leaking"],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_answer_that_depends_on_anything_but_its_image_is_caught(
    testing_bundle: Bundle, candidate: Any, named: str, precision: str
) -> None:
    assert any(text.startswith(named) for text in checks(candidate, testing_bundle, precision))


def test_dynamic_scales_excuse_no_leak(testing_bundle: Bundle) -> None:
    """The same images in another order have the same scales."""
    assert any(t.startswith("placement") for t in checks(Leaking(), testing_bundle, "int8-dynamic"))
    assert checks(Double(), testing_bundle, "int8-dynamic") == []


# What a report shows


def test_a_witness_takes_each_image_once_and_keeps_the_scatter_small() -> None:
    witness = Witness(images=3)
    random = np.random.default_rng(0)
    logits = random.standard_normal((3, 1000)).astype(np.float32)
    for _ in range(2):
        witness.add(np.arange(3), logits + 0.01, logits)
    entries = witness.images(["a", "b", "c"], None)
    assert [entry.name for entry in entries] == ["a", "b", "c"]
    first = entries[0].reference[0]
    assert first[0] == int(logits[0].argmax())
    assert 1000 < len(witness.scatter().reference) <= SCATTER


def test_an_answer_of_nans_is_shown_without_numbers() -> None:
    witness = Witness(images=1)
    witness.add(np.array([0]), np.full((1, 4), np.nan, np.float32), np.zeros((1, 4), np.float32))
    (entry,) = witness.images(["x"], None)
    assert [value for _, value in entry.candidate] == [None] * 4
    assert witness.scatter() == Scatter()
    json.dumps(json_from_record(entry), allow_nan=False)


def test_a_candidate_is_compared_in_this_process_too(testing_bundle: Bundle) -> None:
    target = parse_target("sqnr_centred_db=290")
    golden = str(testing_bundle.golden_path)
    found = compare_here(Question(str(testing_bundle.path), "ort", golden, target))
    assert found.verdict == FAIL
    assert found.target == {"sqnr_centred_db": 290}


def test_what_a_child_writes_stays_out_of_the_bundle(bundle: Bundle) -> None:
    def content(folder: Path) -> set[str]:
        return {path.name for path in folder.rglob("*")}

    before = content(bundle.path)
    compare(bundle, backend_names=["ort"], against=bundle.path)
    assert content(bundle.path) == before
