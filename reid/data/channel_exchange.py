"""Channel exchange: turn a visible image into one whose channels say less about colour, as infrared does.

It is the augmentation of CAJ (Ye et al., ICCV 2021, "Channel Augmented Joint Learning for Visible-Infrared
Recognition"), which shows a network every visible image a second time, with exchanged channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reid.data.transforms import LUMA
from reid.errors import DataError

GREY, UNCHANGED = 3, 4  # choices behind 0, 1 and 2, which copy the channel R, G or B to all three


def draw_exchanges(count: int, generator: torch.Generator) -> Tensor:
    """Draw what happens to the channels of each image.

    One of R, G, B and "other" is drawn with equal probability; "other" is grey or no change, with equal probability.

    Args:
        count: The number of images B.
        generator: Decides the result.

    Returns:
        Choices (B,) int64: 0, 1 or 2 for the channel that is copied, or :data:`GREY` or :data:`UNCHANGED`.
    """
    uniform = torch.rand((2, count), generator=generator, dtype=torch.float64)
    drawn = (uniform[0] * 4).long()
    other = torch.where(uniform[1] < 0.5, GREY, UNCHANGED)
    return torch.where(drawn < 3, drawn, other)


def exchange_channels(images: Tensor, choices: Tensor) -> Tensor:
    """Copy one channel of each image to all three, make the image grey, or leave it.

    Args:
        images: Images (B, 3, H, W) uint8.
        choices: What happens to each image (B,) int64, see :func:`draw_exchanges`.

    Returns:
        Images (B, 3, H, W) uint8. Grey is 0.299 R + 0.587 G + 0.114 B, rounded to the nearest number.

    Raises:
        DataError: The images have another shape or type, or the choices do not fit them.

    Example:
        >>> image = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
        >>> exchange_channels(image.expand(3, 3, 1, 1), torch.tensor([1, GREY, UNCHANGED])).flatten(1).tolist()
        [[20, 20, 20], [18, 18, 18], [10, 20, 30]]
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise DataError(f"channel exchange: expected uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    if choices.shape != images.shape[:1] or (len(choices) and not 0 <= int(choices.min()) <= int(choices.max()) <= 4):
        raise DataError(f"channel exchange: expected a choice 0..4 for each of {len(images)} images, got {choices}")
    exchanged = images.clone()
    for channel in range(3):
        rows = choices == channel
        exchanged[rows] = images[rows, channel : channel + 1].expand(-1, 3, -1, -1)
    rows = choices == GREY
    grey = (images[rows].float() * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    exchanged[rows] = grey.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
    return exchanged
