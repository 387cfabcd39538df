"""Write torchvision_reference.npz: logits of torchvision's VisionTransformer, in float64.

Run where torchvision is installed:  python -m tests.data.make_torchvision_reference
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from tests.data.torchvision_cases import CASES, RESIZED_PX, SHAPE, pixels, state


def torchvision_logits(case: str, side_px: int) -> np.ndarray:
    """Fill torchvision's model with the weights of a case, at its own size or resized."""
    weights = interpolate_embeddings(side_px, SHAPE["patch_size"], state(case))
    arguments = SHAPE | {"image_size": side_px, "representation_size": CASES[case]}
    model = VisionTransformer(**arguments)
    model.load_state_dict(weights, strict=True)
    with torch.no_grad():
        return model.double().eval()(pixels(side_px)).numpy()


def main() -> None:
    found = {"torchvision": np.array(torchvision.__version__)}
    for case in CASES:
        for side_px in (SHAPE["image_size"], RESIZED_PX):
            found[f"{case}/{side_px}"] = torchvision_logits(case, side_px)
    np.savez_compressed(Path(__file__).with_name("torchvision_reference.npz"), **found)


if __name__ == "__main__":
    main()
