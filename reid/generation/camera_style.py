"""The style of a camera: the first and second moments of its crops, in pixels or in a layer of a network.

Every crop counts the same, whatever its size, as in the statistics of :mod:`reid.norm`. The second moments keep two
parts apart: what varies inside a crop, and how the means of crops vary. A method that changes single crops needs the
first part. A method that maps all crops of a camera by one function needs the sum of both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from reid.errors import DataError


@dataclass(frozen=True, eq=False)
class CameraStyle:
    """The moments of the crops of one camera.

    Attributes:
        mean: The mean (C,) float64 of each channel.
        within: The covariance (C, C) float64 inside a crop, the mean over the crops.
        between: The covariance (C, C) float64 of the means of crops.
        crops: How many crops were measured.
    """

    mean: Tensor
    within: Tensor
    between: Tensor
    crops: int

    @property
    def covariance(self) -> Tensor:
        """The covariance (C, C) of all pixels of all crops."""
        return self.within + self.between

    @property
    def deviation(self) -> Tensor:
        """The standard deviation (C,) of each channel inside a crop: the root of the mean variance."""
        return self.within.diagonal().clamp_min(0).sqrt()

    def as_map(self) -> Tensor:
        """Return a map (1, C, 1, 2C) float64 whose moments over positions are exactly ``mean`` and ``within``.

        Functions that take the style from an image can be given this map in its place.
        """
        values, vectors = torch.linalg.eigh(self.within)
        spread = vectors * (len(values) * values.clamp_min(0)).sqrt()  # its columns are the axes of the covariance
        return torch.cat([self.mean[:, None] + spread, self.mean[:, None] - spread], 1)[None, :, None]


def measure_style(maps: Iterable[Tensor]) -> CameraStyle:
    """Measure the moments of crops.

    Args:
        maps: Crops or maps of a layer, each batch (B, C, H, W); batches may have different sizes.

    Returns:
        The moments of all crops of all batches.

    Raises:
        DataError: There are fewer than two crops.

    Example:
        >>> style = measure_style([torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), torch.tensor([8.0]).view(1, 1, 1, 1)])
        >>> style.crops, style.mean.item(), round(style.covariance.item(), 4)
        (3, 4.0, 8.6667)
    """
    means, within = list[Tensor](), list[Tensor]()
    for batch in maps:
        rows = batch.double().flatten(2)
        mean = rows.mean(2)
        centred = rows - mean[:, :, None]
        means.append(mean)
        within.append((centred @ centred.mT / rows.shape[2]).sum(0))
    count = sum(len(mean) for mean in means)
    if count < 2:
        raise DataError(f"the style of a camera needs at least 2 crops, got {count}")
    every = torch.cat(means)
    mean = every.mean(0)
    centred = every - mean
    return CameraStyle(mean, torch.stack(within).sum(0) / count, centred.T @ centred / count, count)


def transfer_moments(crops: Tensor, source: CameraStyle, target: CameraStyle) -> Tensor:
    """Map each channel so that the crops of one camera get the moments of another camera.

    y = (x - m_s) d_t / d_s + m_t, with the means m and the standard deviations d of all pixels of the source and of the
    target. It is one function for all crops of the camera, so a dark coat stays darker than a bright one. Over all
    crops that ``source`` was measured on, the means and the variances of the result are exactly those of the target.

    Args:
        crops: Crops (B, C, H, W) of the source camera, in the unit in which the styles were measured.
        source: The style of their camera.
        target: The style of the camera that they shall look like.

    Returns:
        (B, C, H, W) float64, not clipped. A channel without variance in the source gets the target's mean.

    Example:
        >>> dark, bright = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), torch.tensor([4.0, 8.0]).view(2, 1, 1, 1)
        >>> transfer_moments(dark, measure_style([dark]), measure_style([bright])).flatten().tolist()
        [4.0, 8.0]
    """
    spread, wanted = (style.covariance.diagonal().clamp_min(0).sqrt() for style in (source, target))
    smallest = 1e-9 * spread.max().clamp_min(torch.finfo(spread.dtype).tiny)
    factor = torch.where(spread > smallest, wanted / spread.clamp_min(smallest), 0.0)
    shift = target.mean - source.mean * factor
    return crops.double() * factor[:, None, None] + shift[:, None, None]


def style_distance(maps: Tensor, style: CameraStyle) -> Tensor:
    """Compute how far the moments of each crop are from the style of a camera.

    It is the mean over the channels of the squared difference of means, plus the squared difference of standard
    deviations, both over the style's variance.

    Args:
        maps: Maps (B, C, H, W).
        style: The style of a camera in the same layer.

    Returns:
        Distances (B,) float64, 0 for a crop that has the means and the deviations of the style.
    """
    rows = maps.double().flatten(2)
    deviation = rows.var(2, correction=0).sqrt()
    scale = style.deviation.clamp_min(1e-9)
    return (((rows.mean(2) - style.mean) / scale).square() + ((deviation - style.deviation) / scale).square()).mean(1)
