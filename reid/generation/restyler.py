"""A trained restyler: a restyling network with the names of its cameras and the image preparation, and its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError, DataError, ReidError, WeightsError, unknown_name
from reid.generation.camera_style import CameraStyle, measure_style
from reid.generation.gram_style import optimize_gram, rectify
from reid.generation.restyle_plan import GRAM
from reid.generation.restyling_network import KnownStyles, RestylingNetwork, stem_of
from reid.models.checkpoint import Checkpoint
from reid.models.weights.tensor_tables import load_strictly, read_table, table_of
from reid.norm import Profiles
from reid.norm.tensor_file import write_table
from reid.structured_text import parse_json

FORMAT = "reid-restyler-1"
LARGEST_SIZE = 4096  # of the first convolution, which a file describes
BATCH = 64
_STEM = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True, eq=False)
class Restyler:
    """A network that restyles crops, ready for use.

    Attributes:
        network: The restyling network.
        method: A name of :data:`~reid.generation.restyling_network.CHANGES`, or "gram".
        styles: The names of the styles in the order of their indices, such as "person/visible/a3"; see
            :func:`~reid.generation.restyle_plan.style_name`.
        transform: The image preparation.
        extra: Free text that is kept beside the weights.
    """

    network: RestylingNetwork
    method: str
    styles: tuple[str, ...]
    transform: EvaluationTransform
    extra: dict[str, str]

    @torch.no_grad()
    def restyle(self, crops: Tensor, style: str) -> Tensor:
        """Restyle crops.

        Args:
            crops: Crops (B, 3, H, W) uint8, in the size of ``transform``.
            style: The name of the target's style.

        Returns:
            (B, 3, H, W) uint8.

        Raises:
            DataError: The style is unknown.
        """
        if style not in self.styles:
            raise DataError(unknown_name("style", style, self.styles))
        index = self.styles.index(style)
        images = self.transform.normalise(crops)
        if self.method == GRAM:
            low, high = self.transform.normalise(torch.tensor([0, 255]).view(2, 1, 1, 1).expand(2, 3, 1, 1))[:, :, 0, 0]
            with torch.enable_grad():
                target = self.network.known.style(index)
                images = optimize_gram(
                    images, lambda pixels: rectify(self.network.encode(pixels)), target, low=low, high=high
                )
        else:
            images, _ = self.network(images, torch.full((len(images),), index))
        return self.to_pixels(images)

    def to_pixels(self, images: Tensor) -> Tensor:
        """Turn normalized images (B, 3, H, W) into pixels, rounded and clipped to uint8."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.transform.mean, self.transform.std))
        return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def with_profile(self, profiles: Profiles, domain: str, style: str, layer: str) -> Restyler:
        """Take a style from the profile of a camera, in place of one that was measured on crops.

        A profile holds the variances of all pixels of a camera and no covariances.

        Args:
            profiles: Profiles of the network whose stem this restyler has.
            domain: The domain in the profiles.
            style: The name of the style, known or new.
            layer: The normalization layer behind the stem.

        Raises:
            DataError: The profiles do not have the domain.
            ConfigError: The method needs more than the profile holds.
        """
        if self.method != "adain":
            raise ConfigError(f"--profiles: a profile holds means and variances, which adain needs, got {self.method}")
        found = profiles.select([domain])
        names = self.styles if style in self.styles else (*self.styles, style)
        styles = [self.network.known.style(index) for index in range(len(self.styles))]
        var = found.var[layer][0].double()
        taken = CameraStyle(found.mean[layer][0].double(), var.diag(), torch.zeros_like(var.diag()), found.images[0])
        row = names.index(style)
        styles[row : row + 1] = [taken]
        network = RestylingNetwork(self.network.stem, self.method, len(names))
        network.decoder.load_state_dict(self.network.decoder.state_dict())
        network.known.set(styles)
        return replace(self, network=network.eval(), styles=names)

    def save(self, path: Path) -> None:
        """Write the restyler to a safetensors file; WeightsError where it cannot be written."""
        stem = {name: getattr(self.network.stem, name) for name in _STEM}
        settings = {
            "method": self.method,
            "styles": self.styles,
            "transform": self.transform.to_dict(),
            "stem": {**stem, "bias": self.network.stem.bias is not None},
        }
        metadata = {**self.extra, "format": FORMAT, "restyler": json.dumps(settings)}
        write_table(path, table_of(self.network), metadata)


def load_restyler(path: Path) -> Restyler:
    """Load a restyler that :meth:`Restyler.save` wrote.

    Raises:
        WeightsError: The file is missing, damaged, or something else.
    """
    tensors, metadata = read_table(path)
    if metadata.get("format") != FORMAT:
        raise WeightsError(f'{path}: expected a restyler that "reid restyle" wrote, got other weights')
    try:
        settings = parse_json(metadata["restyler"])
        transform = EvaluationTransform.from_dict(settings["transform"])
        method, styles = str(settings["method"]), tuple(str(name) for name in settings["styles"])
        network = RestylingNetwork(_build_stem(settings["stem"]), method, len(styles))
    except (ValueError, KeyError, TypeError, RuntimeError, ReidError) as error:
        raise WeightsError(
            f"{path}: the header is damaged ({type(error).__name__}); train the restyler again"
        ) from error
    load_strictly(network, tensors, f"{path} into a restyler")
    extra = {key: text for key, text in metadata.items() if key not in ("format", "restyler")}
    return Restyler(network.eval(), method, styles, transform, extra)


def _build_stem(settings: dict[str, Any]) -> nn.Conv2d:
    sizes: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    numbers = [one for value in sizes.values() for one in (value if isinstance(value, tuple) else (value,))]
    if any(isinstance(one, int) and one > LARGEST_SIZE for one in numbers):
        raise ValueError(f"a size of more than {LARGEST_SIZE}")
    return nn.Conv2d(**sizes)


def gram_restyler(checkpoint: Checkpoint, crops: Sequence[tuple[str, Tensor]]) -> Restyler:
    """Make a restyler that optimizes pixels, from crops of each style.

    Args:
        checkpoint: The network whose stem is used.
        crops: The name of each style, and crops (N, 3, H, W) uint8 of it, in the size of the checkpoint.
    """
    network = RestylingNetwork(stem_of(checkpoint.network, checkpoint.source), "adain", len(crops)).eval()
    with torch.no_grad():
        maps = [network.encode(checkpoint.transform.normalise(images)) for _, images in crops]
    network.known = KnownStyles(len(crops), 2 * network.stem.out_channels)
    network.known.set([measure_style([rectify(one)]) for one in maps])
    return Restyler(network, GRAM, tuple(name for name, _ in crops), checkpoint.transform, {})


@torch.no_grad()
def measure_maps(network: RestylingNetwork, crops: Tensor, transform: EvaluationTransform) -> CameraStyle:
    """Measure the style of crops (N, 3, H, W) uint8 in the stem of a restyling network."""
    return measure_style(network.encode(transform.normalise(part)) for part in torch.split(crops, BATCH))
