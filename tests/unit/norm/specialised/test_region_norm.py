"""Region norm against its published steps: fill a region's outside with its mean, normalize, rescale (T14).

The wrong layers these tests catch: statistics that depend on the batch in evaluation, a bias that leaks out of
its region, one set of statistics for both regions, the mask resized without averaging, an epsilon that is not
scaled by the region's share.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from reid.errors import ConditionError
from reid.norm import Given
from reid.norm.specialised.region_norm import LearnedRegionNorm, RegionNorm, region_stats, standardize_regions

CHANNELS = 4


def example(images: int = 3, size: tuple[int, int] = (6, 4), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Maps and masks (bool) whose regions have other means."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(images, 1, *size, generator=generator) < 0.4
    x = torch.randn(images, CHANNELS, *size, generator=generator)
    return x + 3 * mask + torch.arange(images)[:, None, None, None], mask


def fill_oracle(x: Tensor, mask: Tensor, eps: float = 1e-5) -> Tensor:
    """The published steps over a batch of maps, one region at a time."""
    out = torch.zeros_like(x)
    for region in (mask, ~mask):
        share = region.float().mean()
        if share == 0:
            continue
        for c in range(x.shape[1]):
            values = x[:, c : c + 1]
            filled = torch.where(region, values, values[region].mean())
            normal = (filled - filled.mean()) / (filled.var(correction=0) + eps).sqrt()
            out[:, c : c + 1] += torch.where(region, normal * share.sqrt(), 0)
    return out


def randomize(layer: RegionNorm) -> RegionNorm:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


@settings(deadline=None, max_examples=30)
@hypothesis_given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_regions_of_the_batch_are_the_published_steps(images: int, height: int, width: int, seed: int) -> None:
    """A large epsilon shows that its share is the published one."""
    x, mask = example(images, (height, width), seed)
    got = standardize_regions(x, mask, pooled=True, eps=0.1)
    torch.testing.assert_close(got, fill_oracle(x, mask, eps=0.1), rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=30)
@hypothesis_given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_regions_of_an_image_are_those_of_a_batch_with_only_it(images: int, height: int, width: int, seed: int) -> None:
    x, mask = example(images, (height, width), seed)
    expected = torch.cat([fill_oracle(x[i : i + 1], mask[i : i + 1], eps=0.1) for i in range(images)])
    torch.testing.assert_close(standardize_regions(x, mask, eps=0.1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", ["one region", "plain epsilon", "per image"])
def test_the_published_steps_refuse_wrong_layers(wrong: str) -> None:
    x, mask = example()
    if wrong == "one region":
        got = standardize_regions(x, torch.ones_like(mask), pooled=True, eps=0.1)
    elif wrong == "per image":
        got = standardize_regions(x, mask, pooled=False, eps=0.1)
    else:
        regions = []
        for region in (mask, ~mask):
            stats = region_stats(x, region).merge_all()
            centred = x - stats.mean[:, :, None, None]
            regions.append(centred * torch.rsqrt(stats.var + 0.1)[:, :, None, None])
        got = torch.where(mask, *regions)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(got, fill_oracle(x, mask, eps=0.1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pooled", [True, False])
def test_every_region_has_mean_0_and_variance_1(pooled: bool) -> None:
    x, mask = example(size=(12, 8))
    y = standardize_regions(x, mask, pooled)
    for region in (mask, ~mask):
        groups = [slice(None)] if pooled else [slice(i, i + 1) for i in range(len(x))]
        for group in groups:
            values = y[group].movedim(1, 0)[:, region[group, 0]]
            torch.testing.assert_close(values.mean(1), torch.zeros(CHANNELS), rtol=0, atol=1e-5)
            torch.testing.assert_close(values.var(1, correction=0), torch.ones(CHANNELS), rtol=0, atol=1e-3)


def test_a_mask_of_all_is_batchnorm_in_training_and_instance_norm_in_evaluation() -> None:
    x, _ = example()
    layer, mask = RegionNorm(CHANNELS), torch.ones(3, 1, 6, 4)
    plain = functional.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(layer.train()(x, mask), plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.eval()(x, mask), functional.instance_norm(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_a_constant_on_the_masked_region_changes_nothing(training: bool) -> None:
    """An occluder of another brightness; plain BatchNorm changes everywhere."""
    x, mask = example()
    layer = randomize(RegionNorm(CHANNELS)).train(training)
    brighter = x + 5 * mask
    torch.testing.assert_close(layer(brighter, mask), layer(x, mask), rtol=1e-4, atol=1e-4)
    plain, changed = (functional.batch_norm(maps, None, None, training=True) for maps in (x, brighter))
    assert (plain - changed).abs().max() > 0.5


def test_evaluation_does_not_depend_on_other_images() -> None:
    """In training it does, as published; with ``pooled=False`` it does not either."""
    x, mask = example()
    layer = randomize(RegionNorm(CHANNELS)).eval()
    single = torch.cat([layer(x[i : i + 1], mask[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(layer(x, mask), single, rtol=1e-5, atol=1e-6)
    assert (layer.train()(x, mask) - single).abs().max() > 0.1
    layer.pooled = False
    torch.testing.assert_close(layer(x, mask), single, rtol=1e-5, atol=1e-6)


def test_weight_and_bias_stay_in_their_region() -> None:
    x, mask = example()
    layer = randomize(RegionNorm(CHANNELS)).eval()
    weight, bias = layer.weight.detach()[:, :, None, None], layer.bias.detach()[:, :, None, None]
    plain = standardize_regions(x, mask)
    expected = torch.empty_like(x)
    for i, h, w in torch.cartesian_prod(torch.arange(3), torch.arange(6), torch.arange(4)).tolist():
        row = 0 if mask[i, 0, h, w] else 1
        expected[i, :, h, w] = plain[i, :, h, w] * layer.weight[row] + layer.bias[row]
    torch.testing.assert_close(layer(x, mask), expected, rtol=1e-5, atol=1e-6)
    inside = mask.float()
    leaking = plain * inside * weight[0] + bias[0] + plain * (1 - inside) * weight[1] + bias[1]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(leaking, expected, rtol=1e-3, atol=1e-3)


def test_the_mask_is_averaged_over_the_area_of_a_position() -> None:
    """A position is inside where half of its pixels are; the nearest pixel by itself would decide otherwise."""
    x, _ = example(1, (2, 2))
    pixels = torch.zeros(1, 1, 4, 4)
    pixels[0, 0, 0, :2] = 1  # half of the first position
    pixels[0, 0, 0, 2] = 1  # a quarter of the second
    pixels[0, 0, 2:, :2] = 1  # all of the third
    expected = torch.tensor([[[[True, False], [True, False]]]])
    layer = randomize(RegionNorm(CHANNELS)).eval()
    torch.testing.assert_close(layer(x, pixels), layer(x, expected))
    torch.testing.assert_close(layer(x, pixels.bool()), layer(x, expected))
    nearest = functional.interpolate(pixels, size=(2, 2), mode="nearest").bool()
    assert not torch.equal(nearest, expected)


@pytest.mark.parametrize("pooled", [True, False])
def test_empty_and_single_regions_stay_finite(pooled: bool) -> None:
    x, mask = example()
    mask[0], mask[1] = False, True
    mask[1, 0, 0, 0] = False
    x = x.requires_grad_(True)
    y = standardize_regions(x, mask, pooled)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    if not pooled:
        assert (y[1, :, 0, 0] == 0).all()


def test_gradients_are_those_of_finite_differences() -> None:
    x, mask = example(2, (3, 2))
    for pooled in (True, False):
        assert torch.autograd.gradcheck(
            lambda maps, pooled=pooled: standardize_regions(maps, mask, pooled), x.double().requires_grad_(True)
        )


def test_the_mask_comes_from_given_and_stays_with_its_image() -> None:
    x, mask = example()
    layer = randomize(RegionNorm(CHANNELS)).eval()
    got = Given(layer)(x, torch.tensor([1, 0, 1]), mask=mask)
    torch.testing.assert_close(got, layer(x, mask))


def test_a_missing_or_misshapen_mask_is_an_error() -> None:
    x, mask = example()
    with pytest.raises(ConditionError, match=r"Given\(network\)\(images, mask=\.\.\.\)"):
        Given(RegionNorm(CHANNELS))(x, 0)
    for wrong in (mask[:1], mask[:, 0], mask.expand(-1, CHANNELS, -1, -1)):
        with pytest.raises(ConditionError, match=r"expected \(3, 1, H, W\)"):
            RegionNorm(CHANNELS)(x, wrong)


def learned(threshold: float = 0.5) -> LearnedRegionNorm:
    torch.manual_seed(0)
    layer = LearnedRegionNorm(threshold)
    torch.nn.init.normal_(layer.affine.weight)
    torch.nn.init.normal_(layer.affine.bias)
    return layer.eval()


def test_the_learned_layer_masks_scales_and_shifts_by_its_importance() -> None:
    """The formula, step by step; with other thresholds the regions are others."""
    layer, (x, _) = learned(), example()
    importance = functional.conv2d(
        torch.stack([x.mean(1), x.max(1).values], 1), layer.importance.weight, padding=3
    ).sigmoid()
    mask = importance >= 0.5
    assert mask.any()
    assert not mask.all()
    scale = functional.conv2d(importance, layer.affine.weight[:1], layer.affine.bias[:1], padding=3)
    shift = functional.conv2d(importance, layer.affine.weight[1:], layer.affine.bias[1:], padding=3)
    expected = standardize_regions(x, mask) * (1 + scale) + shift
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    layer.threshold = 0.8
    with pytest.raises(AssertionError):
        torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-3)


def test_the_learned_layer_starts_as_a_region_norm_and_learns_its_mask() -> None:
    """The importance gets its gradient through the affine, once that has left zero."""
    x, _ = example()
    fresh = LearnedRegionNorm(threshold=0.0).eval()
    torch.testing.assert_close(fresh(x), functional.instance_norm(x), rtol=1e-5, atol=1e-5)
    layer = learned()
    layer(x).square().sum().backward()
    assert layer.importance.weight.grad.abs().max() > 0


def test_the_learned_layer_does_not_depend_on_other_images_in_evaluation() -> None:
    layer, (x, _) = learned(), example()
    single = torch.cat([layer(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(layer(x), single, rtol=1e-5, atol=1e-5)
    assert (layer.train()(x) - single).abs().max() > 0.1


def test_layers_compile_to_one_graph_and_run_under_autocast() -> None:
    x, mask = example()
    network = Given(randomize(RegionNorm(CHANNELS))).eval()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, mask=mask), network(x, mask=mask))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for layer in (network.model, learned()):
            given_mask = {"mask": mask} if isinstance(layer, RegionNorm) else {}
            assert layer(x.bfloat16(), **given_mask).dtype == torch.bfloat16
