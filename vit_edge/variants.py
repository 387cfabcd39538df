"""The variants, one row each: shape, preprocessing, and what each source calls it.

Base, Large and Huge are Table 1 of arXiv:2010.11929 (the original ViT). Tiny and Small are not in
that paper: they are Table 1 of arXiv:2012.12877 (DeiT), trained by arXiv:2106.10270 (augreg).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from vit_edge.errors import UsageError
from vit_edge.manifest import Architecture, Preprocessing

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_VIT = "arXiv:2010.11929, Table 1"
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
}


@dataclass(frozen=True)
class Variant:
    """One row of the table. An id of None: that source does not have it."""

    name: str
    size: str
    patch_px: int
    image_px: int
    num_classes: int  # of the published head; 0: published without one, or with a zeroed one
    hf: str | None = None  # Hugging Face hub id
    timm: str | None = None  # timm model name with its tag
    jax: str | None = None  # path below gs://vit_models
    timm_crop_ratio: float = 0.9  # crop_pct of timm's pretrained_cfg
    timm_mean: tuple[float, float, float] = HALF
    timm_std: tuple[float, float, float] = HALF
    hf_layer_norm_eps: float = 1e-12  # as google/vit-* have it; timm and JAX use 1e-6
    hf_pooler: bool = False  # a ViTModel repository with its pooler, the paper's pre_logits
    qkv_bias: bool = True

    @property
    def paper(self) -> str:
        """Where the shape comes from."""
        return _SIZES[self.size][4]

    @property
    def has_head(self) -> bool:
        """Whether logits can be asked of the published checkpoint."""
        return self.num_classes > 0

    @property
    def architecture(self) -> Architecture:
        """The shape, with the LayerNorm epsilon of timm and JAX."""
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
        )

    @property
    def preprocessing(self) -> Preprocessing:
        """The original one, which Hugging Face's processor follows: PIL bilinear squash, no crop."""
        size_hw = (self.image_px, self.image_px)
        return Preprocessing("squash", size_hw, size_hw, "bilinear", HALF, HALF)

    @property
    def timm_preprocessing(self) -> Preprocessing:
        """What timm's pretrained_cfg says for this row's timm model."""
        resized_px = int(self.image_px // self.timm_crop_ratio)
        return Preprocessing(
            "cover",
            (resized_px, resized_px),
            (self.image_px, self.image_px),
            "bicubic",
            self.timm_mean,
            self.timm_std,
        )


def _augreg(size: str, patch: int, image: int, tag: str, **more: object) -> Variant:
    """A row that only timm and the augreg JAX bucket have (ImageNet-21k, then ImageNet-1k)."""
    return Variant(
        f"{size}-patch{patch}-{image}",
        size,
        patch,
        image,
        1000,
        timm=f"vit_{size}_patch{patch}_{image}.{tag}",
        timm_crop_ratio=0.9 if image == 224 else 1.0,
        **more,  # type: ignore[arg-type]
    )


_TUNED = "augreg_in21k_ft_in1k"
_ORIGINAL = "orig_in21k_ft_in1k"
_BOTH = "imagenet21k+imagenet2012"

_ROWS = (
    Variant("testing", "testing", 16, 64, 10),
    Variant("vit-cifar10", "cifar10", 4, 32, 10),
    _augreg("tiny", 16, 224, _TUNED, hf="WinKawaks/vit-tiny-patch16-224"),
    _augreg("tiny", 16, 384, _TUNED),
    _augreg("small", 32, 224, _TUNED),
    _augreg("small", 32, 384, _TUNED),
    _augreg("small", 16, 224, _TUNED, hf="WinKawaks/vit-small-patch16-224"),
    _augreg("small", 16, 384, _TUNED),
    Variant(
        "small-patch8-224",
        "small",
        8,
        224,
        0,
        hf="facebook/dino-vits8",
        timm="vit_small_patch8_224.dino",
        timm_mean=IMAGENET_MEAN,
        timm_std=IMAGENET_STD,
    ),
    _augreg("base", 32, 224, _TUNED),
    Variant(
        "base-patch32-384",
        "base",
        32,
        384,
        1000,
        hf="google/vit-base-patch32-384",
        timm="vit_base_patch32_384.augreg_in21k_ft_in1k",
        jax=f"{_BOTH}/ViT-B_32.npz",
        timm_crop_ratio=1.0,
    ),
    Variant(
        "base-patch16-224",
        "base",
        16,
        224,
        1000,
        hf="google/vit-base-patch16-224",
        timm=f"vit_base_patch16_224.{_ORIGINAL}",
        jax=f"{_BOTH}/ViT-B_16-224.npz",
    ),
    Variant(
        "base-patch16-384",
        "base",
        16,
        384,
        1000,
        hf="google/vit-base-patch16-384",
        timm=f"vit_base_patch16_384.{_ORIGINAL}",
        jax=f"{_BOTH}/ViT-B_16.npz",
        timm_crop_ratio=1.0,
    ),
    _augreg("base", 8, 224, _TUNED),
    Variant(
        "large-patch32-384",
        "large",
        32,
        384,
        1000,
        hf="google/vit-large-patch32-384",
        timm=f"vit_large_patch32_384.{_ORIGINAL}",
        jax=f"{_BOTH}/ViT-L_32.npz",
        timm_crop_ratio=1.0,
    ),
    Variant(
        "large-patch16-224",
        "large",
        16,
        224,
        1000,
        hf="google/vit-large-patch16-224",
        timm="vit_large_patch16_224.augreg_in21k_ft_in1k",
        jax=f"{_BOTH}/ViT-L_16-224.npz",
    ),
    Variant(
        "large-patch16-384",
        "large",
        16,
        384,
        1000,
        hf="google/vit-large-patch16-384",
        timm="vit_large_patch16_384.augreg_in21k_ft_in1k",
        jax=f"{_BOTH}/ViT-L_16.npz",
        timm_crop_ratio=1.0,
    ),
    # ImageNet-21k only. Hugging Face and timm carry no head, the .npz files a zeroed one.
    Variant(
        "base-patch16-224-in21k",
        "base",
        16,
        224,
        0,
        hf="google/vit-base-patch16-224-in21k",
        timm="vit_base_patch16_224.orig_in21k",
        jax="imagenet21k/ViT-B_16.npz",
        hf_pooler=True,
    ),
    Variant(
        "base-patch32-224-in21k",
        "base",
        32,
        224,
        0,
        hf="google/vit-base-patch32-224-in21k",
        timm="vit_base_patch32_224.orig_in21k",
        jax="imagenet21k/ViT-B_32.npz",
        hf_pooler=True,
    ),
    Variant(
        "large-patch16-224-in21k",
        "large",
        16,
        224,
        0,
        hf="google/vit-large-patch16-224-in21k",
        timm="vit_large_patch16_224.orig_in21k",
        jax="imagenet21k/ViT-L_16.npz",
        hf_pooler=True,
    ),
    Variant(
        "large-patch32-224-in21k",
        "large",
        32,
        224,
        0,
        hf="google/vit-large-patch32-224-in21k",
        timm="vit_large_patch32_224.orig_in21k",
        jax="imagenet21k/ViT-L_32.npz",
        hf_pooler=True,
    ),
    Variant(
        "huge-patch14-224-in21k",
        "huge",
        14,
        224,
        0,
        hf="google/vit-huge-patch14-224-in21k",
        timm="vit_huge_patch14_224.orig_in21k",
        jax="imagenet21k/ViT-H_14.npz",
        hf_pooler=True,
    ),
    # ImageNet-21k with the 21,843-class head of augreg.
    Variant("tiny-patch16-224-in21k", "tiny", 16, 224, 21843, timm="vit_tiny_patch16_224.augreg_in21k"),
    Variant("small-patch16-224-in21k", "small", 16, 224, 21843, timm="vit_small_patch16_224.augreg_in21k"),
    Variant("small-patch32-224-in21k", "small", 32, 224, 21843, timm="vit_small_patch32_224.augreg_in21k"),
    Variant("base-patch8-224-in21k", "base", 8, 224, 21843, timm="vit_base_patch8_224.augreg_in21k"),
)

VARIANTS: dict[str, Variant] = {row.name: row for row in _ROWS}


def variant(name: str) -> Variant:
    """Look a variant up by name.

    Raises:
        UsageError: No such row; the nearest names are suggested.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    near = difflib.get_close_matches(name, VARIANTS, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(f"no variant {name!r}.{hint} There are: {', '.join(VARIANTS)}")
