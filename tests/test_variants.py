"""The table of variants, against what timm says of its own models."""

import json
from pathlib import Path

import pytest

from tests.support.families import PAGE, families_list, listed
from vit_edge.bundle.manifest import Preprocessing
from vit_edge.errors import UsageError
from vit_edge.export.__main__ import main
from vit_edge.variants import FAMILIES, VARIANTS, Variant, matching, variant

CFGS = json.loads((Path(__file__).parent / "data" / "timm_cfgs.json").read_text())["cfgs"]
WITH_TIMM = [row for row in VARIANTS.values() if row.timm is not None]


@pytest.mark.parametrize("row", VARIANTS.values(), ids=VARIANTS)
def test_every_row_is_a_sound_vit(row: Variant) -> None:
    assert row.architecture.problems() == []
    assert row.preprocessing.problems() == []
    assert row.timm_preprocessing.problems() == []
    assert row.preprocessing.crop_hw == row.architecture.image_hw


@pytest.mark.parametrize("row", WITH_TIMM, ids=lambda row: row.name)
def test_the_table_says_what_timm_says_of_its_models(row: Variant) -> None:
    cfg = CFGS[row.timm]
    size = int(row.image_px / cfg["crop_pct"])
    assert cfg["crop_mode"] == "center"
    assert cfg["num_classes"] == row.num_classes
    assert cfg["input_size"] == [3, row.image_px, row.image_px]
    assert row.timm_preprocessing == Preprocessing(
        "cover",
        (size, size),
        (row.image_px, row.image_px),
        cfg["interpolation"],
        tuple(cfg["mean"]),
        tuple(cfg["std"]),
    )


AUGREG = [row for row in WITH_TIMM if row.jax is not None and row.jax.startswith("augreg/")]


@pytest.mark.parametrize("row", AUGREG, ids=lambda row: row.name)
def test_the_npz_path_is_the_one_timm_converted(row: Variant) -> None:
    assert CFGS[row.timm]["url"] == f"https://storage.googleapis.com/vit_models/{row.jax}"


def test_names_of_google_are_the_names_of_the_table() -> None:
    for row in VARIANTS.values():
        if row.hf is not None and row.hf.startswith("google/"):
            assert row.hf == f"google/vit-{row.name}"


def test_no_published_id_stands_in_two_rows() -> None:
    for source in ("hf", "timm", "jax", "t2t"):
        ids = [i for row in VARIANTS.values() if (i := getattr(row, source)) is not None]
        assert sorted(set(ids)) == sorted(ids)


def test_a_misspelt_variant_suggests_the_right_one() -> None:
    with pytest.raises(UsageError, match="Did you mean .*base-patch16-224"):
        variant("vit-base-patch16-224")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("google/vit-base-patch16-224", "Hugging Face"),
        ("vit_base_patch16_224.orig_in21k_ft_in1k", "timm"),
        ("imagenet21k+imagenet2012/ViT-B_16-224.npz", "JAX"),
    ],
)
def test_the_id_of_a_source_names_its_variant(name: str, source: str) -> None:
    with pytest.raises(UsageError) as caught:
        variant(name)
    assert str(caught.value).endswith(
        f"that is the {source} id of the variant base-patch16-224: --variant base-patch16-224"
    )


def test_an_unknown_variant_points_to_the_table_instead_of_printing_it() -> None:
    with pytest.raises(UsageError, match="--list-variants") as caught:
        variant("nothing-like-it")
    assert len(str(caught.value)) < 150


def test_the_documented_families_are_those_of_the_table() -> None:
    """To write them: python -m tests.support.families."""
    assert listed(PAGE.read_text(encoding="utf-8")) == families_list()


@pytest.mark.parametrize(
    ("words", "families", "variants"),
    [
        (["dino", "small"], [], ["small-patch8-224", "dino-small-patch16-224"]),
        (["DINOv2"], ["DINOv2"], []),
        (["siglip"], ["SigLIP with mean pooling"], []),
        (["deit", "base", "384"], [], ["deit-base-patch16-384"]),
        (["google/vit-huge"], [], ["huge-patch14-224-in21k"]),
        (["2101.11986"], ["T2T-ViT"], []),
        (["T2T_ViTt_14"], [], ["t2t-vit-t-14"]),
    ],
)
def test_words_choose_rows(words: list[str], families: list[str], variants: list[str]) -> None:
    found = matching(words)
    assert ([row.name for row in found[0]], [row.name for row in found[1]]) == (families, variants)


def test_without_words_all_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert matching([]) == (list(FAMILIES), list(VARIANTS.values()))
    assert main(["--list-variants"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in VARIANTS)
    assert all(row.name in printed for row in FAMILIES)
    assert main(["--list-variants", "registers"]) == 0
    assert "base-patch16-224" not in capsys.readouterr().out


def test_words_that_no_row_has_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-variants", "mamba", "tiny"]) == 2
    assert "no family and no variant has 'mamba' and 'tiny'" in capsys.readouterr().err
