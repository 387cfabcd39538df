"""Bundles whose model merges tokens: graph, schedule, gate, and everyone who reads them."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch

import vit_edge
from tests.export.test_graph import exported, relative_difference
from tests.support.vits import random_vit
from vit_edge import ParityError, UsageError, VitEdgeError, backends
from vit_edge.bundle import Bundle
from vit_edge.bundle.architecture import Architecture
from vit_edge.export import trace
from vit_edge.export.lowering import choose_recipe
from vit_edge.export.printing import merging_verdict
from vit_edge.export.recipe import find_recipe
from vit_edge.export.schedule import choose, parse_merging, predicted_agreement, shared
from vit_edge.graphs.mapped import load_mapped
from vit_edge.graphs.sections import SharedRuns, waists
from vit_edge.graphs.workspace import Workspace
from vit_edge.inspect import inspect
from vit_edge.models.vit import with_merging
from vit_edge.parity.limits import merging_judged
from vit_edge.parity.localize.taps import boundaries, inside, present, tapped
from vit_edge.parity.run import compare
from vit_edge.parity.targets import Target, parse_target
from vit_edge.quantize.linears import block_linears
from vit_edge.quantize.rescale.attention import attention_products
from vit_edge.variants import variant

requires = ("torch", "onnx", "onnxscript", "onnxruntime")

TESTING = variant("testing").architecture
MERGED = (2, 1) + (0,) * (TESTING.depth - 2)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "opset"), [("fused", 23), ("decomposed", 18)])
def test_the_graph_merges_as_the_reference_does(form: str, opset: int, tmp_path: Path) -> None:
    shape = dataclasses.replace(TESTING, merged_tokens=MERGED, pooling="class+mean")
    vit = random_vit(shape)
    path = exported(vit, tmp_path, ("logits", "features"), form, opset)
    for batch in (1, 3):
        assert relative_difference(path, vit, ("logits", "features"), batch) < 1e-5
    nodes = Counter(node.op_type for node in onnx_ir.load(path).graph)
    assert nodes["TopK"] == 2
    assert not nodes["Shape"]
    if form == "decomposed":  # a bias between scores and softmax hides no product from quantizers
        assert len(attention_products(load_mapped(path))) == TESTING.depth


@pytest.mark.slow
def test_registers_and_normalised_keys_merge_too(tmp_path: Path) -> None:
    shape = {"prefix_tokens": 4, "qk_norm": True}
    vit = random_vit(dataclasses.replace(TESTING, merged_tokens=MERGED, **shape))
    path = exported(vit, tmp_path, ("logits",), "fused", 23)
    assert relative_difference(path, vit, ("logits",), 2) < 1e-5


@pytest.fixture(scope="module")
def unmerged(export_once: Any) -> Bundle:
    bundle: Bundle = export_once("--checkpoint", "embedded")
    return bundle


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return vit_edge.export(
        "embedded", merge_tokens=3, out=tmp_path_factory.mktemp("merged") / "bundle"
    )


@pytest.mark.slow
def test_a_bundle_says_what_was_merged(merged: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    from vit_edge.inspect import main

    shape = merged.manifest.architecture
    assert shape is not None
    assert shape.merged_tokens == (3,) * 7 + (0,)
    record = merged.parity()["merging"]
    assert record["tokens"] == [65, 62, 59, 56, 53, 50, 47, 44, 44]
    alone = record["by_merging_alone"]["logits"]
    graph = record["against_unmerged"]["comparisons"][0]
    assert 20 < alone["sqnr_centred_db"] < 40
    assert graph["sqnr_centred_db"] == pytest.approx(alone["sqnr_centred_db"], abs=0.01)
    assert main([str(merged.path)]) == 0
    assert "3, 3, 3, 3, 3, 3, 3, 0 tokens in the blocks; 44 are left" in capsys.readouterr().out
    assert inspect(merged).parity["merging"] == record


@pytest.mark.slow
def test_parity_splits_what_merging_changes_from_what_the_backend_does(
    merged: Bundle, unmerged: Bundle
) -> None:
    with_itself = compare(merged, backend_names=["ort", "eager"])
    assert [run.verdict for run in with_itself.runs] == ["pass", "pass"]
    for run in with_itself.runs:
        assert run.comparisons[0].summary["sqnr_centred_db"] > 100
    with_the_other = compare(merged, backend_names=["eager"], against=unmerged)
    [run] = with_the_other.runs
    assert run.verdict == "pass"
    found = run.comparisons[0].summary["sqnr_centred_db"]
    expected = merged.parity()["merging"]["by_merging_alone"]["logits"]["sqnr_centred_db"]
    assert found == pytest.approx(expected, abs=0.01)
    assert not merging_judged(unmerged.manifest, merged.manifest)


@pytest.mark.slow
def test_a_step_can_be_compared_though_fewer_tokens_leave_the_block(
    merged: Bundle, tmp_path: Path
) -> None:
    taps = [*boundaries(8), *inside(3)[1:-1]]
    shown = tapped(merged, present(taps, merged), tmp_path)
    tokens = {
        tap.place: out.shape[1]
        for tap, out in zip(present(taps, merged), shown.manifest.outputs[2:], strict=True)
    }
    assert tokens["block 3, the sum after attention"] == 56
    assert tokens["block 3, GELU"] == tokens["block 3"] == 53
    answers = backends.module("ort").load(shown).run(np.zeros((1, 3, 32, 32), np.float32))
    assert {answers[out.name].shape[1:] for out in shown.manifest.outputs[2:]} == {
        out.shape[1:] for out in shown.manifest.outputs[2:]
    }


@pytest.mark.slow
def test_a_merged_bundle_is_lowered_and_keeps_what_holds_of_merging_alone(
    merged: Bundle, tmp_path: Path
) -> None:
    made = vit_edge.quantize(merged, "bf16", out=tmp_path / "bf16")
    record = merged.parity()["merging"]
    del record["against_unmerged"]  # the float32 graph's
    assert made.parity()["merging"] == record
    assert "by merging alone" in merging_verdict(record)
    assert made.manifest.architecture == merged.manifest.architecture


@pytest.mark.slow
def test_a_wrong_epsilon_is_noticed_where_tokens_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = trace.ExportBlock.__init__

    def planted(self: Any, block: Any, *form: Any) -> None:
        begin(self, block, *form)
        self.norm1 = copy.deepcopy(self.norm1)
        self.norm1.eps = 1e-3

    monkeypatch.setattr(trace.ExportBlock, "__init__", planted)
    with pytest.raises(ParityError, match="the median image's"):
        vit_edge.export("embedded", outputs="features", merge_tokens=2, out=tmp_path / "bundle")


@pytest.mark.slow
def test_auto_chooses_by_what_images_without_labels_tell(
    labelled_noise: Path, photos: list[Path], tmp_path: Path
) -> None:
    made = vit_edge.export(
        "embedded", merge_tokens="auto", calibration=photos[0].parent, golden_images=labelled_noise,
        target="accuracy_drop=0.9", out=tmp_path / "bundle",
    )  # fmt: skip
    record = made.parity()["merging"]
    assert record["chosen"]["target"] == {"top1_agreement": 0.99}
    assert record["against_unmerged"]["comparisons"][0]["accuracy_drop"] is not None


def test_a_graph_that_merges_nothing_is_not_lowered_by_a_recipe_that_does(unmerged: Bundle) -> None:
    recipe = find_recipe("cpu-bf16", None)
    with pytest.raises(UsageError, match="export the checkpoint with that recipe"):
        choose_recipe(unmerged, None, recipe.changed(merge_tokens="4"))


def test_auto_always_has_a_target() -> None:
    recipe = find_recipe(None, None)
    assert recipe.target_bounds is None
    assert recipe.changed(merge_tokens="4").target_bounds is None
    assert recipe.changed(merge_tokens="auto").target_bounds == parse_target("top1_agreement=0.99")


@pytest.mark.slow
def test_what_merging_breaks_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="(?s)with its tokens merged.*SQNR is .* at least 40"):
        vit_edge.export(
            "embedded", merge_tokens=3, target="sqnr_centred_db=40", out=tmp_path / "bundle"
        )
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"merge_tokens": "many"}, "neither auto, nor"),
        ({"merge_tokens": "0,0"}, "nothing would be merged"),
        ({"merge_tokens": 1, "image_size": TESTING.patch_px}, r"nothing can be merged of 1 patch"),
        ({"merge_tokens": ""}, None),
        ({"merge_tokens": [1, 2, 3]}, "must be one number a block"),
        ({"merge_tokens": [99] + [0] * (TESTING.depth - 1)}, "block 0 has"),
        ({"merge_tokens": "auto"}, "merge_tokens auto needs to see what the model sees"),
        ({"merge_tokens": 1, "outputs": "logits,tokens"}, "tokens answer for every patch"),
        ({"target": "top1_agreement=0.9"}, "fp32 takes no target"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(
    asked: dict[str, Any], words: str | None, tmp_path: Path
) -> None:
    if words is None:
        assert not find_recipe(None, None).changed(**asked).merge_tokens
        return
    with pytest.raises(VitEdgeError, match=words):
        vit_edge.export("seeded:0", variant="testing", out=tmp_path / "bundle", **asked)


def test_another_exporters_graph_is_not_merged(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match="give the checkpoint"):
        vit_edge.export(tmp_path / "model.onnx", processor="google-vit", merge_tokens=1)


def test_one_number_is_for_every_block_that_gains() -> None:
    assert parse_merging("2").resolved(TESTING) == expected_everywhere(TESTING, 2, last=False)
    mean = dataclasses.replace(TESTING, pooling="mean")
    assert parse_merging("2").resolved(mean) == expected_everywhere(mean, 2, last=True)


def expected_everywhere(shape: Architecture, count: int, *, last: bool) -> tuple[int, ...]:
    counts, patches = [], shape.patches
    for _ in range(shape.depth - (not last)):
        counts.append(min(count, patches // 2))
        patches -= counts[-1]
    return (*counts, *[0] * (not last))


def pixels(count: int, shape: Architecture = TESTING) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return [
        rng.standard_normal((8, shape.channels, *shape.image_hw), np.float32)
        for _ in range(count // 8)
    ]


def test_the_schedule_is_the_largest_that_holds_the_target() -> None:
    shape = dataclasses.replace(TESTING, depth=4, image_hw=(128, 128))
    vit, images = random_vit(shape), pixels(16, shape)
    saved = []
    for db in (25.0, 20.0):
        found = choose(vit, images, Target((("sqnr_centred_db", db),)), "softmax")
        merged = with_merging(vit, found.counts)
        with torch.inference_mode():
            plain, others = (
                np.concatenate([each(torch.from_numpy(x)).logits.numpy() for x in images])
                for each in (vit, merged)
            )
        noise = (others - plain) - (others - plain).mean(axis=1, keepdims=True)
        signal = plain - plain.mean(axis=1, keepdims=True)
        assert 10 * np.log10((signal**2).sum() / (noise**2).sum()) > db - 1
        saved.append(sum(found.counts))
    assert 0 < saved[0] <= saved[1]
    assert all(block.merged == 0 for block in vit.blocks)


def test_a_target_that_no_schedule_holds_is_refused() -> None:
    with pytest.raises(UsageError, match="this model needs its tokens"):
        choose(random_vit(TESTING), pixels(8), Target((("sqnr_centred_db", 250.0),)), "softmax")


def test_values_are_not_chosen_by_their_largest() -> None:
    """Features have no first class, so agreement on it bounds nothing."""
    shape = dataclasses.replace(TESTING, depth=4, image_hw=(128, 128), num_classes=0)
    found = choose(random_vit(shape), pixels(16, shape), Target(()), "none")
    assert "top1_agreement" not in found.summary
    assert float(str(found.summary["sqnr_centred_db"])) >= 20


def test_half_of_a_target() -> None:
    halved = shared(parse_target("top1_agreement=0.98,sqnr_centred_db=20,kl_median=0.01"))
    assert halved.as_dict() == pytest.approx(
        {"top1_agreement": 0.99, "sqnr_centred_db": 23.01, "kl_median": 0.005}, abs=1e-3
    )


def test_agreement_is_predicted_from_noise_and_margins() -> None:
    rng = np.random.default_rng(0)
    expected = np.zeros((20_000, 2), np.float32)
    expected[:, 0] = rng.uniform(0, 4, 20_000)
    found = expected + rng.standard_normal(expected.shape).astype(np.float32)
    counted = (found.argmax(axis=1) == expected.argmax(axis=1)).mean()
    assert predicted_agreement(found, expected) == pytest.approx(counted, abs=0.02)


def test_a_merged_graph_is_cut_behind_every_block_and_answers_as_whole(
    merged: Bundle, tmp_path: Path
) -> None:
    """So the search for what stays in float runs a variant from where it differs."""
    workspace = Workspace(tmp_path)
    model = workspace.settle(onnx_ir.load(merged.model_path))
    cut = [{str(value.name) for value in values} for values in waists(model).values()]
    sums = {name for names in cut for name in names if "/Add" in name and len(names) == 2}
    blocks = {linear.name.split(".")[1] for linear in block_linears(model)}
    assert {name.split("/")[0] for name in sums} >= {f"blocks.{n}" for n in sorted(blocks)[:-1]}
    size = merged.manifest.preprocessing.crop_hw
    pixels = [np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)]
    runs = SharedRuns(workspace, model, pixels)
    for index in range(0, len(block_linears(model)), 5):
        variant = model.clone()
        linear = block_linears(variant)[index]
        linear.set_matrix(linear.matrix() / 2)
        whole = np.concatenate(list(workspace.answers(variant, pixels, "logits")))
        np.testing.assert_allclose(runs.answers(variant, "logits"), whole, rtol=1e-4, atol=1e-4)
