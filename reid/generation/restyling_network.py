"""Networks that restyle crops: the stem of a frozen network, a change of its maps, and a decoder back to pixels.

The change of the maps is what the published methods differ in. Its result has the moments of the target camera; the
decoder then makes an image of which the stem computes nearly these maps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from reid.errors import ConfigError, WeightsError
from reid.generation.camera_style import CameraStyle
from reid.norm.convert import norm_layers
from reid.norm.specialised.style import (
    DynamicInstanceNorm,
    InstanceNorm,
    Styled,
    TableAffine,
    adain,
    whiten_and_colour,
)

WIDTH = 32  # channels of the decoder


class KnownStyles(nn.Module):
    """The measured styles of K cameras, as buffers of a network."""

    def __init__(self, styles: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(styles, channels, dtype=torch.float64))
        self.register_buffer("within", torch.eye(channels, dtype=torch.float64).repeat(styles, 1, 1))
        self.mean: Tensor
        self.within: Tensor

    def set(self, styles: Sequence[CameraStyle]) -> None:
        """Keep measured styles, in the order of their indices."""
        self.mean.copy_(torch.stack([style.mean for style in styles]))
        self.within.copy_(torch.stack([style.within for style in styles]))

    def style(self, index: int) -> CameraStyle:
        """Return the style of a camera, without the part between crops."""
        return CameraStyle(self.mean[index], self.within[index], torch.zeros_like(self.within[index]), 0)

    def deviation(self) -> Tensor:
        """Return the standard deviations (K, C) inside a crop."""
        return self.within.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()

    def maps(self, style: Tensor) -> Tensor:
        """Return for each of the styles (B,) int64 a map (B, C, 1, 2C) float64 with its moments."""
        found = {index: self.style(index).as_map() for index in set(style.tolist())}
        return torch.cat([found[index] for index in style.tolist()])

    def vectors(self, style: Tensor) -> Tensor:
        """Return the style vectors (B, 2C) of styles (B,), of about unit length: the moments, standardized over all."""
        every = torch.cat([self.mean, self.deviation()], 1)
        scale = every.std(0, correction=0).clamp_min(1e-6)
        vectors: Tensor = ((every - every.mean(0)) / scale)[style] / every.shape[1] ** 0.5
        return vectors


class Adain(nn.Module):
    """Adaptive instance normalization (Huang & Belongie 2017): the means and variances of the target camera."""

    def __init__(self, known: KnownStyles) -> None:
        super().__init__()
        self.known = known

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        """Change maps (B, C, H, W) to the styles (B,) int64; the result has exactly their means and variances."""
        return adain(maps, self.known.maps(style).to(maps.dtype))


class WhitenAndColour(nn.Module):
    """The whitening and colouring transform (Li et al. 2017): the means and the covariance of the target camera."""

    def __init__(self, known: KnownStyles) -> None:
        super().__init__()
        self.known = known

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        """Change maps (B, C, H, W); the result has the covariance exactly where the maps have full rank."""
        return whiten_and_colour(maps, self.known.maps(style))


class Conditional(nn.Module):
    """Conditional instance normalization (Dumoulin et al. 2017): a learned scale and shift for each camera.

    They start as the measured deviation and mean of the camera.
    """

    def __init__(self, known: KnownStyles) -> None:
        super().__init__()
        self.known = known
        self.affine = TableAffine(*known.mean.shape)
        self.norm = Styled(InstanceNorm(), self.affine)

    @torch.no_grad()
    def start(self) -> None:
        """Copy the measured moments of the known styles into the table."""
        self.affine.weight.copy_(self.known.deviation())
        self.affine.bias.copy_(self.known.mean)

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        """Change maps (B, C, H, W); the result has the learned shift and scale as its moments."""
        changed: Tensor = self.norm(maps, style)
        return changed


class Dynamic(nn.Module):
    """Dynamic instance normalization (Jing et al. 2020): a 3x3 convolution predicted from the moments of the target.

    Its result is in units of the target's deviations, around the target's means. So it starts as AdaIN, and learns what
    a convolution does better.
    """

    def __init__(self, known: KnownStyles) -> None:
        super().__init__()
        self.known = known
        self.norm = DynamicInstanceNorm(known.mean.shape[1], 2 * known.mean.shape[1], kernel=3)

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        """Change maps (B, C, H, W); what moments the result has is learned, and nothing is promised."""
        mean, deviation = (table[style].to(maps.dtype) for table in (self.known.mean, self.known.deviation()))
        changed: Tensor = self.norm(maps, self.known.vectors(style).to(maps.dtype))
        return changed * deviation[:, :, None, None] + mean[:, :, None, None]


# A name -> the change of the maps for the known styles.
CHANGES: dict[str, Callable[[KnownStyles], nn.Module]] = {
    "adain": Adain,
    "wct": WhitenAndColour,
    "conditional": Conditional,
    "dynamic": Dynamic,
}


class RestylingNetwork(nn.Module):
    """Restyle normalized crops: stem, change of its maps, decoder.

    Args:
        stem: The first convolution of a network, see :func:`stem_of`; it is frozen.
        method: A name of :data:`CHANGES`.
        styles: K, the number of cameras.

    Raises:
        ConfigError: The stem shrinks images by other steps than 1, 2 or 4.
    """

    def __init__(self, stem: nn.Conv2d, method: str, styles: int) -> None:
        super().__init__()
        step, channels = stem.stride[0], stem.out_channels
        if stem.stride not in ((1, 1), (2, 2), (4, 4)):
            raise ConfigError(
                f"restyling: the first layer of this network moves in steps of {stem.stride}, expected 1, 2 or 4"
            )
        self.step = step
        self.stem = stem.requires_grad_(False)
        self.known = KnownStyles(styles, channels)
        self.change = CHANGES[method](self.known)
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, WIDTH, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(WIDTH, 3 * step * step, 3, padding=1, padding_mode="replicate"),
            nn.PixelShuffle(step),
        )

    def set_styles(self, styles: Sequence[CameraStyle]) -> None:
        """Keep the measured styles, from which a training starts."""
        self.known.set(styles)
        if isinstance(self.change, Conditional):
            self.change.start()

    def encode(self, images: Tensor) -> Tensor:
        """Compute the maps (B, C, h, w) of normalized images (B, 3, H, W)."""
        maps: Tensor = self.stem(images)
        return maps

    def decode(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Make normalized images (B, 3, H, W) of maps; ``size`` is (H, W)."""
        images: Tensor = self.decoder(maps)
        return images[:, :, : size[0], : size[1]]

    def forward(self, images: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        """Restyle images.

        Args:
            images: Normalized images (B, 3, H, W).
            style: The index of the target camera (B,) int64 of each image.

        Returns:
            The restyled images (B, 3, H, W), and the changed maps (B, C, h, w) that they were decoded from.
        """
        changed: Tensor = self.change(self.encode(images), style)
        return self.decode(changed, (images.shape[2], images.shape[3])), changed


def stem_of(network: nn.Module, source: str) -> nn.Conv2d:
    """Copy the first convolution of a network, whose output its first normalization layer sees.

    Args:
        network: A convolutional network with BatchNorm.
        source: Names the network in the message of an error.

    Raises:
        WeightsError: The network does not begin with a convolution and a normalization layer.
    """
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    _, channels = first_norm(network)
    if first is None or channels != first.out_channels or first.in_channels != 3:
        raise WeightsError(
            f"{source}: restyling needs a network that begins with a convolution and BatchNorm, such as a ResNet or"
            " OSNet; use --method moments, or other weights"
        )
    return copy.deepcopy(first)


def first_norm(network: nn.Module) -> tuple[str, int]:
    """Return the name of the first BatchNorm of a network, converted or not, and its channels; ("", 0) without one."""
    converted = norm_layers(network)
    for name, module in network.named_modules():
        if name in converted:
            return name, converted[name].channels
        if isinstance(module, nn.BatchNorm2d):
            return name, module.num_features
    return "", 0
