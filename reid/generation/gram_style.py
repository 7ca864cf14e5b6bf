"""Restyle crops by optimizing their pixels until their Gram matrix is that of a camera (Gatys et al. 2016).

This is the slow reference: it needs no trained decoder, and an optimization for every crop.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reid.generation.camera_style import CameraStyle
from reid.norm.specialised.style import gram, instance_norm

RATE = 0.05  # of Adam, in units of normalized pixels


def rectify(maps: Tensor) -> Tensor:
    """Separate the positive and the negative parts of maps: (B, C, H, W) -> (B, 2C, H, W), all >= 0.

    The Gram matrix of maps does not change when their sign does, so without this step a dark image could become the
    negative of a bright one.
    """
    return torch.cat([maps.relu(), (-maps).relu()], 1)


def gram_loss(maps: Tensor, wanted: Tensor) -> Tensor:
    """Compute the squared difference of Gram matrices, over the square of the wanted one.

    Args:
        maps: Maps (B, C, H, W).
        wanted: The Gram matrix (C, C) of the style, over the number of positions.

    Returns:
        The loss (B,) of each image, 0 where the Gram matrices are equal.
    """
    return (gram(maps) - wanted).square().sum((1, 2)) / wanted.square().sum()


def optimize_gram(
    images: Tensor,
    encode: Callable[[Tensor], Tensor],
    style: CameraStyle,
    *,
    steps: int = 150,
    content_weight: float = 0.05,
    low: Tensor | None = None,
    high: Tensor | None = None,
) -> Tensor:
    """Change images until their maps have the Gram matrix of a style, and keep their normalized maps.

    The content is what remains of the maps after instance normalization, because the style decides their moments. Each
    image has a loss of its own, so the result does not depend on what else is in the batch.

    Args:
        images: Normalized images (B, 3, H, W), from which the optimization starts.
        encode: Computes the maps of images, with a gradient; see :func:`rectify`.
        style: The style of a camera in these maps.
        steps: Steps of Adam.
        content_weight: The weight of the content beside the Gram matrices.
        low: The smallest value (3,) of each channel; None bounds nothing.
        high: The largest value (3,) of each channel.

    Returns:
        Images (B, 3, H, W) float32.
    """
    wanted = (style.within + style.mean[:, None] * style.mean).to(images.dtype)
    content = instance_norm(encode(images)).detach()
    changed = images.clone().requires_grad_()
    optimizer = torch.optim.Adam([changed], lr=RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        maps = encode(changed)
        kept = (instance_norm(maps) - content).square().mean((1, 2, 3))
        loss = (gram_loss(maps, wanted) + content_weight * kept).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if low is not None and high is not None:
            with torch.no_grad():
                changed.copy_(torch.minimum(torch.maximum(changed, low[:, None, None]), high[:, None, None]))
    return changed.detach()
