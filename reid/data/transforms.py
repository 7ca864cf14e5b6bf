"""Turn images into the input of a network: one transform for evaluation, one for training.

The evaluation transform is saved with the weights.  The training transform draws the random numbers of a whole batch at
once and then applies them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

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

_NORMALISED_AT_ONCE = 4  # images, which stay in the processor cache
_IMAGES_AT_ONCE = 16  # so few images stay in the processor cache: 5 times faster than a batch of 96 at once


@dataclass(frozen=True)
class EvaluationTransform:
    """Resize an image and scale its values to (value / 255 - mean) / std.

    Args:
        height: Height in pixels.
        width: Width in pixels.
        mean: Subtracted from R, G and B, in units of 0..1.
        std: Divides R, G and B, in units of 0..1.
        interpolation: A key of ``INTERPOLATIONS``.
        flip: Embed the image and its mirror image, and use the mean of the two vectors.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> transform = EvaluationTransform(height=4, width=2, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> pixels = transform.resize(Image.new("RGB", (20, 40), (255, 0, 0)))
        >>> transform.normalise(pixels[None])[0, :, 0, 0].tolist()
        [1.0, -1.0, -1.0]
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

    def resize(self, image: Image.Image, *, fast: bool = False) -> Tensor:
        """Resize an RGB image.

        Args:
            image: The image.
            fast: Resize bilinearly by the vector kernel of PyTorch, which takes less than half of the time.  It has
                the weights of Pillow in fewer digits, so that a few values in a thousand differ by 1.

        Returns:
            (3, height, width) uint8.
        """
        size = (self.width, self.height)
        if image.size != size and fast and self.interpolation == "bilinear":
            return self.resize_pixels(np.array(image))
        if image.size != size:
            image = image.resize(size, INTERPOLATIONS[self.interpolation])
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)

    def resize_pixels(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """Resize the pixels (H, W, 3) of an RGB image as :meth:`resize` does where it is fast."""
        image = torch.from_numpy(pixels).permute(2, 0, 1)  # (3, H, W), in memory (H, W, 3)
        if pixels.shape[:2] == (self.height, self.width):
            return image.contiguous()
        size = (self.height, self.width)
        return functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0].contiguous()

    def normalise(self, images: Tensor) -> Tensor:
        """Scale images (B, 3, H, W), uint8 or float32 in 0..255, to the network's input (B, 3, H, W) float32."""
        scale, shift = self.scale_and_shift()
        scaled = torch.empty_like(images, dtype=torch.float32)
        parts, targets = (torch.split(whole, _NORMALISED_AT_ONCE) for whole in (images, scaled))
        for part, target in zip(parts, targets, strict=True):
            target.copy_(part).mul_(scale[:, None, None]).sub_(shift[:, None, None])
        return scaled

    def prepare(self, images: Tensor) -> Tensor:
        """Normalise images (B, 3, H, W) that are uint8; those of float32 are normalised already."""
        return self.normalise(images) if images.dtype == torch.uint8 else images

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return (3,) and (3,) float32: a prepared value is scale * value - shift, which needs the fewest passes."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return 1 / (255 * std), mean / std

    def to_dict(self) -> dict[str, Any]:
        """Return numbers, strings and lists that JSON can hold; ``flip`` is left out when false, as in older files."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return values if self.flip else {key: value for key, value in values.items() if key != "flip"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvaluationTransform:
        """Build the transform that :meth:`to_dict` described; missing keys take their defaults."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"transform: {unknown_name('key', key, known)}")
        given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**given)


@dataclass(frozen=True)
class RandomNumbers:
    """The random numbers that decide how the B images of a batch are augmented.

    Args:
        flip: (B,) bool, whether the image is mirrored.
        top: (B,) int64 in 0..2*pad, top edge of the crop in the padded image.
        left: (B,) int64 in 0..2*pad, left edge of the crop in the padded image.
        brightness: (B,) float64 factor.
        contrast: (B,) float64 factor.
        saturation: (B,) float64 factor; 0 gives a grey image.
        gains: (B, 3) float64 factors of R, G and B.
        box: (B, 4) int64, top, bottom, left and right of the erased rectangle, the ends excluded; all 0 where nothing
            is erased.
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
    """Augment training images at random: flip, shift, colours and erasing.

    Args:
        flip: Probability that an image is mirrored.
        pad: Black pixels added at every side before a crop of the old size is cut out at random.
        brightness: Half-width j; the factor is drawn from 1-j..1+j.
        contrast: Half-width of the contrast factor.
        saturation: Half-width of the saturation factor.
        gain: Half-width of three factors, one each for R, G and B, which change the colour temperature.
        grey: Probability that an image becomes grey.
        erase: Probability that a rectangle is erased (Zhong et al., Random Erasing, AAAI 2020).
        erase_area: Least and largest share of the image that is erased.
        erase_aspect: Height over width of the rectangle is at least this and at most its reciprocal.
        erase_colour: R, G and B in 0..255 that fill the rectangle.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> transform = TrainTransform(pad=2)
        >>> images = torch.zeros(4, 3, 16, 8, dtype=torch.uint8)
        >>> transform(images, torch.Generator().manual_seed(0)).shape
        torch.Size([4, 3, 16, 8])
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
        """Augment images with random numbers from a generator.

        Args:
            images: (B, 3, H, W) uint8.
            generator: Decides the result.

        Returns:
            (B, 3, H, W) float32 in 0..255, not normalised yet.

        Raises:
            DataError: ``images`` has another shape or type.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise DataError(f"augmentation: expected uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        return self.apply(images, self.draw(images.shape, generator))

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> RandomNumbers:
        """Draw the random numbers for images of a shape (B, 3, H, W).

        The settings do not change how many numbers are taken from the generator, so that switching off one augmentation
        does not change the others.
        """
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
        return RandomNumbers(flip, top, left, brightness, contrast, saturation, gains, box)

    def apply(self, images: Tensor, numbers: RandomNumbers) -> Tensor:
        """Crop, flip, recolour and erase images (B, 3, H, W) uint8; return float32 in 0..255.

        The colours change in four steps.  R, G and B are multiplied by their gains.  The saturation mixes each pixel
        with its own grey.  The contrast mixes it with the mean grey that the image had at first.  The brightness
        multiplies the result, which is clipped to 0..255 once, at the end.  An image without colour (infrared) stays
        without colour: its three channels take the mean of the three gains.
        """
        moved = self._crop_and_flip(images, numbers)
        coloured = _recolour(moved, numbers)
        colour = torch.tensor(self.erase_colour)[:, None, None]
        for image, (top, bottom, left, right) in zip(coloured, numbers.box.tolist(), strict=True):
            if bottom > top:
                image[:, top:bottom, left:right] = colour  # 5 times faster than a mask over all images
        return coloured

    def _crop_and_flip(self, images: Tensor, numbers: RandomNumbers) -> Tensor:
        """Crop and flip in one step: gather every pixel from its position in the padded image."""
        channels, height, width = images.shape[1:]
        padded = torch.nn.functional.pad(images, (self.pad,) * 4)
        columns = torch.arange(width)
        columns = torch.where(numbers.flip[:, None], width - 1 - columns, columns) + numbers.left[:, None]  # (B, W)
        rows = torch.arange(height) + numbers.top[:, None]  # (B, H)
        positions = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]  # (B, H, W)
        positions = positions.flatten(1)[:, None].expand(-1, channels, -1)  # (B, 3, HW)
        return padded.flatten(2).gather(2, positions).view(images.shape)

    def _boxes(self, uniform: Tensor, height: int, width: int) -> Tensor:
        """Compute rectangles (B, 4) from uniform numbers (B, 5): whether to erase, area, aspect, row and column."""
        whether, area, aspect, down, across = uniform.unbind(1)
        low, high = self.erase_area
        pixels = (low + area * (high - low)) * height * width
        ratio = torch.exp((2 * aspect - 1) * math.log(1 / self.erase_aspect))
        # A rectangle that is too long is shortened to the image; drawing it again would take more random numbers.
        rows = (pixels * ratio).sqrt().round().clamp(1, height)
        columns = (pixels / ratio).sqrt().round().clamp(1, width)
        top, left = (down * (height - rows + 1)).floor(), (across * (width - columns + 1)).floor()
        box = torch.stack([top, top + rows, left, left + columns], 1).long()
        return box * (whether < self.erase).long()[:, None]


def _factor(uniform: Tensor, half_width: float) -> Tensor:
    return 1 + half_width * (2 * uniform - 1)


def _recolour(images: Tensor, numbers: RandomNumbers) -> Tensor:
    """Change the colours of images (B, 3, H, W) uint8 as :meth:`TrainTransform.apply` describes.

    All steps are linear, so that a pixel p (3,) becomes ``matrix @ p + share * mean grey``.
    """
    colourless = (images[:, :1] == images[:, 1:]).flatten(1).all(1)  # (B,)
    gains = torch.where(colourless[:, None], numbers.gains.mean(1, keepdim=True), numbers.gains)
    matrix = _saturation_matrix(numbers.saturation) @ torch.diag_embed(gains)
    matrix = (matrix * (numbers.brightness * numbers.contrast)[:, None, None]).float()  # (B, 3, 3)
    share = (numbers.brightness * (1 - numbers.contrast)).float()  # (B,)
    luma = torch.tensor(LUMA)
    result = torch.empty(images.shape, dtype=torch.float32)
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        rows = slice(start, start + _IMAGES_AT_ONCE)
        values = images[rows].flatten(2).float()  # (b, 3, HW)
        offset = (share[rows] * (values.mean(2) @ luma))[:, None, None]  # (b, 1, 1)
        torch.baddbmm(offset, matrix[rows], values, out=result[rows].flatten(2)).clamp_(0, 255)
    return result


def _saturation_matrix(saturation: Tensor) -> Tensor:
    """Return for each saturation s (B,) the matrix s * I + (1 - s) * G, where G turns a colour grey; (B, 3, 3)."""
    identity = torch.eye(3, dtype=torch.float64)
    grey = torch.tensor(LUMA, dtype=torch.float64).expand(3, 3)
    return saturation[:, None, None] * identity + (1 - saturation)[:, None, None] * grey
