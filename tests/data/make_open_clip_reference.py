"""Write open_clip_reference.npz: the answers of open_clip's own CLIP for every open_clip_cases.

Run where open_clip is installed:  python -m tests.data.make_open_clip_reference
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP, resize_pos_embed
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image

from tests.data.make_timm_transform import synthetic_image
from tests.data.open_clip_cases import (
    CASES,
    SIZE_PX,
    SOURCES_HW,
    TRANSFORMS,
    Case,
    pixels,
    shapes,
    texts,
    weights,
)


def answers(case: Case, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Image features, not normalised, and logits of `texts` by open_clip's own formula."""
    config = dict(case.config)
    own_text = config.pop("custom_text", False)
    if case.resized_px is not None:
        config["vision_cfg"] = {**config["vision_cfg"], "image_size": case.resized_px}
    model = (CustomTextCLIP if own_text else CLIP)(**config)
    state = {name: torch.from_numpy(array) for name, array in weights(case).items()}
    if case.resized_px is None:
        assert {n: tuple(t.shape) for n, t in model.state_dict().items()} == shapes(case)
    else:
        resize_pos_embed(state, model)
    model.load_state_dict(state, strict=True)
    model = model.to(dtype).eval()
    with torch.no_grad():
        images = torch.from_numpy(pixels(case)).to(dtype)
        features = model.encode_image(images)
        normalised = model.encode_image(images, normalize=True)
        embedded = torch.nn.functional.normalize(torch.from_numpy(texts()).to(dtype), dim=-1)
        return features, model.logit_scale.exp() * normalised @ embedded.t()


def transformed(name: str) -> str:
    """SHA-256 of the pixels of all sources, one after the other."""
    merged = merge_preprocess_dict(PreprocessCfg(), TRANSFORMS[name])
    transform = image_transform_v2(PreprocessCfg(**{**merged, "size": SIZE_PX}), is_train=False)
    digest = hashlib.sha256()
    for height, width in SOURCES_HW:
        picture = Image.fromarray(synthetic_image(height, width))
        digest.update(transform(picture).numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    found = {"open_clip": np.array(open_clip.__version__)}
    for name, case in CASES.items():
        for dtype in (torch.float32, torch.float64):
            features, logits = answers(case, dtype)
            found[f"{name}/{features.numpy().dtype}"] = features.numpy()
            found[f"{name}/logits/{features.numpy().dtype}"] = logits.numpy()
    for name in TRANSFORMS:
        found[f"transform/{name}"] = np.array(transformed(name))
    np.savez_compressed(Path(__file__).with_name("open_clip_reference.npz"), **found)


if __name__ == "__main__":
    main()
