"""Drawn occluders: how much they hide, and what they leave as it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reid.errors import DataError
from reid.generation.occluders import draw_masks, draw_textures, occlude


@given(share=st.floats(0, 1), height=st.integers(4, 70), width=st.integers(4, 40), seed=st.integers(0, 50))
def test_masks_hide_the_asked_share_to_a_row_or_column(share: float, height: int, width: int, seed: int) -> None:
    masks = draw_masks(6, (height, width), (share, share), torch.Generator().manual_seed(seed))
    assert masks.shape == (6, 1, height, width)
    error = (masks.double().mean((1, 2, 3)) - share).abs().max()
    assert error <= max(1 / height, 1 / width) + 1e-9
    for mask in masks[:, 0]:  # a rectangle: the area of its outline is its own
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert rows * columns == mask.sum()


def test_every_shape_is_drawn_and_shares_vary() -> None:
    masks = draw_masks(200, (64, 32), (0.1, 0.4), torch.Generator().manual_seed(0))[:, 0]
    shares = masks.float().mean((1, 2))
    assert 0.08 < shares.min() < 0.15
    assert 0.35 < shares.max() < 0.42
    posts = masks.any(2).all(1) & ~masks.any(1).all(1)
    boards = masks.any(1).all(1) & masks[:, -1].all(1)
    assert posts.sum() > 30
    assert boards.sum() > 30
    assert (~posts & ~boards).sum() > 30


def test_shares_out_of_order_are_refused() -> None:
    for share in ((0.5, 0.2), (-0.1, 0.2), (0.2, 1.1)):
        with pytest.raises(DataError):
            draw_masks(1, (8, 8), share, torch.Generator())


def test_occluding_changes_hidden_pixels_only_and_grey_crops_stay_grey() -> None:
    generator = torch.Generator().manual_seed(1)
    crops = torch.rand((16, 3, 64, 32), generator=generator) * 2 - 1
    crops[8:] = crops[8:].mean(1, keepdim=True)
    masks = draw_masks(16, (64, 32), (0.3, 0.5), generator)
    occluded = occlude(crops, masks, generator)
    visible = ~masks.expand_as(crops)
    assert torch.equal(occluded[visible], crops[visible])
    assert ((occluded != crops) & masks).float().sum() > 0.9 * masks.sum() * 3
    assert torch.equal(occluded[8:, 0], occluded[8:, 2])
    textures = draw_textures(crops, generator)
    assert textures.abs().max() <= 1
    assert (textures[:8, 0] != textures[:8, 2]).any()
