"""Position embeddings from one patch grid to another, the way each source does it itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vit_edge.bundle.manifest import PositionMethod


def interpolate(
    position: Tensor,
    from_grid_hw: tuple[int, int],
    to_grid_hw: tuple[int, int],
    method: PositionMethod,
    prefix: int = 1,
) -> Tensor:
    """Resample the patch positions in 2-D; the rows in front of them are kept.

    Args:
        position: float32[1, prefix + patches, D].
        from_grid_hw: Patches down and across of `position`.
        to_grid_hw: Those of the result.
        method: "bicubic" is transformers' interpolate_pos_encoding; "bicubic-antialias" is
            timm.layers.resample_abs_pos_embed; "bicubic-corners" is torchvision's
            interpolate_embeddings (align_corners=True); "zoom-bilinear" is
            scipy.ndimage.zoom(order=1) of google-research/vision_transformer
            (vit_jax/checkpoint.py), whose grid is that of align_corners=True. "bicubic-offset" is
            facebookresearch/dinov2's interpolate_pos_encoding, which gives the scale
            (new + 0.1) / old instead of the size.
        prefix: Rows for the class token and what follows it.

    Returns:
        float32[1, prefix + new patches, D].
    """
    kept, patches = position[:, :prefix], position[:, prefix:]
    grid = patches.reshape(1, *from_grid_hw, -1).permute(0, 3, 1, 2)  # [1, D, rows, columns]
    if method in ("zoom-bilinear", "bicubic-corners"):
        mode = "bilinear" if method == "zoom-bilinear" else "bicubic"
        grid = functional.interpolate(grid, to_grid_hw, mode=mode, align_corners=True)
    elif method == "bicubic-offset":
        scale = tuple((to + 0.1) / of for to, of in zip(to_grid_hw, from_grid_hw, strict=True))
        grid = functional.interpolate(grid, scale_factor=scale, mode="bicubic")
    else:
        grid = functional.interpolate(
            grid, to_grid_hw, mode="bicubic", antialias=method == "bicubic-antialias"
        )
    return torch.cat([kept, grid.flatten(2).transpose(1, 2)], dim=1).contiguous()
