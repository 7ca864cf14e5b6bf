"""The completion network: hidden pixels do not count, and moments are those of the visible pixels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reid.errors import ConditionError
from reid.generation.completion_network import (
    CompletionNetwork,
    MaskGuesser,
    build_patch_discriminator,
    complete,
    smooth_fill,
)
from reid.generation.completion_training import hidden_error
from reid.generation.occluders import draw_masks
from reid.norm import Given
from reid.norm.specialised.region_norm import LearnedRegionNorm, RegionNorm


def drawn(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((count, 3, 64, 32), generator=generator) * 2 - 1
    return images, draw_masks(count, (64, 32), (0.2, 0.4), generator)


def network() -> nn.Module:
    torch.manual_seed(0)
    found = CompletionNetwork((4, 6, 8), 1)
    nn.init.normal_(found.decoder[-1].weight, std=0.1)  # as after some steps; it starts with 0
    return found


def test_visible_pixels_stay_and_hidden_pixels_do_not_count() -> None:
    images, masks = drawn()
    found = complete(network(), images, masks)
    visible = ~masks.expand_as(images)
    assert torch.equal(found[visible], images[visible])
    occluded = torch.where(masks, 37.0, images)
    assert torch.equal(complete(network(), occluded, masks), found)


def test_the_smooth_fill_is_what_a_loop_over_the_pyramid_gives() -> None:
    images, masks = drawn(1)
    images, masks = images[..., :8, :8], draw_masks(1, (8, 8), (0.4, 0.4), torch.Generator().manual_seed(3))
    filled = smooth_fill(images, masks)
    visible = ~masks.expand_as(images)
    assert torch.equal(filled[visible], images[visible])
    assert filled.amin() >= images[visible].min()
    assert filled.amax() <= images[visible].max()
    blocks = []  # the next coarser level: means over the visible pixels of blocks of 2 x 2
    for row in range(0, 8, 2):
        for column in range(0, 8, 2):
            seen = (~masks[0, 0, row : row + 2, column : column + 2]).flatten()
            pixels = images[0, :, row : row + 2, column : column + 2].flatten(1)[:, seen]
            blocks.append(pixels.mean(1) if len(pixels[0]) else torch.full((3,), float("nan")))
    coarse = torch.stack(blocks, 1).view(1, 3, 4, 4)
    hidden = coarse[:, :1].isnan()
    level = smooth_fill(coarse.nan_to_num(), hidden)
    enlarged = nn.functional.interpolate(level, (8, 8), mode="bilinear")
    assert torch.allclose(filled, torch.where(masks, enlarged, images), atol=1e-6)
    assert smooth_fill(images, torch.ones_like(masks)).abs().sum() == 0


def with_plain_norms(parent: nn.Module) -> nn.Module:
    """The wrong variant: batch norms in place of region norms."""
    for name, child in parent.named_children():
        if isinstance(child, RegionNorm):
            setattr(parent, name, nn.BatchNorm2d(child.weight.shape[1]))
        elif isinstance(child, LearnedRegionNorm):
            setattr(parent, name, nn.LazyBatchNorm2d())
        else:
            with_plain_norms(child)
    return parent


def test_a_crop_is_completed_by_itself_which_batch_norms_would_not_do() -> None:
    images, masks = drawn(4)
    together = complete(network(), images, masks)
    single = torch.cat([complete(network(), images[[i]], masks[[i]]) for i in range(4)])
    assert torch.allclose(together, single, atol=1e-5)
    wrong = with_plain_norms(network())
    assert not torch.allclose(complete(wrong, images, masks)[[0]], complete(wrong, images[[0]], masks[[0]]), atol=1e-3)


def test_brightness_and_contrast_of_the_visible_pixels_carry_over() -> None:
    images, masks = drawn()
    found = complete(network(), images, masks)
    moved = complete(network(), 0.5 * images + 0.3, masks)
    assert torch.allclose(moved, 0.5 * found + 0.3, atol=1e-4)


def test_training_and_evaluation_are_the_same() -> None:
    images, masks = drawn()
    assert torch.equal(complete(network().train(), images, masks), complete(network().eval(), images, masks))


def test_a_network_without_a_mask_is_told() -> None:
    with pytest.raises(ConditionError):
        Given(network())(torch.zeros(1, 3, 64, 32))


def test_hidden_error_is_the_mean_over_hidden_pixels_only() -> None:
    images, masks = drawn()
    completed = torch.where(masks, images + 0.25, images)
    assert hidden_error(completed, images, masks).item() == pytest.approx(0.25, abs=1e-5)
    plain = (completed - images).abs().mean()  # the wrong variant falls with the size of the mask
    assert plain.item() == pytest.approx(0.25 * masks.float().mean().item(), abs=1e-5)
    assert hidden_error(completed, images, torch.zeros_like(masks)).item() == 0


def test_shapes_and_spectral_norms() -> None:
    images, _ = drawn()
    assert MaskGuesser(4)(images).shape == (3, 1, 64, 32)
    discriminator = build_patch_discriminator(4)
    for _ in range(30):
        assert discriminator(images).shape == (3, 1, 4, 2)
    weights = [layer.weight.detach().flatten(1) for layer in discriminator if isinstance(layer, nn.Conv2d)]
    assert len(weights) == 5
    assert all(torch.linalg.svdvals(weight)[0].item() == pytest.approx(1, abs=0.05) for weight in weights)
