"""Generators and discriminators: shapes, what a norm does not change at first, mixing of styles, bounded weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from reid.errors import ConfigError
from reid.generation.generator_networks import (
    DISCRIMINATORS,
    GENERATORS,
    LATENT,
    PlainGenerator,
    StyleGenerator,
    build_discriminator,
    build_generator,
    draw,
    normalize_latents,
    singular_values,
)

SMALL = (8, 6, 4, 4)


def built(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_generator(name, SMALL)


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_draw_crops_of_the_size(name: str) -> None:
    generator = built(name)
    images = draw(generator, torch.randn(5, LATENT))
    assert images.shape == (5, 3, 64, 32)
    assert images.abs().max() <= 1
    images.sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())


def test_self_modulation_starts_as_batch_normalization() -> None:
    modulated = built("self-modulation")
    assert isinstance(modulated, PlainGenerator)
    plain = PlainGenerator(lambda width: nn.BatchNorm2d(width, eps=modulated.norms[0].norm.eps, affine=False), SMALL)
    state = {name: value for name, value in modulated.state_dict().items() if ".affine." not in name}
    plain.load_state_dict({name.replace(".norm.", "."): value for name, value in state.items()}, strict=False)
    latents = torch.randn(6, LATENT)
    assert torch.allclose(draw(modulated, latents), draw(plain, latents), atol=1e-5)
    nn.init.normal_(modulated.norms[0].affine.predict.weight)
    assert not torch.allclose(draw(modulated, latents), draw(plain, latents), atol=1e-2)


def styled() -> StyleGenerator:
    generator = built("style")
    assert isinstance(generator, StyleGenerator)
    for layer in generator.styles:
        nn.init.normal_(layer.affine.predict.weight, std=0.5)
    return generator.eval()


@torch.no_grad()
def test_the_layer_of_styles_is_noise_bias_leaky_relu_norm_style() -> None:
    generator, latents = styled(), torch.randn(2, LATENT)
    for noise, bias in zip(generator.noise, generator.biases, strict=True):
        nn.init.normal_(noise)
        nn.init.normal_(bias)
    torch.manual_seed(7)
    found = draw(generator, latents)
    torch.manual_seed(7)
    style = generator.mapping(normalize_latents(latents))
    x = generator.constant.expand(2, -1, -1, -1)
    for number in range(4):
        x = x if number == 0 else x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = generator.convolutions[number](x)
        x = x + generator.noise[number] * torch.randn(2, 1, *x.shape[2:])
        x = functional.leaky_relu(x + generator.biases[number], 0.2)
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
        scale, shift = generator.styles[number].affine.predict(style).chunk(2, 1)
        x = (x - mean) / (var + 1e-8).sqrt() * (1 + scale[..., None, None]) + shift[..., None, None]
    assert torch.allclose(found, generator.last(x).tanh(), atol=1e-5)


@torch.no_grad()
def test_mixing_at_the_ends_takes_all_styles_of_one() -> None:
    generator, one, other = styled(), torch.randn(3, LATENT), torch.randn(3, LATENT)
    assert torch.equal(generator.mix(one, other, generator.layers), draw(generator, one))
    assert torch.equal(generator.mix(one, other, 0), draw(generator, other))
    middle = generator.mix(one, other, 2)
    assert not torch.allclose(middle, draw(generator, one), atol=1e-3)
    assert not torch.allclose(middle, draw(generator, other), atol=1e-3)


@pytest.mark.parametrize("name", ["batch", "style"])
@torch.no_grad()
def test_other_latent_vectors_draw_other_images_from_the_start(name: str) -> None:
    torch.manual_seed(0)
    one, other = draw(build_generator(name), torch.randn(2, LATENT))
    assert (one - other).abs().mean() > 0.05


def test_latents_have_a_mean_square_of_1() -> None:
    latents = normalize_latents(7 * torch.randn(4, LATENT))
    assert torch.allclose(latents.square().mean(1), torch.ones(4), atol=1e-5)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_weights_of_discriminators_are_what_their_name_promises(name: str) -> None:
    torch.manual_seed(0)
    discriminator = build_discriminator(name, (4, 8, 8, 16))
    with torch.no_grad():
        for layer in discriminator.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                original = layer.parametrizations.weight.original if name != "plain" else layer.weight
                original.mul_(10)  # as a training may do
    for _ in range(40):
        assert discriminator(torch.randn(2, 3, 64, 32)).shape == (2, 1)
    values = singular_values(discriminator)
    assert len(values) == 5
    largest, smallest = zip(*values, strict=True)
    if name == "plain":
        assert min(largest) > 3
    elif name == "spectral":
        assert max(abs(value - 1) for value in largest) < 0.02
    else:
        assert max(largest) <= 1 + 1e-4
        assert min(smallest) > 0.25
    again = singular_values(discriminator)
    assert again == values  # looking changes nothing


def test_unknown_names_are_told() -> None:
    with pytest.raises(ConfigError, match="style"):
        build_generator("stile")
    with pytest.raises(ConfigError, match="spectral"):
        build_discriminator("spectal")
