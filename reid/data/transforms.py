"""From a picture to the numbers a network reads: one transform to train, one to evaluate.

The evaluation transform is saved with the weights.  The training transform draws its random
numbers for a whole batch at once and applies them to it; neither knows labels or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reid.errors import ConfigError, DataError, unknown_name

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
LUMA: Triple = (0.299, 0.587, 0.114)  # ITU-R BT.601: the grey of Pillow and torchvision

_IMAGES_AT_ONCE = 16  # small enough to stay in the cache: 5 times quicker than a batch of 96 in one go


@dataclass(frozen=True)
class EvaluationTransform:
    """Resize to (height, width) pixels, then (value / 255 - mean) / std for each of R, G, B.

    ``flip``: a picture and its mirror image are embedded, and the mean of both vectors stands for it.
    """

    height: int = 256
    width: int = 128
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    interpolation: str = "bilinear"
    flip: bool = False

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ConfigError(f"transform: expected height and width of at least 1, got {self.height} x {self.width}")
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(f"transform: {unknown_name('interpolation', self.interpolation, INTERPOLATIONS)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise ConfigError(f"transform: expected three finite numbers for {name}, got {values}")
        if min(self.std) <= 0:
            raise ConfigError(f"transform: expected a std above 0, got {self.std}")

    def resize(self, image: Image.Image) -> Tensor:
        """An RGB picture as uint8 (3, height, width)."""
        size = (self.width, self.height)
        if image.size != size:
            image = image.resize(size, INTERPOLATIONS[self.interpolation])
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)

    def normalise(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), uint8 or float32 in 0..255, as the network's float32 (B, 3, H, W)."""
        # One pass instead of three: x / (255 std) - mean / std.
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        scale, shift = 1 / (255 * std), mean / std
        return images.to(torch.float32, copy=True).mul_(scale[:, None, None]).sub_(shift[:, None, None])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, fit for JSON; without ``flip`` where it is not done, as in older files."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return values if self.flip else {key: value for key, value in values.items() if key != "flip"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvaluationTransform:
        """The transform whose :meth:`to_dict` is ``values``; absent keys take their defaults."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"transform: {unknown_name('key', key, known)}")
        given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**given)


@dataclass(frozen=True)
class Draw:
    """The random numbers of one batch of B images; row i is image i's.

    ``flip`` (B,) bool; ``top``, ``left`` (B,) int64 in 0..2*pad: corner of the crop in the padded
    image; ``brightness``, ``contrast``, ``saturation`` (B,) and ``gains`` (B, 3) float64 factors,
    saturation 0 being grey; ``box`` (B, 4) int64 top, bottom, left, right (ends excluded) of the
    erased rectangle, all 0 where nothing is erased.
    """

    flip: Tensor
    top: Tensor
    left: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    gains: Tensor
    box: Tensor


@dataclass(frozen=True)
class TrainTransform:
    """Random flip, pad and crop, colours and erasing, each image with its own draw.

    ``flip``, ``grey`` and ``erase`` are probabilities.  ``pad`` pixels are added at every side
    before a crop of the old size is cut out.  ``brightness``, ``contrast``, ``saturation`` and
    ``gain`` are half-widths j: a factor is drawn from 1-j..1+j; ``gain`` is drawn for each of R,
    G and B (colour temperature).  Erasing (Zhong et al., Random Erasing, AAAI 2020) covers a
    share ``erase_area`` of the image with the colour ``erase_colour`` (0..255), the rectangle's
    height over width being in ``erase_aspect``..1/``erase_aspect``.
    """

    flip: float = 0.5
    pad: int = 5
    brightness: float = 0.2
    contrast: float = 0.15
    saturation: float = 0.2
    gain: float = 0.1
    grey: float = 0.05
    erase: float = 0.5
    erase_area: tuple[float, float] = (0.02, 0.3)
    erase_aspect: float = 0.3
    erase_colour: Triple = (123.675, 116.28, 103.53)

    def __post_init__(self) -> None:
        for name in ("flip", "brightness", "contrast", "saturation", "gain", "grey", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augmentation: expected {name} in 0..1, got {getattr(self, name)}")
        if self.pad < 0:
            raise ConfigError(f"augmentation: expected pad of at least 0 pixels, got {self.pad}")
        low, high = self.erase_area
        if not 0 < low <= high < 1 or not 0 < self.erase_aspect <= 1:
            raise ConfigError(
                f"augmentation: expected 0 < erase_area < 1 (low, high) and 0 < erase_aspect <= 1, "
                f"got {self.erase_area} and {self.erase_aspect}"
            )

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 images (B, 3, H, W) as float32 (B, 3, H, W) in 0..255, not normalised yet."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise DataError(f"augmentation: expected uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        return self.apply(images, self.draw(images.shape, generator))

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Draw:
        """Random numbers for images of ``shape`` (B, 3, H, W); as many whatever comes out of them."""
        count, _, height, width = shape
        uniform = torch.rand((count, 15), generator=generator, dtype=torch.float64)
        column = iter(uniform.unbind(1))
        flip = next(column) < self.flip
        top, left = ((next(column) * (2 * self.pad + 1)).long() for _ in range(2))
        brightness = _factor(next(column), self.brightness)
        contrast = _factor(next(column), self.contrast)
        saturation = _factor(next(column), self.saturation)
        saturation = torch.where(next(column) < self.grey, 0.0, saturation)
        gains = _factor(torch.stack([next(column) for _ in range(3)], 1), self.gain)
        box = self._boxes(torch.stack(list(column), 1), height, width)
        return Draw(flip, top, left, brightness, contrast, saturation, gains, box)

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """The drawn changes: crop, flip, colours, erasing, in this order.

        Colours: each of R, G, B times its gain; then mixed with the pixel's grey by saturation;
        then with the mean grey of the picture as it came by contrast; then times brightness; cut
        to 0..255 once, at the end.  A picture without colour (infrared) stays without: its three
        channels take the mean of the three gains.
        """
        moved = self._move(images, draw)
        coloured = _recolour(moved, draw)
        colour = torch.tensor(self.erase_colour)[:, None, None]
        for image, (top, bottom, left, right) in zip(coloured, draw.box.tolist(), strict=True):
            if bottom > top:
                image[:, top:bottom, left:right] = colour  # few small writes: 5 times quicker than a mask
        return coloured

    def _move(self, images: Tensor, draw: Draw) -> Tensor:
        """Crop and flip at once: every pixel is fetched from its place in the padded image."""
        channels, height, width = images.shape[1:]
        padded = torch.nn.functional.pad(images, (self.pad,) * 4)
        columns = torch.arange(width)
        columns = torch.where(draw.flip[:, None], width - 1 - columns, columns) + draw.left[:, None]  # (B, W)
        rows = torch.arange(height) + draw.top[:, None]  # (B, H)
        places = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]  # (B, H, W)
        places = places.flatten(1)[:, None].expand(-1, channels, -1)  # (B, 3, HW)
        return padded.flatten(2).gather(2, places).view(images.shape)

    def _boxes(self, uniform: Tensor, height: int, width: int) -> Tensor:
        """Rectangles (B, 4) from uniform numbers (B, 5): whether, area, aspect, and where twice."""
        whether, area, aspect, down, across = uniform.unbind(1)
        low, high = self.erase_area
        pixels = (low + area * (high - low)) * height * width
        ratio = torch.exp((2 * aspect - 1) * math.log(1 / self.erase_aspect))
        # A rectangle that would stick out is cut at the image's side, not drawn again.
        rows = (pixels * ratio).sqrt().round().clamp(1, height)
        columns = (pixels / ratio).sqrt().round().clamp(1, width)
        top, left = (down * (height - rows + 1)).floor(), (across * (width - columns + 1)).floor()
        box = torch.stack([top, top + rows, left, left + columns], 1).long()
        return box * (whether < self.erase).long()[:, None]


def _factor(uniform: Tensor, half_width: float) -> Tensor:
    return 1 + half_width * (2 * uniform - 1)


def _recolour(images: Tensor, draw: Draw) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 (B, 3, H, W) in 0..255, as :meth:`TrainTransform.apply` says.

    All steps are linear, so a pixel p (3,) becomes ``matrix @ p + share * mean grey``.
    """
    colourless = (images[:, :1] == images[:, 1:]).flatten(1).all(1)  # (B,)
    gains = torch.where(colourless[:, None], draw.gains.mean(1, keepdim=True), draw.gains)
    matrix = _saturation_matrix(draw.saturation) @ torch.diag_embed(gains)
    matrix = (matrix * (draw.brightness * draw.contrast)[:, None, None]).float()  # (B, 3, 3)
    share = (draw.brightness * (1 - draw.contrast)).float()  # (B,)
    luma = torch.tensor(LUMA)
    result = torch.empty(images.shape, dtype=torch.float32)
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        rows = slice(start, start + _IMAGES_AT_ONCE)
        values = images[rows].flatten(2).float()  # (b, 3, HW)
        offset = (share[rows] * (values.mean(2) @ luma))[:, None, None]  # (b, 1, 1)
        torch.baddbmm(offset, matrix[rows], values, out=result[rows].flatten(2)).clamp_(0, 255)
    return result


def _saturation_matrix(saturation: Tensor) -> Tensor:
    """(B, 3, 3) float64: s * identity + (1 - s) * every channel becomes the grey; s (B,), 0 is grey."""
    identity = torch.eye(3, dtype=torch.float64)
    grey = torch.tensor(LUMA, dtype=torch.float64).expand(3, 3)
    return saturation[:, None, None] * identity + (1 - saturation)[:, None, None] * grey
