"""Second views of visible images in a batch: which rows get one, and the network that can make them.

Channel exchange (:mod:`reid.data.channel_exchange`) makes them without a network. :class:`LearnedView` is the smallest
network that does. It is the X modality of Li et al. (AAAI 2020, "Infrared-Visible Cross-Modal Person Re-Identification
with an X Modality"), which the losses of the training train.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from reid.records import Modality
from reid.training.training_data import UNKNOWN, TrainingSet

VISIBLE = list(Modality).index(Modality.VISIBLE)  # in TrainingSet.modalities


class LearnedView(nn.Module):
    """Make an image of a third kind from a visible one: a 1x1 convolution to one channel, ReLU, and one back to three.

    It has ten numbers, which start so that the view is the mean of the three channels wherever that is above -1 in
    normalized pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 1, 1)
        self.spread = nn.Conv2d(1, 3, 1)
        for layer, weight, bias in ((self.mix, 1 / 3, 1.0), (self.spread, 1.0, -1.0)):
            nn.init.constant_(layer.weight, weight)
            nn.init.constant_(cast(Tensor, layer.bias), bias)

    def forward(self, images: Tensor) -> Tensor:
        """Make views of normalized images (B, 3, H, W); the result has the same shape."""
        views: Tensor = self.spread(self.mix(images).relu())
        return views


def with_second_views(rows: Tensor, data: TrainingSet) -> tuple[Tensor, Tensor]:
    """Add the visible labelled rows of a batch a second time, behind its labelled rows.

    Args:
        rows: The row numbers (B,) int64 of a batch, labelled rows first.
        data: The crops and their labels.

    Returns:
        The row numbers (B + V,) int64, and which of them are second views, (B + V,) bool.
    """
    labelled = int((data.targets[rows] != UNKNOWN).sum())
    own, unlabelled = rows[:labelled], rows[labelled:]
    second = own[data.modalities[own] == VISIBLE]
    is_second = torch.zeros(len(rows) + len(second), dtype=torch.bool)
    is_second[labelled : labelled + len(second)] = True
    return torch.cat([own, second, unlabelled]), is_second
