"""Training with crops of a site that nobody has labelled: which stand in a batch, and what they are asked for.

By default nothing: they only take part in the statistics of their domains, which is what DSBN, DIAL, DWT and TransNorm
have in common.  Knows rows and logits; nothing of networks or files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from reid.config import Train
from reid.data.sampling import BalancedBatches, UnlabelledBatches
from reid.records import IntArray, Sample
from reid.training.alignment import consensus_loss, entropy_loss


@dataclass(frozen=True)
class TargetLoss:
    """``of`` judges the logits (views * U, I) of U unlabelled images, all first views before all second ones.

    Published for tasks whose target has the classes of the source.  The identities of another site are others than
    the I of the training, so for re-identification it asks for certainty about a question without an answer.
    """

    of: Callable[[Tensor], Tensor]
    weight: float
    views: int = 1  # how often an unlabelled image stands in a batch, augmented anew each time


def _consensus(logits: Tensor) -> Tensor:
    first, second = logits.chunk(2)
    return consensus_loss(first, second)


TARGET_LOSSES: dict[str, TargetLoss] = {
    "entropy": TargetLoss(entropy_loss, weight=0.1),  # Carlucci et al. 2017 (AutoDIAL), the weight for AlexNet
    "mec": TargetLoss(_consensus, weight=0.1, views=2),  # Roy et al. 2019 (DWT)
}


class TrainingBatches:
    """The labelled rows of each batch and, behind them, as many unlabelled ones (each as often as it has views).

    Positions count ``samples`` and, behind them, ``unlabelled``; ``images`` is the number of rows of an epoch.
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
        self._first, self._views = len(samples), views
        self.images = len(self._labelled) * rows * (1 + views if unlabelled else 1)

    def epoch(self, number: int) -> list[IntArray]:
        """The batches of epoch ``number`` (0, 1, ...), the same whenever asked."""
        batches = self._labelled.epoch(number)
        if self._unlabelled is None:
            return batches
        drawn = self._unlabelled.epoch(number, len(batches))
        return [
            np.concatenate([own, *[self._first + rows] * self._views]) for own, rows in zip(batches, drawn, strict=True)
        ]
