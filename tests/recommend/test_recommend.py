"""What to ship: the fastest that is surely within the terms, and a reason for all others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.bench.planted import GOOD, entry, parity, run
from tests.bench.report_runs import typed, typed_entry
from tests.support.bundles import Exporter
from vit_edge import backends
from vit_edge.bench.device import facts
from vit_edge.bench.results import results
from vit_edge.build import trial
from vit_edge.build.choose import Measured
from vit_edge.bundle import Bundle
from vit_edge.errors import UsageError
from vit_edge.machine import child
from vit_edge.recommend import __main__ as recommend
from vit_edge.recommend import api, offers
from vit_edge.recommend.api import target_from_text
from vit_edge.recommend.offers import Offer, Terms, from_results
from vit_edge.recommend.verdict import Verdict, decide

requires = ("onnxruntime",)

HERE = {"cpu": "x", "cpus": "2"}


def stand_in(model: str) -> Any:
    return SimpleNamespace(path=Path(model), model_sha256=model)


def offered(*entries: Any, **terms: Any) -> tuple[list[Offer], Terms]:
    asked = Terms(**terms)
    whole = typed(run(*entries, facts=HERE))
    return [
        offers.offer(stand_in(one.model.model_sha256 or ""), one, whole, asked)
        for one in whole.configurations
    ], asked


def why(verdict: Verdict) -> dict[str, str]:
    return {one.name: reason for one, reason in verdict.others}


def test_the_fastest_is_shipped_the_next_is_runner_up_and_the_rest_is_slower() -> None:
    verdict = decide(*offered(
        entry("fp32", "ort", 90), entry("int8", "ort", 30), entry("int8", "openvino", 33),
    ))  # fmt: skip
    assert verdict.ship is not None
    assert verdict.runner_up is not None
    assert verdict.ship.name == "int8 with ort"
    assert verdict.runner_up.name == "int8 with openvino"
    assert list(why(verdict)) == ["fp32 with ort"]
    assert "x its median latency, 95 %" in why(verdict)["fp32 with ort"]
    assert [line.split()[0] for line in verdict.lines()] == ["ship", "runner-up", "lost"]


def test_two_that_cannot_be_told_apart_are_said_to_be() -> None:
    one, other = entry("a", "ort", 30, spread=0.05), entry("b", "ort", 30.1, spread=0.05)
    verdict = decide(*offered(one, other))
    assert "cannot tell which is faster" in verdict.lines()[1]


def test_a_latency_counts_by_the_upper_end_of_its_interval() -> None:
    made = entry("a", "ort", 30, spread=0.03)
    (one,), _ = offered(made)
    (value, high) = 30.3, one.setup.latency_ms[1]
    assert high > value
    verdict = decide(*offered(made, max_latency_ms=(value + high) / 2))
    assert verdict.ship is None
    assert "p50 may be " in why(verdict)["a with ort"]
    assert decide(*offered(made, max_latency_ms=high * 1.001)).ship is not None


def test_memory_counts_with_the_files_and_those_that_are_only_files_are_told() -> None:
    mapped = entry("a", "ort", 30, own_mb=52, all_mb=178)
    whole = entry("b", "ort", 31, own_mb=190, all_mb=234)
    verdict = decide(*offered(mapped, whole, memory_limit_bytes=100_000_000))
    assert verdict.ship is None
    assert "it takes 178 MB, allowed are 100; 52 MB are its own" in why(verdict)["a with ort"]
    assert why(verdict)["b with ort"] == "it takes 234 MB, allowed are 100"
    fits = decide(*offered(mapped, whole, memory_limit_bytes=200_000_000))
    assert fits.ship is not None
    assert fits.ship.name == "a with ort"


def test_sixteen_images_do_not_prove_99_per_cent_and_2000_do() -> None:
    target = target_from_text("0.99")
    few, many = parity(16, 16), parity(1998, 2000)
    verdict = decide(*offered(entry("a", "ort", 30, judged=few), target=target))
    assert verdict.ship is None
    (reason,) = why(verdict).values()
    assert reason.startswith("INCONCLUSIVE: top-1 agreement is 100.00% on 16 images, which proves")
    assert "at least 80.64%" in reason
    assert "compare 381 (at this rate)" in reason
    verdict = decide(*offered(entry("a", "ort", 30, judged=many), target=target))
    assert verdict.ship is not None
    assert "at least 99.6" in verdict.ship.proven


def test_what_is_proven_is_shipped_before_what_is_faster_and_open() -> None:
    verdict = decide(*offered(
        entry("fast", "ort", 20, judged=parity(16, 16)), entry("slow", "ort", 30, judged=GOOD),
        target=target_from_text("top1_agreement=0.99,sqnr_centred_db=20"),
    ))  # fmt: skip
    assert verdict.ship is not None
    assert verdict.ship.name == "slow with ort"
    assert why(verdict)["fast with ort"].startswith("INCONCLUSIVE")


def test_answers_that_surely_miss_the_target_are_a_fault_and_no_doubt() -> None:
    target = target_from_text("0.99")
    verdict = decide(*offered(entry("a", "ort", 30, judged=parity(1700, 2000)), target=target))
    assert why(verdict) == {
        "a with ort": "top-1 agreement is 85.00%, allowed at least 99.00%"
    }  # fmt: skip


def test_a_reference_that_decides_nothing_proves_nothing() -> None:
    judged = parity(2000, 2000, reference_margin_median=0.1)
    verdict = decide(*offered(entry("a", "ort", 30, judged=judged), target=target_from_text("0.9")))
    assert verdict.ship is None
    assert "hardly decides" in why(verdict)["a with ort"]


def test_answers_beyond_the_precisions_limit_are_out_without_any_target() -> None:
    judged = GOOD | {"problems": ["logits, batch 1: wrong"]}
    verdict = decide(
        *offered(entry("a", "ort", 30, judged=judged), entry("b", "ort", 90, judged=None))
    )
    assert verdict.ship is None
    assert why(verdict)["a with ort"] == "logits, batch 1: wrong"
    assert "were not compared" in why(verdict)["b with ort"]


def test_what_cannot_run_is_lost_with_its_reason() -> None:
    known, terms = offered(entry("a", "ort", 30, judged=GOOD))
    broken = Offer(stand_in("b"), Measured("trt", {}, refused="no GPU"))
    verdict = decide([broken, *known], terms)
    assert why(verdict) == {"b with trt": "no GPU"}
    assert json.loads(json.dumps(verdict.as_dict()))["ship"]["backend"] == "ort"


def test_more_images_decide_from_the_fastest_on_until_two_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def judge(target: str, configuration: Any, golden: Path, timeout_s: float) -> Any:
        asked.append(str(configuration.bundle))
        judged = entry("a", "ort", 1, judged=parity(1700 if asked[-1] == "a" else 2000, 2000))
        return typed_entry(judged).parity

    monkeypatch.setattr(child, "call_in_child", judge)
    known, terms = offered(
        *(entry(name, "ort", level) for name, level in zip("dcba", (60, 50, 40, 30), strict=True)),
        target=target_from_text("0.99"),
    )
    verdict = decide(known, terms, tmp_path)
    assert asked == ["a", "b", "c"]
    assert verdict.ship is not None
    assert verdict.ship.name == "b with ort"
    assert "85.00%" in why(verdict)["a with ort"]
    assert "median latency" in why(verdict)["d with ort"]


# Results


def kept(path: Path, *runs: Any) -> Path:
    with results.appending(path) as save:
        for one in runs:
            save(typed(one))
            save = results.Appending(path)
    return path


def test_results_of_other_models_machines_and_terms_are_left_out_with_the_reason(
    tmp_path: Path,
) -> None:
    right = entry("a", "ort", 30)
    few = entry("a", "openvino", 10)
    few["processes"] = few["processes"][:1]
    few["processes"][0]["latencies_ms"] = [10.0] * 5
    here = run(right, entry("z", "ort", 1), entry("a", "ort", 9, batch=8), few, facts=HERE)
    there = run(entry("a", "ort", 5), facts=HERE | {"cpu": "y"})
    path = kept(tmp_path / "r.json", here, there)
    found, left_out = from_results([path], [stand_in("a")], HERE, Terms())
    assert [one.entry for one in found] == [typed_entry(right)]
    told = " | ".join(left_out)
    assert len(left_out) == 4
    assert "z ort: another model" in told
    assert "batch is 8, asked is 1" in told
    assert "another machine: cpu is y, here x" in told
    assert "5 samples, p50 needs 20" in told


def test_of_two_results_of_the_same_the_newest_counts(tmp_path: Path) -> None:
    new = run(entry("a", "ort", 30), facts=HERE, started="2026-02-02")
    old = run(entry("a", "ort", 50), facts=HERE, started="2026-01-01")
    path = kept(tmp_path / "r.json", new, old)
    (one,), _ = from_results([path], [stand_in("a")], HERE, Terms())
    assert one.setup.latency_ms[1] == pytest.approx(30, rel=0.02)


@pytest.mark.parametrize(
    ("runtime", "reason"),
    [("onnxruntime 1.2.3", "with another runtime: onnxruntime 1.2.3, here onnxruntime"),
     (None, "with another runtime: None, here onnxruntime")],
)  # fmt: skip
def test_results_of_another_version_of_the_runtime_are_left_out(
    tmp_path: Path, runtime: str | None, reason: str
) -> None:
    made = entry("a", "ort", 30) | {"facts": {"backend": "ort", "runtime": runtime}}
    path = kept(tmp_path / "r.json", run(made, facts=HERE))
    found, (told,) = from_results([path], [stand_in("a")], HERE, Terms())
    assert found == []
    assert reason in told


def test_results_of_a_runtime_that_is_not_here_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kept(tmp_path / "r.json", run(entry("a", "ort", 30), facts=HERE))
    monkeypatch.setattr(backends, "version", lambda name: None)
    found, (told,) = from_results([path], [stand_in("a")], HERE, Terms())
    assert found == []
    assert "backend ort cannot be used here" in told


def test_a_runtime_whose_backend_tells_no_version_is_the_same_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = entry("a", "eager", 30) | {"facts": {"backend": "eager", "runtime": "torch 2.13.0"}}
    path = kept(tmp_path / "r.json", run(made, facts=HERE))
    monkeypatch.setattr(backends, "version", lambda name: "torch")
    assert len(from_results([path], [stand_in("a")], HERE, Terms())[0]) == 1


def test_what_the_backend_auto_ran_is_compared_with_what_is_here(tmp_path: Path) -> None:
    made = entry("a", "ort", 30) | {"backend": "auto"}
    path = kept(tmp_path / "r.json", run(made, facts=HERE))
    assert len(from_results([path], [stand_in("a")], HERE, Terms())[0]) == 1


def test_one_process_of_an_interrupted_run_is_left_out_and_two_count(tmp_path: Path) -> None:
    """The interval of one comes from its own samples, and looks surer than that of all five."""
    whole = entry("a", "ort", 30, spread=0.1)
    single, pair = ({**whole, "processes": whole["processes"][:count]} for count in (1, 2))
    (sure,), _ = offered(single)
    (unsure,), _ = offered(whole)
    assert sure.setup.latency_ms[1] < unsure.setup.latency_ms[1]
    for made, offers_found in ((single, 0), (pair, 1)):
        stopped = run(made, facts=HERE) | {"complete": False}
        path = kept(tmp_path / f"{offers_found}.json", stopped)
        found, left_out = from_results([path], [stand_in("a")], HERE, Terms())
        assert len(found) == offers_found
        assert ["how processes differ is not known" in text for text in left_out] == (
            [True] * (1 - offers_found)
        )


def test_a_complete_run_counts_before_a_newer_one_that_was_interrupted(tmp_path: Path) -> None:
    whole = run(entry("a", "ort", 30), facts=HERE, started="2026-01-01")
    stopped = run(entry("a", "ort", 50), facts=HERE, started="2026-02-02") | {"complete": False}
    path = kept(tmp_path / "r.json", whole, stopped)
    (one,), _ = from_results([path], [stand_in("a")], HERE, Terms())
    assert one.setup.latency_ms[1] == pytest.approx(30, rel=0.02)


# The command line


@pytest.mark.parametrize(
    ("known", "measured"),
    [
        ([], [{}, {"micro_batch": 1}]),
        ([{"threads": 1}], [{}, {"micro_batch": 1}]),
        ([{"micro_batch": 1}], [{}]),
        ([{}], []),
    ],
)
def test_other_options_of_a_backend_do_not_stand_for_its_default(
    testing_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, known: list[Any], measured: list[Any]
) -> None:
    every = [Measured("ort", {}), Measured("ort", {"micro_batch": 1})]
    monkeypatch.setattr(trial, "list_setups", lambda bundle, only: every)
    refused = "not built by this test"
    monkeypatch.setattr(trial, "build_missing", lambda b, setup, _: replace(setup, refused=refused))
    offers_known = [Offer(testing_bundle, Measured("ort", options)) for options in known]
    found = api.measure([testing_bundle], ["ort"], offers_known, Terms(), processes=1)
    assert [one.setup.options for one in found] == measured


@pytest.mark.slow
def test_what_is_missing_is_measured_kept_and_read_the_next_time(
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api, "_AT_LEAST_S", 0.02)
    out = tmp_path / "r.json"
    arguments = [
        str(bundle.path), "--backend", "ort", "--max-latency-ms", "5000", "--memory-limit",
        "2GB", "--parity-target", "relative=1e-4", "--processes", "2",
    ]  # fmt: skip
    assert recommend.main([*arguments, "--out", str(out)]) == 0
    first = capsys.readouterr()
    assert first.out.startswith(f"ship       {bundle.path} with ort")
    assert "2 of 2" in first.err
    assert recommend.main([*arguments, "--results", str(out), "--json"]) == 0
    again = capsys.readouterr()
    told = json.loads(again.out)
    assert told["ship"]["bundle"] == str(bundle.path)
    assert told["left_out"] == []
    assert "of 2:" not in again.err
    assert len(results.read(out)) == 1


def test_nothing_that_fits_is_exit_code_4_with_what_came_closest(
    testing_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = entry(testing_bundle.model_sha256, "ort", 30, judged=GOOD)
    path = kept(tmp_path / "r.json", run(made, facts=facts.run_facts()))
    arguments = [str(testing_bundle.path), "--results", str(path), "--backend", "ort"]
    assert recommend.main([*arguments, "--max-latency-ms", "1"]) == 4
    said = capsys.readouterr()
    assert said.out.startswith(f"lost       {testing_bundle.path} with ort: p50 may be 30")
    assert f"{testing_bundle.path} with ort came closest" in said.err
    assert recommend.main([*arguments, "--max-latency-ms", "50"]) == 0


def test_a_golden_file_is_compared_in_a_child(
    testing_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = entry(testing_bundle.model_sha256, "ort", 30, judged=None)
    path = kept(tmp_path / "r.json", run(made, facts=facts.run_facts()))
    arguments = [str(testing_bundle.path), "--results", str(path), "--backend", "ort"]
    assert recommend.main(arguments) == 4
    assert "were not compared" in capsys.readouterr().out
    assert recommend.main([*arguments, "--golden", str(testing_bundle.golden_path)]) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--parity-target", "2"], "not in 0..1"),
        (["--parity-target", "speed=2"], "no statistic"),
        (["--memory-limit", "much"], "is no size"),
        (["--max-latency-ms", "0"], "must be positive"),
        (["--percentile", "99"], "must lie in"),
        (["--batch", "5"], "1..4"),
    ],
)
def test_a_wrong_command_line_is_refused(
    testing_bundle: Bundle, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recommend.main([str(testing_bundle.path), *arguments]) == 2
    assert told in capsys.readouterr().err


def test_one_bundle_given_twice_is_refused(
    testing_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recommend.main([str(testing_bundle.path)] * 2) == 2
    assert "the same model" in capsys.readouterr().err


def test_bundles_of_other_models_are_not_compared(
    testing_bundle: Bundle, export_once: Exporter, capsys: pytest.CaptureFixture[str]
) -> None:
    other = export_once("--checkpoint", "embedded")
    assert recommend.main([str(testing_bundle.path), str(other.path)]) == 2
    assert "differ in variant, checkpoint" in capsys.readouterr().err


def test_a_number_alone_is_about_agreement() -> None:
    assert target_from_text("0.99").bounds == (("top1_agreement", 0.99),)
    with pytest.raises(UsageError):
        target_from_text("most")
