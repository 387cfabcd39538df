"""Write timm_reference.npz: logits of timm's own VisionTransformer for every case of timm_cases.

Run where timm is installed:  python -m tests.data.make_timm_reference
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from timm.layers import LayerNorm, get_act_layer, resample_abs_pos_embed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from tests.data.timm_cases import CASES, Case, pixels, shapes, weights

KEPT = 40  # logits of each image that are stored


def timm_logits(case: Case, dtype: torch.dtype) -> torch.Tensor:
    """Fill timm's model with the weights of a case and run it: [2, classes]."""
    state = {name: torch.from_numpy(array) for name, array in weights(case).items()}
    arguments = case.arguments
    if case.resized_hw is not None:
        grids = [[side // case.patch for side in hw] for hw in (case.resized_hw, case.image_hw)]
        state["pos_embed"] = resample_abs_pos_embed(
            state["pos_embed"], grids[0], grids[1],
            num_prefix_tokens=0 if case.no_embed_class else case.prefix_tokens,
        )  # fmt: skip
        arguments["img_size"] = case.resized_hw
    if case.of_family("act_layer", None):
        arguments["act_layer"] = get_act_layer(case.of_family("act_layer", None))
    arguments["norm_layer"] = partial(LayerNorm, eps=case.epsilon)
    model = (VisionTransformerDistilled if case.distilled else VisionTransformer)(**arguments)
    if case.resized_hw is None:
        assert {n: tuple(t.shape) for n, t in model.state_dict().items()} == shapes(case)
    model.load_state_dict(state, strict=True)
    model = model.to(dtype).eval()
    with torch.no_grad():
        return model(torch.from_numpy(pixels(case)).to(dtype))


def main() -> None:
    found = {"timm": np.array(timm.__version__)}
    for name, case in CASES.items():
        for dtype in (torch.float32, torch.float64):
            logits = timm_logits(case, dtype).numpy()
            found[f"{name}/{logits.dtype}"] = logits[:, :KEPT]
        found[f"{name}/largest"] = np.abs(logits).max()
    np.savez_compressed(Path(__file__).with_name("timm_reference.npz"), **found)


if __name__ == "__main__":
    main()
