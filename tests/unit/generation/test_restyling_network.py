"""Restyling networks give maps the moments that their method promises, and no more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reid.errors import ConfigError, WeightsError
from reid.generation.camera_style import measure_style
from reid.generation.gram_style import gram_loss, optimize_gram, rectify
from reid.generation.restyle_plan import GRAM, METHODS, MOMENTS
from reid.generation.restyling_network import CHANGES, RestylingNetwork, stem_of
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm.specialised.style import gram

STYLES = 3


def make_network(method: str, stride: int = 2) -> RestylingNetwork:
    torch.manual_seed(0)
    network = RestylingNetwork(nn.Conv2d(3, 6, 3, stride, 1, bias=False), method, STYLES)
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(STYLES, 6, 6, generator=generator)
    maps = [torch.einsum("ij,bjhw->bihw", one, torch.randn(4, 6, 8, 4, generator=generator)) + 2 for one in mixing]
    network.known.set([measure_style([own]) for own in maps])
    return network.eval()


def images(count: int = 4, height: int = 16, width: int = 8) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(2))


STYLE = torch.tensor([2, 0, 1, 0])


def covariances(maps: Tensor) -> Tensor:
    return torch.stack([torch.cov(one.flatten(1).double(), correction=0) for one in maps])


def test_every_method_has_a_description_and_every_change_is_a_method() -> None:
    assert {*CHANGES, MOMENTS, GRAM} == set(METHODS)


@pytest.mark.parametrize("method", ["adain", "wct"])
@torch.no_grad()
def test_maps_get_the_moments_of_the_target(method: str) -> None:
    network = make_network(method)
    _, changed = network(images(), STYLE)
    known = network.known
    np.testing.assert_allclose(changed.mean((2, 3)), known.mean[STYLE], atol=1e-4)
    np.testing.assert_allclose(changed.std((2, 3), correction=0), known.deviation()[STYLE], rtol=1e-3)
    error = (covariances(changed) - known.within[STYLE]).abs().max() / known.within.abs().max()
    if method == "wct":
        assert float(error) < 1e-4
    else:
        assert float(error) > 0.05  # AdaIN promises no covariances


@torch.no_grad()
def test_conditional_maps_get_the_learned_moments() -> None:
    network = make_network("conditional")
    affine = network.change.affine
    affine.weight.copy_(torch.rand(STYLES, 6) + 0.5)
    affine.bias.copy_(torch.randn(STYLES, 6))
    _, changed = network(images(), STYLE)
    np.testing.assert_allclose(changed.mean((2, 3)), affine.bias[STYLE], atol=1e-5)
    np.testing.assert_allclose(changed.std((2, 3), correction=0), affine.weight[STYLE], rtol=1e-3)


@torch.no_grad()
def test_dynamic_maps_depend_on_the_style_through_its_moments() -> None:
    network = make_network("dynamic")
    predict = network.change.norm.predict
    predict.weight.normal_(std=0.1)
    _, changed = network(images(), STYLE)
    others = network(images(), STYLE.flip(0))[1]
    assert not torch.allclose(changed, others)
    assert torch.allclose(changed[1:2], network(images()[1:2], STYLE[1:2])[1], atol=1e-5)  # whatever else is there
    known = network.known
    known.mean[0], known.within[0] = known.mean[2], known.within[2]  # two cameras of the same moments
    same = network(images(), torch.tensor([0, 0, 0, 0]))[1]
    assert torch.allclose(same, network(images(), torch.tensor([2, 2, 2, 2]))[1], atol=1e-6)


@pytest.mark.parametrize("method", CHANGES)
@pytest.mark.parametrize(("stride", "height", "width"), [(1, 16, 8), (2, 16, 8), (2, 17, 9), (4, 18, 10)])
@torch.no_grad()
def test_images_keep_their_size(method: str, stride: int, height: int, width: int) -> None:
    network = make_network(method, stride)
    restyled, _ = network(images(4, height, width), STYLE)
    assert restyled.shape == (4, 3, height, width)


def test_only_the_decoder_and_the_change_learn() -> None:
    names = {name.split(".")[0] for name, p in make_network("conditional").named_parameters() if p.requires_grad}
    assert names == {"change", "decoder"}
    assert make_network("adain").stem.weight.requires_grad is False


def test_other_steps_are_refused() -> None:
    with pytest.raises(ConfigError):
        RestylingNetwork(nn.Conv2d(3, 6, 3, 3), "adain", STYLES)


@pytest.mark.parametrize("backbone", ["osnet_x0_25", "resnet18_x0_25", "mobilenet_v2"])
def test_the_stem_is_a_copy_of_the_first_convolution(backbone: str) -> None:
    network = Embedder(NetworkSpec(backbone))
    stem = stem_of(network, "w")
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert stem is not first
    assert torch.equal(stem.weight, first.weight)


def test_a_network_without_a_stem_is_refused() -> None:
    with pytest.raises(WeightsError):
        stem_of(nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.LayerNorm(8)), "w")


# --- the optimization of Gram matrices ------------------------------------------------------------


def test_the_gram_loss_agrees_with_a_loop() -> None:
    maps, wanted = torch.randn(2, 4, 5, 3), torch.randn(4, 4)
    expected = []
    for one in maps:
        matrix = torch.zeros(4, 4)
        for row in range(5):
            for column in range(3):
                matrix += torch.outer(one[:, row, column], one[:, row, column]) / 15
        expected.append(float((matrix - wanted).square().sum() / wanted.square().sum()))
    assert gram_loss(maps, wanted).tolist() == pytest.approx(expected, rel=1e-4)
    shuffled = maps.flatten(2)[:, :, torch.randperm(15)].view(maps.shape)
    assert torch.allclose(gram_loss(maps, wanted), gram_loss(shuffled, wanted), rtol=1e-4)


def test_the_optimization_reaches_the_gram_matrix_of_the_style() -> None:
    network = make_network("adain")

    def encode(pixels: Tensor) -> Tensor:
        return rectify(network.encode(pixels))

    style = measure_style([encode(3 * images(6) - 1)])
    wanted = (style.within + style.mean[:, None] * style.mean).float()
    before = gram_loss(encode(images()), wanted)
    changed = optimize_gram(images(), encode, style, steps=60, content_weight=0.01)
    assert bool((gram_loss(encode(changed), wanted) < 0.3 * before).all())
    single = optimize_gram(images()[:1], encode, style, steps=60, content_weight=0.01)
    assert torch.allclose(single, changed[:1], atol=2e-2)
    bound = torch.full((3,), 0.5)
    bounded = optimize_gram(images(), encode, style, steps=3, low=-bound, high=bound)
    assert float(bounded.abs().max()) <= 0.5


def test_a_gram_matrix_without_rectified_maps_does_not_know_the_sign() -> None:
    maps = torch.randn(1, 4, 5, 3) + 1
    assert torch.allclose(gram(maps), gram(-maps))
    assert not torch.allclose(gram(rectify(maps)), gram(rectify(-maps)))
    assert torch.equal(rectify(maps)[:, :4] - rectify(maps)[:, 4:], maps)
