"""The variants, one row each: shape, preprocessing, and what each source calls it.

Base, Large and Huge are Table 1 of arXiv:2010.11929 (the original ViT). Tiny and Small are not in
that paper: they are Table 1 of arXiv:2012.12877 (DeiT), trained by arXiv:2106.10270 (augreg).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vit_edge.bundle.architecture import Architecture, Tokenizer
from vit_edge.bundle.manifest import (
    Preprocessing,
)
from vit_edge.errors import UsageError

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_VIT = "arXiv:2010.11929, Table 1"
_T2T = "arXiv:2101.11986, Table 1"
_DEIT = "arXiv:2012.12877, Table 1; weights arXiv:2106.10270"

# size -> width, depth, heads, mlp_dim, paper
_SIZES = {
    "testing": (64, 2, 2, 128, "none: small enough for tests that take seconds"),
    "cifar10": (192, 8, 3, 768, "none: the embedded checkpoint, see docs/embedded.md"),
    "tiny": (192, 12, 3, 768, _DEIT),
    "small": (384, 12, 6, 1536, _DEIT),
    "base": (768, 12, 12, 3072, _VIT),
    "large": (1024, 24, 16, 4096, _VIT),
    "huge": (1280, 32, 16, 5120, _VIT),
    "t2t-7": (256, 7, 4, 512, _T2T),
    "t2t-10": (256, 10, 4, 512, _T2T),
    "t2t-12": (256, 12, 4, 512, _T2T),
    "t2t-14": (384, 14, 6, 1152, _T2T),
    "t2t-19": (448, 19, 7, 1344, _T2T),
    "t2t-24": (512, 24, 8, 1536, _T2T),
}


# What DeiT and DINO evaluate with: resize to 256 for a crop of 224; T2T-ViT's crop_pct.
_CROP_RATIOS = {"deit": 224 / 256, "t2t": 0.9}


@dataclass(frozen=True)
class Family:
    """Models of one kind that the sources read; `python -m tests.support.families` lists them."""

    name: str
    paper: str
    differs: str  # from the plain ViT
    published: str  # where, and as what


FAMILIES = (
    Family(
        "ViT", "arXiv:2010.11929, arXiv:2106.10270", "-",
        "hf: `vit`; timm: `vit_*`, `vit_*_miil`; torchvision: `vit_b_16` ...; jax: `.npz`; "
        "Flax: `FlaxViT*`",
    ),
    Family(
        "DeiT", "arXiv:2012.12877", "a distillation token, the mean of two heads",
        "hf: `deit`; timm: `deit_*`",
    ),
    Family(
        "DeiT III", "arXiv:2204.07118", "layer scale, no position of the class token",
        "timm: `deit3_*`",
    ),
    Family(
        "DINO", "arXiv:2104.14294", "no head; positions resized by (new + 0.1) / old",
        "hf: `vit`; timm: `*.dino`; facebookresearch: `dino_*.pth`",
    ),
    Family(
        "DINOv2", "arXiv:2304.07193, arXiv:2309.16588",
        "layer scale, registers, a head over class token and mean; not the giants (SwiGLU)",
        "hf: `dinov2`, `dinov2_with_registers`; timm: `vit_*_dinov2`; facebookresearch: "
        "`dinov2_*.pth`; Flax: `FlaxDinov2*`",
    ),
    Family("MAE", "arXiv:2111.06377", "the encoder alone", "hf: `vit_mae`; timm: `*.mae`"),
    Family("MSN", "arXiv:2204.07141", "-", "hf: `vit_msn`"),
    Family("FlexiViT", "arXiv:2212.08013", "one patch size", "timm: `flexivit_*`"),
    Family(
        "CLIP, image tower", "arXiv:2103.00020",
        "a LayerNorm in front, quick GELU, a projection, a zero-shot head",
        "hf: `clip`, `metaclip_2`, `chinese_clip`; open_clip; timm: `vit_*_clip_*`",
    ),
    Family(
        "SigLIP with mean pooling", "arXiv:2303.15343", "no class token, tanh GELU",
        "timm: `vit_*_siglip_gap_*`",
    ),
    Family(
        "T2T-ViT", "arXiv:2101.11986", "overlapping windows, two layers in front of the encoder",
        "yitu-opensource/T2T-ViT: `*_T2T_ViT_*.pth.tar`, `*_T2T_ViTt_*.pth.tar`",
    ),
    Family("EVA-large", "arXiv:2211.07636", "mean pooling", "timm: `eva_large_*`"),
    Family(
        "ViT with registers and mean pooling", "arXiv:2305.13035, arXiv:2309.16588",
        "registers, layer scale, mean pooling, odd widths",
        "timm: `vit_*_reg1_gap_*`, `vit_*_reg4_gap_*`, `vit_so150m*`",
    ),
    Family("TIPS", "arXiv:2410.16512", "registers, layer scale", "timm: `vit_*_tipsv2`"),
    Family(
        "InternViT, RADIO", "arXiv:2312.14238, arXiv:2312.06709", "no last LayerNorm",
        "timm: `vit_intern300m_*`, `vit_*_radio_v*`",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One row of the table. An id of None: that source does not have it.

    The ids of a row share shape and preprocessing. Where Hugging Face has the weights of the paper
    and timm only those of augreg, they were trained differently.
    """

    name: str
    size: str
    patch_px: int
    image_px: int
    num_classes: int  # of the published head; 0: published without one, or with a zeroed one
    hf: str | None = None  # Hugging Face hub id
    timm: str | None = None  # timm model name with its tag
    jax: str | None = None  # path below gs://vit_models
    t2t: str | None = None  # file of a release of github.com/yitu-opensource/T2T-ViT
    family: Literal["vit", "deit", "t2t"] = "vit"  # whose preprocessing; DINO follows DeiT
    hf_pooler: bool = False  # a ViTModel repository with its pooler, the paper's pre_logits
    qkv_bias: bool = True
    tokenizer: Tokenizer = "patches"

    @property
    def paper(self) -> str:
        """Where the shape comes from."""
        return _SIZES[self.size][4]

    @property
    def has_head(self) -> bool:
        """Whether logits can be asked of the published checkpoint."""
        return self.num_classes > 0

    @property
    def mean(self) -> tuple[float, float, float]:
        """What is subtracted from pixels in 0..1."""
        return HALF if self.family == "vit" else IMAGENET_MEAN

    @property
    def std(self) -> tuple[float, float, float]:
        """What the difference is divided by."""
        return HALF if self.family == "vit" else IMAGENET_STD

    @property
    def timm_crop_ratio(self) -> float:
        """crop_pct of timm's pretrained_cfg."""
        return 0.9 if self.image_px == 224 else 1.0

    @property
    def architecture(self) -> Architecture:
        """The shape, with the LayerNorm epsilon of timm and JAX, or torch's own of T2T-ViT."""
        width, depth, heads, mlp_dim, _ = _SIZES[self.size]
        return Architecture(
            width=width,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            patch_px=self.patch_px,
            image_hw=(self.image_px, self.image_px),
            num_classes=self.num_classes,
            qkv_bias=self.qkv_bias,
            layer_norm_eps=1e-6 if self.tokenizer == "patches" else 1e-5,
            tokenizer=self.tokenizer,
        )

    def preprocessing_at(self, image_hw: tuple[int, int]) -> Preprocessing:
        """As the paper's code evaluates: ViT squashes, bilinear; the others cover and crop."""
        if self.family == "vit":
            return Preprocessing("squash", image_hw, image_hw, "bilinear", self.mean, self.std)
        return self._cover(image_hw, _CROP_RATIOS[self.family])

    def timm_preprocessing_at(self, image_hw: tuple[int, int]) -> Preprocessing:
        """What timm's pretrained_cfg says for this row's timm model."""
        return self._cover(image_hw, self.timm_crop_ratio)

    def _cover(self, image_hw: tuple[int, int], crop_ratio: float) -> Preprocessing:
        height, width = (math.floor(side / crop_ratio) for side in image_hw)
        return Preprocessing("cover", (height, width), image_hw, "bicubic", self.mean, self.std)

    @property
    def preprocessing(self) -> Preprocessing:
        """`preprocessing_at` the published size."""
        return self.preprocessing_at((self.image_px, self.image_px))

    @property
    def timm_preprocessing(self) -> Preprocessing:
        """`timm_preprocessing_at` the published size."""
        return self.timm_preprocessing_at((self.image_px, self.image_px))


# The augreg runs that timm took, by (size, patch): the name of the ImageNet-21k run, and the
# learning rate of its fine-tuning on ImageNet-1k.
_AUGREG_RUNS = {
    ("tiny", 16): ("Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0", 0.03),
    ("small", 16): ("S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0", 0.03),
    ("small", 32): ("S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0", 0.03),
    ("base", 8): ("B_8-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0", 0.01),
    ("base", 16): ("B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0", 0.01),
    ("base", 32): ("B_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.03-do_0.0-sd_0.0", 0.03),
    ("large", 16): ("L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1", 0.01),
}


def _augreg(size: str, patch: int, image: int, hf: str | None = None) -> Variant:
    """A row whose weights only augreg has: ImageNet-21k, then ImageNet-1k."""
    run, learning_rate = _AUGREG_RUNS[size, patch]
    return Variant(
        f"{size}-patch{patch}-{image}",
        size,
        patch,
        image,
        num_classes=1000,
        hf=hf,
        timm=f"vit_{size}_patch{patch}_{image}.augreg_in21k_ft_in1k",
        jax=f"augreg/{run}--imagenet2012-steps_20k-lr_{learning_rate}-res_{image}.npz",
    )


def _augreg_in21k(name: str, size: str, patch: int) -> Variant:
    """A row with augreg's head of 21,843 classes."""
    return Variant(
        name,
        size,
        patch,
        224,
        num_classes=21843,
        timm=f"vit_{size}_patch{patch}_224.augreg_in21k",
        jax=f"augreg/{_AUGREG_RUNS[size, patch][0]}.npz",
    )


def _original(
    size: str, patch: int, image: int, jax: str, timm_tag: str = "orig_in21k_ft_in1k"
) -> Variant:
    """A row of the paper itself: ImageNet-21k, then ImageNet-1k."""
    return Variant(
        f"{size}-patch{patch}-{image}",
        size,
        patch,
        image,
        num_classes=1000,
        hf=f"google/vit-{size}-patch{patch}-{image}",
        timm=f"vit_{size}_patch{patch}_{image}.{timm_tag}",
        jax=f"imagenet21k+imagenet2012/{jax}",
    )


def _original_in21k(size: str, patch: int, jax: str) -> Variant:
    """The paper on ImageNet-21k. Hugging Face and timm have no head, the .npz a zeroed one."""
    return Variant(
        f"{size}-patch{patch}-224-in21k",
        size,
        patch,
        224,
        num_classes=0,
        hf=f"google/vit-{size}-patch{patch}-224-in21k",
        timm=f"vit_{size}_patch{patch}_224.orig_in21k",
        jax=f"imagenet21k/{jax}",
        hf_pooler=True,
    )


def _dino(name: str, size: str, patch: int) -> Variant:
    """DINO (arXiv:2104.14294): self-supervised features, no head."""
    hf = f"facebook/dino-vit{size[0]}{patch}"
    timm = f"vit_{size}_patch{patch}_224.dino"
    return Variant(name, size, patch, 224, 0, hf=hf, timm=timm, family="deit")


def _deit(size: str, image: int) -> Variant:
    """DeiT without distillation (arXiv:2012.12877): ImageNet-1k alone."""
    return Variant(
        f"deit-{size}-patch16-{image}",
        size,
        16,
        image,
        num_classes=1000,
        hf=f"facebook/deit-{size}-patch16-{image}",
        timm=f"deit_{size}_patch16_{image}.fb_in1k",
        family="deit",
    )


def _t2t(file: str, image: int = 224) -> Variant:
    """T2T-ViT (arXiv:2101.11986), on ImageNet-1k alone; its file is ACCURACY_MODEL.pth.tar."""
    model, depth = file.split("_T2T_")[1].split("_")
    tokenizer: Tokenizer = "t2t" if model == "ViTt" else "t2t-performer"
    name = f"t2t-vit-{'t-' if model == 'ViTt' else ''}{depth}{'' if image == 224 else f'-{image}'}"
    return Variant(
        name,
        f"t2t-{depth}",
        16,
        image,
        num_classes=1000,
        t2t=f"{file}.pth.tar",
        family="t2t",
        qkv_bias=False,
        tokenizer=tokenizer,
    )


_AUGREG_TAG = "augreg_in21k_ft_in1k"  # timm dropped the paper's own weights of these

_ROWS = (
    Variant("testing", "testing", 16, 64, 10),
    Variant("vit-cifar10", "cifar10", 4, 32, 10),
    _augreg("tiny", 16, 224, hf="WinKawaks/vit-tiny-patch16-224"),
    _augreg("tiny", 16, 384),
    _augreg("small", 32, 224),
    _augreg("small", 32, 384),
    _augreg("small", 16, 224, hf="WinKawaks/vit-small-patch16-224"),
    _augreg("small", 16, 384),
    _dino("small-patch8-224", "small", 8),
    _augreg("base", 32, 224),
    _original("base", 32, 384, "ViT-B_32.npz", _AUGREG_TAG),
    _original("base", 16, 224, "ViT-B_16-224.npz"),
    _original("base", 16, 384, "ViT-B_16.npz"),
    _augreg("base", 8, 224),
    _original("large", 32, 384, "ViT-L_32.npz"),
    _original("large", 16, 224, "ViT-L_16-224.npz", _AUGREG_TAG),
    _original("large", 16, 384, "ViT-L_16.npz", _AUGREG_TAG),
    _original_in21k("base", 16, "ViT-B_16.npz"),
    _original_in21k("base", 32, "ViT-B_32.npz"),
    _original_in21k("large", 16, "ViT-L_16.npz"),
    _original_in21k("large", 32, "ViT-L_32.npz"),
    _original_in21k("huge", 14, "ViT-H_14.npz"),
    _augreg_in21k("tiny-patch16-224-in21k", "tiny", 16),
    _augreg_in21k("small-patch16-224-in21k", "small", 16),
    _augreg_in21k("small-patch32-224-in21k", "small", 32),
    _augreg_in21k("base-patch8-224-in21k", "base", 8),
    _augreg_in21k("base-patch16-224-in21k-augreg", "base", 16),
    _augreg_in21k("base-patch32-224-in21k-augreg", "base", 32),
    _augreg_in21k("large-patch16-224-in21k-augreg", "large", 16),
    _dino("dino-small-patch16-224", "small", 16),
    _dino("dino-base-patch16-224", "base", 16),
    _dino("dino-base-patch8-224", "base", 8),
    _deit("tiny", 224),
    _deit("small", 224),
    _deit("base", 224),
    _deit("base", 384),
    _t2t("71.7_T2T_ViT_7"),
    _t2t("75.2_T2T_ViT_10"),
    _t2t("76.5_T2T_ViT_12"),
    _t2t("81.5_T2T_ViT_14"),
    _t2t("83.3_T2T_ViT_14", 384),
    _t2t("81.9_T2T_ViT_19"),
    _t2t("82.3_T2T_ViT_24"),
    _t2t("81.7_T2T_ViTt_14"),
    _t2t("82.4_T2T_ViTt_19"),
    _t2t("82.6_T2T_ViTt_24"),
)

VARIANTS: dict[str, Variant] = {row.name: row for row in _ROWS}


def matching(words: Sequence[str]) -> tuple[list[Family], list[Variant]]:
    """List the families and variants in whose row every word stands, however it is written.

    Raises:
        UsageError: There are none.
    """

    def fits(row: Family | Variant) -> bool:
        text = " ".join(map(str, vars(row).values())).lower()
        return all(word.lower() in text for word in words)

    families, variants = [*filter(fits, FAMILIES)], [*filter(fits, _ROWS)]
    if not families and not variants:
        raise UsageError(
            f"no family and no variant has {' and '.join(map(repr, words))} in its row. All of "
            "them: vit-edge export --list-variants"
        )
    return families, variants


def variant(name: str) -> Variant:
    """Look a variant up by name.

    Raises:
        UsageError: No such row; the row that is published under this name, or the nearest names,
            are suggested.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    for row in _ROWS:
        ids = {"Hugging Face": row.hf, "timm": row.timm, "JAX": row.jax, "T2T-ViT": row.t2t}
        for source, published in ids.items():
            if name == published:
                raise UsageError(
                    f"no variant {name!r}: that is the {source} id of the variant {row.name}: "
                    f"--variant {row.name}"
                )
    near = difflib.get_close_matches(name, VARIANTS, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(f"no variant {name!r}.{hint} All names: vit-edge export --list-variants")
