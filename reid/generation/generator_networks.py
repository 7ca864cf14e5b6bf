"""One small stage of a generator and a discriminator at 64 x 32, in the variants whose normalization is compared.

The stage follows SNDCGAN at a size for a CPU: a latent vector becomes a map of 8 x 4, which three times doubles.  The
generator normalizes by batch normalization, by self-modulation (Chen et al. 2019) or by StyleGAN's AdaIN with a mapping
network, noise and style mixing (Karras et al. 2019).  The discriminator has plain weights, a spectral norm (Miyato et
al. 2018) or nearly orthogonal filters (ONI, Huang et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from reid.errors import ConfigError, unknown_name
from reid.norm import Given
from reid.norm.specialised.style import PredictedAffine, self_modulation, style_modulation
from reid.norm.specialised.weight_normalization import ONI, WEIGHTED, normalize_weights

LATENT = 32  # numbers of a latent vector
STYLE = 64  # numbers of a style, which a mapping network makes of a latent vector
CHANNELS = (64, 48, 32, 16)  # of the generator at 8 x 4, 16 x 8, 32 x 16 and 64 x 32
DISCRIMINATOR_CHANNELS = (16, 32, 64, 128)
START = (8, 4)
ONI_ITERATIONS, ONI_GAIN = 2, 1.0  # as in the authors' runs with GANs
Channels = tuple[int, int, int, int]


class PlainGenerator(nn.Module):
    """A generator whose norms stand before the convolutions: batch normalization, or self-modulation.

    Args:
        build_norm: Builds the norm of a number of channels.
        channels: The channels at each of the four sizes.
    """

    def __init__(self, build_norm: Callable[[int], nn.Module], channels: Channels = CHANNELS) -> None:
        super().__init__()
        self.channels = channels
        self.first = nn.Linear(LATENT, channels[0] * START[0] * START[1])
        self.norms = nn.ModuleList(build_norm(width) for width in channels)
        pairs = zip(channels, (*channels[1:], 3), strict=True)
        self.convolutions = nn.ModuleList(nn.Conv2d(inside, out, 3, padding=1) for inside, out in pairs)

    def forward(self, latents: Tensor) -> Tensor:
        """Draw images (B, 3, 64, 32) in -1..1 of latent vectors (B, 32); the condition has them as its style."""
        x = self.first(latents).view(-1, self.channels[0], *START)
        for number, (norm, convolution) in enumerate(zip(self.norms, self.convolutions, strict=True)):
            x = functional.relu(norm(x))
            if number < len(self.norms) - 1:
                x = functional.interpolate(x, scale_factor=2.0)
            x = convolution(x)
        y: Tensor = x.tanh()
        return y


class StyleGenerator(nn.Module):
    """A generator of styles: a learned constant, and in every layer noise, bias, leaky ReLU and AdaIN, in this order.

    Args:
        channels: The channels at each of the four sizes.
    """

    def __init__(self, channels: Channels = CHANNELS) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, channels[0], *START))
        self.mapping = nn.Sequential(
            nn.Linear(LATENT, STYLE), nn.LeakyReLU(0.2), nn.Linear(STYLE, STYLE), nn.LeakyReLU(0.2)
        )
        inputs = (channels[0], *channels[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inside, out, 3, padding=1, bias=False) for inside, out in zip(inputs, channels, strict=True)
        )
        self.noise = nn.ParameterList(torch.zeros(1, width, 1, 1) for width in channels)
        self.biases = nn.ParameterList(torch.zeros(1, width, 1, 1) for width in channels)
        self.styles = nn.ModuleList(style_modulation(width, STYLE) for width in channels)
        for layer in self.modules():
            if isinstance(layer, PredictedAffine):  # starts with zeros, with which all latent vectors draw one image
                nn.init.normal_(layer.predict.weight, std=STYLE**-0.5)
        self.last = nn.Conv2d(channels[-1], 3, 1)

    @property
    def layers(self) -> int:
        """The number of layers that a style reaches."""
        return len(self.styles)

    def forward(self, latents: Tensor) -> Tensor:
        """Draw images (B, 3, 64, 32) in -1..1 of latent vectors (B, 32)."""
        return self.draw([self.mapping(normalize_latents(latents))] * self.layers)

    def mix(self, coarse: Tensor, fine: Tensor, crossover: int) -> Tensor:
        """Draw images with the styles of ``coarse`` below the layer ``crossover`` and those of ``fine`` from it on.

        Args:
            coarse: Latent vectors (B, 32): pose and layout.
            fine: Latent vectors (B, 32): colours.
            crossover: 0 takes all styles of ``fine``, the number of layers all of ``coarse``.
        """
        first, second = self.mapping(normalize_latents(coarse)), self.mapping(normalize_latents(fine))
        return self.draw([first if number < crossover else second for number in range(self.layers)])

    def draw(self, styles: list[Tensor]) -> Tensor:
        """Draw images of one style (B, 64) for each layer.  Noise is drawn anew with every call."""
        x = self.constant.expand(len(styles[0]), -1, -1, -1)
        for number, style in enumerate(styles):
            if number:
                x = functional.interpolate(x, scale_factor=2.0)
            x = self.convolutions[number](x)
            x = x + self.noise[number] * torch.randn_like(x[:, :1])
            x = self.styles[number](functional.leaky_relu(x + self.biases[number], 0.2), style)
        y: Tensor = self.last(x).tanh()
        return y


def normalize_latents(latents: Tensor) -> Tensor:
    """Scale latent vectors (B, 32) to a mean square of 1, as StyleGAN does before its mapping network."""
    return latents * torch.rsqrt(latents.square().mean(1, keepdim=True) + 1e-8)


GENERATORS: dict[str, Callable[[Channels], nn.Module]] = {
    "batch": lambda channels: PlainGenerator(nn.BatchNorm2d, channels),
    "self-modulation": lambda channels: PlainGenerator(lambda width: self_modulation(width, LATENT), channels),
    "style": StyleGenerator,
}


def _with_oni(network: nn.Module) -> nn.Module:
    for layer in [module for module in network.modules() if isinstance(module, WEIGHTED)]:
        parametrize.register_parametrization(layer, "weight", ONI(ONI_ITERATIONS, gain=ONI_GAIN))
    return network


DISCRIMINATORS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda network: network,
    "spectral": lambda network: normalize_weights(network, "spectral"),
    "oni": _with_oni,
}


def build_generator(name: str, channels: Channels = CHANNELS) -> nn.Module:
    """Build a generator.

    Args:
        name: A key of ``GENERATORS``.
        channels: Its channels at the four sizes.

    Raises:
        ConfigError: The name is not known.

    Example:
        >>> draw(build_generator("style"), torch.randn(2, LATENT)).shape
        torch.Size([2, 3, 64, 32])
    """
    if name not in GENERATORS:
        raise ConfigError(unknown_name("generator", name, GENERATORS))
    return GENERATORS[name](channels)


def build_discriminator(name: str, channels: Channels = DISCRIMINATOR_CHANNELS) -> nn.Module:
    """Build a discriminator: images (B, 3, 64, 32) -> logits (B, 1).

    Args:
        name: A key of ``DISCRIMINATORS``.
        channels: Its channels at 32 x 16, 16 x 8, 8 x 4 and 4 x 2.

    Raises:
        ConfigError: The name is not known.
    """
    if name not in DISCRIMINATORS:
        raise ConfigError(unknown_name("discriminator", name, DISCRIMINATORS))
    layers: list[nn.Module] = []
    for inside, out in zip((3, *channels[:-1]), channels, strict=True):
        layers += [nn.Conv2d(inside, out, 4, stride=2, padding=1), nn.LeakyReLU(0.1)]
    return DISCRIMINATORS[name](nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * 8, 1)))


def draw(generator: nn.Module, latents: Tensor) -> Tensor:
    """Draw images (B, 3, 64, 32) in -1..1 of latent vectors (B, 32), with any generator."""
    images: Tensor = Given(generator)(latents, style=latents)
    return images


@torch.no_grad()
def singular_values(network: nn.Module) -> list[tuple[float, float]]:
    """Return the largest and the smallest singular value of each layer's weight as the matrix (out, in * k * k).

    The network is put into evaluation mode, because a spectral norm in training changes with every look.
    """
    network.eval()
    values = []
    for layer in network.modules():
        if isinstance(layer, WEIGHTED):
            found = torch.linalg.svdvals(layer.weight.detach().flatten(1).double())
            values.append((float(found[0]), float(found[-1])))
    return values
