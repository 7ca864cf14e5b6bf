"""Batches of a training: which rows each one holds, and what is known about its images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reid.config import Train
from reid.data.sampling import BalancedBatches, UnlabelledBatches
from reid.records import IntArray, Sample


@dataclass(frozen=True)
class TrainingBatch:
    """B images and what is known about them; the unlabelled images come last.

    Attributes:
        images: Augmented, normalized images (B, 3, H, W) float32.
        targets: The identity (B,) int64 of each image, -1 where it is unlabelled.
        modalities: The modality (B,) int64 of each image.
        domain: The normalization domain (B,) int64 of each image; None for a network without named domains.
        labelled: The number of labelled images.
        recipe: The recipe of the training, with the settings of the losses.
        is_second: Whether each image (B,) is the second view of a visible one; None where a training has none.
    """

    images: Tensor
    targets: Tensor
    modalities: Tensor
    domain: Tensor | None
    labelled: int
    recipe: Train
    is_second: Tensor | None = None

    def rows_by_domain(self) -> Tensor:
        """Number the rows (B,) int64 sorted by domain, in which layers see them inside ``Given``.

        A sum over rows depends on their order in its last bits. Losses on values of layers sum in this order, so that
        a training of version 0.1.0 continues to the same bits.
        """
        if self.domain is None:
            return torch.arange(len(self.images), device=self.images.device)
        return torch.argsort(self.domain, stable=True)


class BatchSampler:
    """Choose the rows of every batch: labelled rows and, behind them, as many unlabelled ones.

    Unlabelled rows take part in the statistics of their domains, which is what DSBN, DIAL, DWT and TransNorm have in
    common. A loss that compares views of an unlabelled image needs its row several times in a batch.

    Args:
        samples: The labelled rows; their row numbers begin with 0.
        unlabelled: The unlabelled rows; their row numbers follow.
        recipe: How many identities and images a batch holds, and the seed.
        views: How often an unlabelled row stands in a batch: all first views before all second ones.

    Attributes:
        images: The number of images of an epoch, each view counted.
    """

    def __init__(self, samples: tuple[Sample, ...], unlabelled: tuple[Sample, ...], recipe: Train, views: int) -> None:
        self._labelled = BalancedBatches(
            samples,
            recipe.identities_per_batch,
            recipe.images_per_identity,
            recipe.seed,
            balance=recipe.balance,
            visits=recipe.visits,
        )
        rows = recipe.identities_per_batch * recipe.images_per_identity
        self._unlabelled = (
            UnlabelledBatches(unlabelled, rows, recipe.seed, balance=recipe.balance) if unlabelled else None
        )
        self._first_unlabelled, self._views = len(samples), views
        self.images = len(self._labelled) * rows * (1 + views if unlabelled else 1)

    def epoch(self, number: int) -> list[IntArray]:
        """Return the batches of epoch ``number`` (0, 1, ...) as row numbers (B,) int64; always the same ones."""
        batches = self._labelled.epoch(number)
        if self._unlabelled is None:
            return batches
        drawn = self._unlabelled.epoch(number, len(batches))
        return [
            np.concatenate([own, *[self._first_unlabelled + rows] * self._views])
            for own, rows in zip(batches, drawn, strict=True)
        ]
