"""The table of variants, against what timm says of its own models."""

import json
from pathlib import Path

import pytest

from vit_edge.bundle.manifest import Preprocessing
from vit_edge.errors import UsageError
from vit_edge.variants import VARIANTS, Variant, variant

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
    for source in ("hf", "timm", "jax"):
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
