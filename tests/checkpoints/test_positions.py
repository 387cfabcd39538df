"""Position embeddings resampled as each source does it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vit_edge.checkpoints.positions import interpolate

requires = ("torch", "scipy")

grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


def positions(grid_hw: tuple[int, int], width: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 1 + grid_hw[0] * grid_hw[1], width, generator=generator)


@given(old=grids, new=grids)
def test_zoom_bilinear_is_scipys_zoom(old: tuple[int, int], new: tuple[int, int]) -> None:
    from scipy.ndimage import zoom

    position = positions(old)
    found = interpolate(position, old, new, "zoom-bilinear")
    grid = position[0, 1:].reshape(*old, 3).numpy().astype(np.float64)
    # As vit_jax/checkpoint.py does it.
    expected = zoom(grid, (new[0] / old[0], new[1] / old[1], 1), order=1)
    assert expected.shape == (*new, 3)
    np.testing.assert_allclose(found[0, 1:].reshape(*new, 3).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("method", ["bicubic", "bicubic-antialias", "zoom-bilinear"])
def test_the_class_token_keeps_its_position(method: str) -> None:
    position = positions((4, 4))
    found = interpolate(position, (4, 4), (7, 2), method)
    assert found.shape == (1, 15, 3)
    assert torch.equal(found[:, 0], position[:, 0])


@pytest.mark.parametrize("method", ["bicubic", "bicubic-antialias", "zoom-bilinear"])
@given(grid=grids)
def test_the_same_grid_changes_nothing(method: str, grid: tuple[int, int]) -> None:
    position = positions(grid)
    torch.testing.assert_close(interpolate(position, grid, grid, method), position)


@pytest.mark.parametrize("method", ["bicubic", "bicubic-antialias", "zoom-bilinear"])
def test_rows_and_columns_are_not_swapped(method: str) -> None:
    rows = torch.arange(4.0).repeat_interleave(2)  # a 4 x 2 grid whose value is its row
    position = torch.cat([torch.zeros(1), rows])[None, :, None]
    found = interpolate(position, (4, 2), (8, 6), method)[0, 1:, 0].reshape(8, 6)
    assert (found.std(dim=1) < 1e-6).all()
    assert (found.diff(dim=0) >= -1e-6).all()


def test_the_methods_differ_by_as_much_as_facts_say() -> None:
    position = positions((14, 14), width=64)
    found = {
        method: interpolate(position, (14, 14), (20, 28), method)
        for method in ("bicubic", "zoom-bilinear")
    }
    assert (found["bicubic"] - found["zoom-bilinear"]).abs().mean() > 0.1
