"""What make_open_clip_reference.py builds with open_clip, and test_open_clip.py again without it.

The weights are drawn by name, so that none need to be stored; only answers are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.data.timm_cases import drawn

Arrays = dict[str, NDArray[np.float32]]
EMBED_DIM, CLASSES = 24, 7
TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}


@dataclass(frozen=True)
class Case:
    """A CLIP of open_clip's, by what its config says beside the usual."""

    vision: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    resized_px: int | None = None  # positions resampled to this size

    @property
    def config(self) -> dict[str, Any]:
        """model_cfg of open_clip_config.json."""
        vision = {"width": 32, "head_width": 16, "layers": 2, "patch_size": 8, "image_size": 32}
        return {
            "embed_dim": EMBED_DIM,
            "vision_cfg": {**vision, **self.vision},
            "text_cfg": TEXT,
            **self.model,
        }


CASES = {
    "plain": Case(),
    "quick-gelu": Case(model={"quick_gelu": True}),
    "text-of-its-own": Case(model={"custom_text": True}),
    "two-heads-wide": Case({"head_width": 8, "mlp_ratio": 2.5}),
    "averaged": Case({"pool_type": "avg"}),
    "clipa": Case({"pool_type": "avg", "no_ln_pre": True, "final_ln_after_pool": True}),
    "norm-after-the-class-token": Case({"final_ln_after_pool": True}),
    "layer-scale": Case({"ls_init_value": 1e-4}),
    "an-epsilon": Case({"norm_kwargs": {"eps": 1e-3}}),
    "custom-block": Case({"block_type": "custom"}),
    "fixed-positions": Case({"pos_embed_type": "sin_cos_2d"}),
    "non-square": Case({"image_size": [24, 40]}),
    "resized": Case(resized_px=48),
}


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """open_clip's state_dict, of both halves: name -> shape."""
    v = case.config["vision_cfg"]
    d, patch, mlp = v["width"], v["patch_size"], int(v["width"] * v.get("mlp_ratio", 4))
    size = v["image_size"]
    height, width = size if isinstance(size, list) else (size, size)
    tokens = (height // patch) * (width // patch) + 1
    found: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (d,),
        "visual.positional_embedding": (tokens, d),
        "visual.proj": (d, EMBED_DIM),
        "visual.conv1.weight": (d, 3, patch, patch),
        "logit_scale": (),
    }
    norms = ["visual.ln_post"] + ([] if v.get("no_ln_pre") else ["visual.ln_pre"])
    found |= {f"{norm}.{leaf}": (d,) for norm in norms for leaf in ("weight", "bias")}
    for index in range(v["layers"]):
        block = f"visual.transformer.resblocks.{index}"
        found |= _block(block, d, mlp)
        if v.get("ls_init_value"):
            found |= {f"{block}.ls_{number}.gamma": (d,) for number in (1, 2)}
    text = "text." if case.model.get("custom_text") else ""
    t = TEXT["width"]
    found |= {
        f"{text}positional_embedding": (TEXT["context_length"], t),
        f"{text}text_projection": (t, EMBED_DIM),
        f"{text}token_embedding.weight": (TEXT["vocab_size"], t),
        f"{text}ln_final.weight": (t,),
        f"{text}ln_final.bias": (t,),
    }
    return found | _block(f"{text}transformer.resblocks.0", t, 4 * t)


def _block(name: str, d: int, mlp: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.ln_1.weight": (d,),
        f"{name}.ln_1.bias": (d,),
        f"{name}.attn.in_proj_weight": (3 * d, d),
        f"{name}.attn.in_proj_bias": (3 * d,),
        f"{name}.attn.out_proj.weight": (d, d),
        f"{name}.attn.out_proj.bias": (d,),
        f"{name}.ln_2.weight": (d,),
        f"{name}.ln_2.bias": (d,),
        f"{name}.mlp.c_fc.weight": (mlp, d),
        f"{name}.mlp.c_fc.bias": (mlp,),
        f"{name}.mlp.c_proj.weight": (d, mlp),
        f"{name}.mlp.c_proj.bias": (d,),
    }


def weights(case: Case) -> Arrays:
    """Every tensor of a case, of both halves."""
    found = {}
    for name, shape in shapes(case).items():
        values = drawn(name, shape)
        is_norm = re.search(r"ln_(1|2|pre|post|final)\.weight$", name) is not None
        found[name] = values + np.float32(is_norm)
    found["logit_scale"] = np.array(3.1, np.float32)
    return found


def pixels(case: Case) -> NDArray[np.float32]:
    """Two images of the size the case ends at: float32[2, 3, H, W]."""
    size = case.resized_px or case.config["vision_cfg"]["image_size"]
    height, width = size if isinstance(size, list) else (size, size)
    return drawn("pixels", (1, 2, 3, height, width))[0] * 2


def texts() -> NDArray[np.float32]:
    """Embedded texts: float32[classes, width]."""
    return drawn("texts", (CLASSES, EMBED_DIM, 1))[..., 0]


# preprocess_cfg of open_clip_config.json, and the image sizes of its cases
TRANSFORMS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "said": {"interpolation": "bicubic", "resize_mode": "shortest", "mode": "RGB", "size": 99},
    "bilinear": {"interpolation": "bilinear"},
    "random": {"interpolation": "random"},
    "squash": {"resize_mode": "squash"},
    "squash-bilinear": {"resize_mode": "squash", "interpolation": "bilinear"},
    "one-number": {"mean": 0.5, "std": 0.25},
    "nulls": {"mean": None, "std": None, "interpolation": None, "resize_mode": None},
    "colours": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
}
SOURCES_HW = ((37, 53), (53, 37), (16, 16), (100, 31), (9, 7), (45, 45))
SIZE_PX = 16
