"""SOURCE, recognition by content, and what is checked whatever the source."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.checkpoints.foreign import (
    HEADLESS,
    SMALL,
    assert_same_weights,
    hf_config,
    timm_config,
    timm_tensors,
    weights_of,
    write_hf,
    write_jax,
    write_json,
    write_timm,
)
from vit_edge import plugins
from vit_edge.bundle.manifest import PositionInterpolation
from vit_edge.checkpoints import Request, load_checkpoint, published_source
from vit_edge.checkpoints.labels import imagenet_labels
from vit_edge.errors import CheckpointError, UsageError, VitEdgeError
from vit_edge.models.vit import parameter_shapes
from vit_edge.variants import variant

requires = ("torch", "safetensors")

WRITERS = {
    "hf": lambda where: write_hf(where / "hf-tulips", SMALL, weights_of(SMALL)),
    "timm": lambda where: write_timm(where / "timm-tulips", SMALL, weights_of(SMALL)),
    "jax": lambda where: write_jax(where / "jax-tulips.npz", SMALL, weights_of(SMALL)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_bare_path_is_recognised_by_what_it_holds(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path)
    bare, named = (load_checkpoint(source, Request()) for source in (str(path), f"{name}:{path}"))
    assert bare.architecture == named.architecture == SMALL
    assert bare.variant == named.variant == f"{name}-tulips"
    assert_same_weights(bare, weights_of(SMALL))


def test_a_lone_weight_file_is_recognised_by_its_keys(tmp_path: Path) -> None:
    row = variant("testing")
    weights = weights_of(row.architecture)
    torch.save({"state_dict": timm_tensors(weights)}, tmp_path / "trained.pth")
    loaded = load_checkpoint(str(tmp_path / "trained.pth"), Request(row))
    assert_same_weights(loaded, weights)
    assert loaded.record.source == f"timm:{tmp_path / 'trained.pth'}"


def test_a_lone_hugging_face_file_needs_its_config(tmp_path: Path) -> None:
    path = WRITERS["hf"](tmp_path) / "model.safetensors"
    assert_same_weights(load_checkpoint(str(path), Request()), weights_of(SMALL))
    (path.parent / "config.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"config\.json: missing.*is a directory with"
    ) as caught:
        load_checkpoint(str(path), Request())
    assert f"looked in {path.parent}" in str(caught.value)


@pytest.mark.slow
def test_loading_needs_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    """330 MB of float32 in a fresh process; one read or mapped whole would show as twice that."""
    row = variant("base-patch16-224")
    path = write_hf(tmp_path / "x", row.architecture, weights_of(row.architecture))
    code = (
        "import resource, sys, torch\n"
        "from vit_edge.checkpoints import load_checkpoint, Request\n"
        "from vit_edge.checkpoints.sources import hf\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "weights = load_checkpoint(sys.argv[1], Request()).weights\n"
        "print((peak() - before) / sum(w.numel() * 4 for w in weights.values()))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert float(found.stdout) < 1.2


def test_the_shape_of_a_row_gives_its_name(tmp_path: Path) -> None:
    a = variant("testing").architecture
    path = write_hf(tmp_path / "whatever", a, weights_of(a))
    assert load_checkpoint(str(path), Request()).variant == "testing"


def test_a_folder_name_becomes_a_clean_bundle_name(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "my ViT, (v2)", SMALL, weights_of(SMALL))
    assert load_checkpoint(str(path), Request()).variant == "my-ViT-v2"


def test_a_path_that_holds_nothing_known_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("no weights")
    with pytest.raises(CheckpointError, match="no checkpoint recognised"):
        load_checkpoint(str(tmp_path), Request())


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("google/vit-base-patch16-224", CheckpointError, "written hf:google/vit-base-patch16-224$"),
        ("vit_base_patch16_224.dino", CheckpointError, "written timm:vit_base_patch16_224.dino$"),
        ("nothere.pth", CheckpointError, "nothere.pth: no such file or directory$"),
        ("a/nothere.safetensors", CheckpointError, "nothere.safetensors: no such file or dir"),
        ("timm:nothere.pth", CheckpointError, "^nothere.pth: no such file$"),
        ("hf:nothere/model_best.pth.tar", CheckpointError, "model_best.pth.tar: no such file$"),
        ("hf:nothere/dir/", CheckpointError, "^nothere/dir/: no such file or directory"),
        ("hf:./nothere", CheckpointError, "^./nothere: no such file or directory"),
        ("timm:/nothere", CheckpointError, "^/nothere: no such file or directory"),
        ("timm:" + "x" * 5000 + "/a/b", CheckpointError, "no such file or directory"),
        ("hf:a\0b", CheckpointError, "no such file or directory"),
        ("hf:", UsageError, "hf: needs a model id, a file or a directory"),
        ("timm", UsageError, "timm: needs a model id"),
        ("jax:", UsageError, "jax: needs"),
        ("onnx:model", UsageError, "embedded, hf, jax, open_clip, seeded, t2t, timm"),
        ("seeded", UsageError, "seeded:N needs a seed"),
        ("seeded:-1", UsageError, "seeded:N needs a seed"),
        ("seeded:0", UsageError, "need a variant"),
        ("embedded:2", UsageError, "takes nothing behind it"),
        ("jax:absent.npz", CheckpointError, "no such file"),
        ("hf:../no/such/folder", CheckpointError, "no such file or directory"),
    ],
)
def test_a_source_that_names_nothing_says_what_to_write(
    source: str, kind: type[VitEdgeError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        load_checkpoint(source, Request())


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("base-patch16-224", "hf:google/vit-base-patch16-224"),
        ("tiny-patch16-384", "timm:vit_tiny_patch16_384.augreg_in21k_ft_in1k"),
        ("vit-cifar10", "embedded"),
    ],
)
def test_a_variant_alone_means_its_published_weights(name: str, source: str) -> None:
    assert published_source(variant(name)) == source


def test_a_variant_without_published_weights_offers_seeded_ones() -> None:
    with pytest.raises(UsageError, match="seeded:0"):
        load_checkpoint(None, Request(variant("testing")))


def test_neither_source_nor_variant_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--variant"):
        load_checkpoint(None, Request())


def test_the_default_source_is_said_on_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_checkpoint(None, Request(variant("vit-cifar10")))
    assert "using embedded" in caplog.text


def test_another_shape_than_the_variant_names_every_field(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "x", SMALL, weights_of(SMALL))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(f"hf:{path}", Request(variant("testing")))
    for field in (
        "width: the checkpoint has 32, testing has 64",
        "mlp_dim",
        "patch_px",
        "image_hw",
    ):
        assert field in str(caught.value)
    assert "num_classes" not in str(caught.value)


def test_a_fine_tuned_head_is_the_same_variant(tmp_path: Path) -> None:
    a = replace(variant("testing").architecture, num_classes=3)
    path = write_hf(tmp_path / "x", a, weights_of(a))
    loaded = load_checkpoint(str(path), Request(variant("testing")))
    assert (loaded.variant, loaded.labels) == ("testing", ("kind 0", "kind 1", "kind 2"))


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(
    name: str, value: float, tmp_path: Path
) -> None:
    weights = weights_of(SMALL)
    weights["blocks.1.mlp.fc1.weight"][3, 4] = value
    writer: Callable[..., Path] = {"hf": write_hf, "timm": write_timm, "jax": write_jax}[name]
    path = writer(tmp_path / "x.npz", SMALL, weights)
    with pytest.raises(CheckpointError, match=r"(intermediate|fc1|Dense_0).*NaN or infinite"):
        load_checkpoint(f"{name}:{path}", Request())


@pytest.mark.parametrize("name", WRITERS)
def test_a_zeroed_head_is_no_head(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = weights_of(SMALL)
    weights["readout.head.weight"].zero_()
    writer: Callable[..., Path] = {"hf": write_hf, "timm": write_timm, "jax": write_jax}[name]
    loaded = load_checkpoint(f"{name}:{writer(tmp_path / 'x.npz', SMALL, weights)}", Request())
    assert (loaded.architecture.num_classes, loaded.labels) == (0, ())
    assert {n: tuple(t.shape) for n, t in loaded.weights.items()} == parameter_shapes(
        loaded.architecture
    )
    assert "--outputs features" in caplog.text


def test_missing_extra_and_misshaped_keys_are_all_listed(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "x", SMALL, weights_of(SMALL))
    tensors = load_file(path / "model.safetensors")
    del tensors["vit.layernorm.weight"]
    tensors["vit.embeddings.cls_token"] = torch.zeros(1, 2, 32)
    tensors["surprise"] = torch.zeros(1)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(path), Request())
    for line in (
        "missing (1):",
        "vit.layernorm.weight [32]",
        "not understood (1):",
        "surprise [1]",
        "vit.embeddings.cls_token: found [1, 2, 32], expected [1, 1, 32]",
    ):
        assert line in str(caught.value)


@pytest.mark.parametrize("wrapper", ["module.", "model.", "module.model.", "state_dict."])
def test_a_wrapper_around_every_name_is_understood(wrapper: str, tmp_path: Path) -> None:
    path = write_hf(tmp_path / "x", SMALL, weights_of(SMALL))
    tensors = load_file(path / "model.safetensors")
    save_file({wrapper + n: t for n, t in tensors.items()}, path / "model.safetensors")
    assert_same_weights(load_checkpoint(str(path), Request()), weights_of(SMALL))


@pytest.mark.parametrize(
    ("name", "method"),
    [("hf", "bicubic"), ("timm", "bicubic-antialias"), ("jax", "zoom-bilinear")],
)
def test_positions_are_interpolated_when_asked_and_recorded(
    name: str, method: str, tmp_path: Path
) -> None:
    path = WRITERS[name](tmp_path)
    loaded = load_checkpoint(str(path), Request(image_hw=(48, 24)))
    assert loaded.record.position_interpolation == PositionInterpolation(method, (4, 4), (6, 3))
    assert loaded.architecture == replace(SMALL, image_hw=(48, 24))
    assert loaded.preprocessing.crop_hw == (48, 24)
    assert loaded.weights["embedding.position"].shape == (1, 19, 32)


def test_the_asked_method_overrides_the_source(tmp_path: Path) -> None:
    path = WRITERS["hf"](tmp_path)
    by_name = {
        method: load_checkpoint(str(path), Request(None, (64, 40), method)).weights[
            "embedding.position"
        ]
        for method in ("bicubic", "bicubic-antialias", "zoom-bilinear")
    }
    assert not torch.equal(by_name["bicubic"], by_name["zoom-bilinear"])
    assert not torch.equal(by_name["bicubic"], by_name["bicubic-antialias"])


def test_nothing_is_interpolated_without_being_asked(tmp_path: Path) -> None:
    loaded = load_checkpoint(str(WRITERS["hf"](tmp_path)), Request())
    assert loaded.record.position_interpolation is None


def test_a_size_between_patches_names_the_neighbours(tmp_path: Path) -> None:
    path = WRITERS["hf"](tmp_path)
    with pytest.raises(UsageError, match=r"width 43 px .*; the nearest are 40 and 48"):
        load_checkpoint(str(path), Request(image_hw=(40, 43)))


def test_plugins_are_named_without_being_imported() -> None:
    assert plugins.names("vit_edge.checkpoints.sources") == [
        "embedded",
        "hf",
        "jax",
        "open_clip",
        "seeded",
        "t2t",
        "timm",
        "torchvision",
    ]


@given(st.text(max_size=20))
def test_only_plugins_can_be_loaded(name: str) -> None:
    known = plugins.names("vit_edge.checkpoints.sources")
    if name not in known:
        with pytest.raises(UsageError, match="There are: embedded"):
            plugins.load("vit_edge.checkpoints.sources", name)


def test_private_helpers_are_no_plugins() -> None:
    with pytest.raises(UsageError):
        plugins.load("vit_edge.checkpoints.sources", "_hub")


def test_an_impossible_size_is_refused_before_the_hub_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vit_edge.checkpoints.sources import hf

    monkeypatch.setattr(hf, "load", None)
    with pytest.raises(UsageError, match="the nearest are 224 and 240"):
        load_checkpoint(None, Request(variant("base-patch16-224"), image_hw=(225, 225)))
    with pytest.raises(UsageError, match="more than 16384 px"):
        load_checkpoint(None, Request(variant("base-patch16-224"), image_hw=(16400, 224)))


@pytest.mark.parametrize("source", ["embedded", "seeded:0", *WRITERS, "bare"])
def test_a_revision_of_what_has_none_is_a_usage_error(source: str, tmp_path: Path) -> None:
    if source in WRITERS or source == "bare":
        path = WRITERS["hf" if source == "bare" else source](tmp_path)
        source = str(path) if source == "bare" else f"{source}:{path}"
    row = variant("testing") if source == "seeded:0" else None
    with pytest.raises(UsageError, match="--revision belongs to a hub repository"):
        load_checkpoint(source, Request(row, revision="v1"))


def label_file(where: Path, name: str, content: object) -> Path:
    path = where / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_json(path, content)
    return path


NAMES = ["ant", "bee", "cat", "d\u00f6g", "elk"]
LINES = "\n".join(NAMES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.txt", LINES.encode()),
        ("labels.txt", f"{LINES}\n".encode()),
        ("names", LINES.replace("\n", "\r\n").encode("utf-8-sig")),
        ("labels.txt", f"{LINES}\r\n".replace("\n", "\r\n").replace("\r\r", "\r").encode("utf-16")),
        ("labels.json", NAMES),
        ("labels.JSON", {str(i): label for i, label in enumerate(NAMES)}),
        ("class_indices.json", {label: i for i, label in enumerate(NAMES)}),
        ("config.json", {"id2label": {str(i): label for i, label in enumerate(NAMES)}}),
        ("config.json", {"architecture": "x", "label_names": NAMES}),
        ("config.json", {"pretrained_cfg": {"label_names": NAMES}}),
    ],
    ids=str,
)
@pytest.mark.parametrize("source", WRITERS)
def test_labels_of_a_file_are_those_of_any_checkpoint(
    source: str, name: str, content: object, tmp_path: Path
) -> None:
    path = WRITERS[source](tmp_path)
    (tmp_path / "labels").mkdir()
    labels = label_file(tmp_path / "labels", name, content)
    loaded = load_checkpoint(str(path), Request(labels=labels))
    assert loaded.labels == tuple(NAMES)


def test_labels_of_a_file_decide_over_the_checkpoints_own_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = label_file(tmp_path, "labels.txt", LINES.encode())
    load_checkpoint(str(WRITERS["timm"](tmp_path)), Request(labels=labels))
    assert caplog.text == ""
    load_checkpoint(str(WRITERS["hf"](tmp_path)), Request(labels=labels))
    assert "--labels decides, not its own labels" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.txt", b"a\nb", "2 labels, but the logits have 5 classes"),
        ("labels.txt", b"", "0 labels"),
        ("labels.txt", b"\xff\x00", "cannot be read as text"),
        ("labels.json", ["a"], "1 labels"),
        ("labels.json", {"a": "b"}, "neither is there"),
        ("labels.json", 3, "neither is there"),
        ("labels.json", [["a"]] * 5, "expected a list of labels"),
        ("labels.json", b"{", "cannot be read as JSON"),
        ("labels.json", {"0": "a", "9": "b"}, "none for class 1; found 9"),
    ],
)
def test_labels_that_do_not_fit_a_checkpoint_are_refused(
    name: str, content: object, message: str, tmp_path: Path
) -> None:
    path = WRITERS["timm"](tmp_path)
    labels = label_file(tmp_path, name, content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(path), Request(labels=labels))
    with pytest.raises(CheckpointError, match="nowhere.txt"):
        load_checkpoint(str(path), Request(labels=tmp_path / "nowhere.txt"))


def test_labels_of_a_model_without_a_head_are_a_usage_error(tmp_path: Path) -> None:
    path = write_timm(tmp_path / "x", HEADLESS, weights_of(HEADLESS))
    labels = label_file(tmp_path, "labels.txt", b"a")
    with pytest.raises(UsageError, match="has no head, so there are no classes"):
        load_checkpoint(str(path), Request(labels=labels))


UNFIT = ["a\nb", " a \u2028 b", "a\x1b[31m\tb", "a\r\nb\x1e", "a\x85b\ud800"]


def test_labels_are_one_line_each_whatever_the_source_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_hf(tmp_path / "hf", SMALL, weights_of(SMALL))
    write_json(path / "config.json", hf_config(SMALL, id2label=dict(enumerate(UNFIT))))
    hugging_face = load_checkpoint(str(path), Request())
    path = write_timm(tmp_path / "timm", SMALL, weights_of(SMALL))
    write_json(path / "config.json", timm_config(SMALL, label_names=[*UNFIT[:4], "\n"]))
    timm = load_checkpoint(str(path), Request())
    assert hugging_face.labels == ("a b", "a b", "a b", "a b", "a b")
    assert timm.labels == ("a b", "a b", "a b", "a b", "class_4")
    assert caplog.text.count("5 labels are empty or have line breaks") == 2


def test_imagenets_labels_are_left_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    labels = load_checkpoint("seeded:0", Request(variant("tiny-patch16-224"))).labels
    assert labels == imagenet_labels()
    assert caplog.text == ""
