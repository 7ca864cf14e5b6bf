"""One epoch: batches of crops that lie in memory, augmented, embedded, judged, and one update each.

Unlabelled crops of a batch pass through the network with the others, so that statistics see both; the losses on
identities do not see them.

Knows the losses, the schedule and the optimizer's step; it knows nothing of files, of how the
network is built, or of which epoch comes next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from reid.config import Train
from reid.data.transforms import EvaluationTransform, TrainTransform
from reid.errors import ConfigError
from reid.models.embedder import Embedder
from reid.norm import Given, system_of
from reid.norm.assignment import gate_logits, gate_loss
from reid.norm.condition import DomainBranch
from reid.records import IntArray
from reid.training.alignment import entropy_loss
from reid.training.causality import DualCausality
from reid.training.losses import batch_hard_triplet, contrastive_loss, identity_loss
from reid.training.schedule import learning_rate, ramp
from reid.training.selective_whitening import SelectiveWhitening
from reid.training.target import TargetLoss
from reid.training.training_data import UNKNOWN, TrainingSet

BRANCH_ENTROPY = 0.1  # weight of the entropy of latent domains (Mancini et al. 2018)
ISW_WEIGHT = 0.6  # of instance selective whitening (RobustNet's)
STYLE_IMAGES, STYLE_BATCH = 256, 32  # to measure which covariances carry style


class Learner(nn.Module):
    """An embedder and the classifier that only training needs: a linear layer on the neck, no bias.

    BNNeck (Luo et al. 2019, "Bag of tricks"): the triplet loss sees the features before the neck, the
    classifier those after it; so does the contrastive loss, which is about the embeddings themselves.
    """

    def __init__(self, embedder: Embedder, identities: int) -> None:
        super().__init__()
        self.embedder = embedder
        self.classifier = nn.Linear(embedder.dimension, identities, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) float32 -> features before the neck (B, C), after it (B, D), logits (B, I), float32."""
        features, neck = self.embedder.forward_train(images)
        return features.float(), neck, self.classifier(neck).float()


@dataclass(frozen=True)
class EpochReport:
    """Means over the batches of an epoch; the weights and rates are those of its last update."""

    epoch: int  # 1-based
    loss: float
    identity_loss: float
    triplet_loss: float
    contrastive_loss: float
    target_loss: float  # on unlabelled images; 0 without
    triplet_weight: float
    accuracy: float  # part of the labelled images whose identity has the largest logit, 0..1
    learning_rate: float
    seconds: float
    images_per_second: float

    def describe(self) -> str:
        """The changing part, for a progress bar."""
        return f"loss {self.loss:.3f}, accuracy {self.accuracy:.3f}, {self.images_per_second:.0f} images/s"


def make_optimizer(learner: nn.Module, recipe: Train) -> torch.optim.AdamW:
    """AdamW; weight decay only on the weights of convolutions and linear layers.

    Scales, shifts and biases are left alone: decay would drag those of rare domains to zero.
    """
    decayed = {id(module.weight) for module in learner.modules() if isinstance(module, _ConvNd | nn.Linear)}
    parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in parameters if (id(parameter) in decayed) is wanted],
            "weight_decay": recipe.weight_decay if wanted else 0.0,
        }
        for wanted in (True, False)
    ]
    # Not fused: torch's fused CPU kernel is silently wrong where a gradient has other strides than its weight.
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


@dataclass(frozen=True)
class _TrainingBatch:
    """B images (B, 3, H, W) and what is known about them, the unlabelled ones last; ``domain`` None for none."""

    images: Tensor
    targets: Tensor  # (B,) int64, -1 where unlabelled
    modalities: Tensor  # (B,) int64
    domain: Tensor | None  # (B,) int64
    labelled: int

    @property
    def order(self) -> Tensor:
        """The row that stands in each place (B,) inside the network: Given sorts them by domain."""
        return torch.arange(len(self.images)) if self.domain is None else torch.argsort(self.domain, stable=True)


@dataclass(frozen=True)
class _Seen:
    """What a forward pass gives of a batch."""

    features: Tensor  # (B, C), before the neck
    neck: Tensor  # (B, D), after it
    logits: Tensor  # (B, I)
    weights: Tensor | None  # (B, G), of the domains that a branch guesses
    maps: Any  # what the watched layers saw, rows in the batch's order
    gates: list[Tensor]  # logits of the gates of the norms, rows in the caller's order


@dataclass
class Loop:
    """What stays the same from epoch to epoch; ``target`` is the loss on unlabelled rows."""

    learner: Learner
    optimizer: torch.optim.Optimizer
    data: TrainingSet
    augment: TrainTransform
    transform: EvaluationTransform
    recipe: Train
    target: TargetLoss | None = None

    def __post_init__(self) -> None:
        self._branch = next((part for part in self.learner.modules() if isinstance(part, DomainBranch)), None)
        system = system_of(self.learner.embedder)
        self._whitening = SelectiveWhitening(self.learner) if system == "isw" else None
        self._causality = DualCausality(self.learner) if system == "snr" else None

    def run(
        self,
        epoch: int,
        batches: Sequence[IntArray],
        generator: torch.Generator,
        on_batch: Callable[[int], object] | None = None,
    ) -> EpochReport:
        """Train once on ``batches``, each int64 row numbers (B,), labelled rows first; ``epoch`` is 0-based.

        ``generator`` drives the augmentation; ``on_batch`` is called after every update with its number of images.
        """
        if self._whitening is not None:
            self._measure_style(self._whitening, generator)
        self.learner.train()
        started, sums = time.perf_counter(), np.zeros(6)
        rate = weight = 0.0
        for number, rows in enumerate(batches):
            rate, weight = self._schedule(epoch, number, len(batches))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            sums += self._step(self._batch(torch.from_numpy(rows), generator), weight, epoch)
            if on_batch is not None:
                on_batch(len(rows))
        seconds = time.perf_counter() - started
        loss, identity, triplet, contrast, target, accuracy = (sums / len(batches)).tolist()
        return EpochReport(
            epoch=epoch + 1,
            loss=loss,
            identity_loss=identity,
            triplet_loss=triplet,
            contrastive_loss=contrast,
            target_loss=target,
            triplet_weight=weight,
            accuracy=accuracy,
            learning_rate=rate,
            seconds=round(seconds, 3),
            images_per_second=round(sum(len(rows) for rows in batches) / seconds, 1),
        )

    def _schedule(self, epoch: int, number: int, batches: int) -> tuple[float, float]:
        """Learning rate and triplet weight of batch ``number`` of the epoch."""
        recipe = self.recipe
        rate = learning_rate(
            epoch * batches + number,
            steps=recipe.epochs * batches,
            warmup=round(recipe.warmup_epochs * batches),
            peak=recipe.learning_rate,
            final=recipe.final_learning_rate,
        )
        part = ramp(epoch + number / batches, start=recipe.triplet_start, length=recipe.triplet_ramp)
        return rate, recipe.triplet_weight * part

    def _batch(self, rows: Tensor, generator: torch.Generator) -> _TrainingBatch:
        """The crops at ``rows`` (B,) int64, augmented, and their labels."""
        data, targets = self.data, self.data.targets[rows]
        images = self.transform.normalise(self.augment(data.crops[rows], generator))
        return _TrainingBatch(
            images.contiguous(memory_format=torch.channels_last),
            targets,
            data.modalities[rows],
            None if data.domains is None else data.domains[rows],
            int((targets != UNKNOWN).sum()),
        )

    def _step(self, batch: _TrainingBatch, weight: float, epoch: int) -> list[float]:
        """One update; returns loss, its four parts, accuracy."""
        seen, recipe = self._see(batch), self.recipe
        known = slice(batch.labelled)
        targets, logits = batch.targets[known], seen.logits[known]
        across = batch.modalities[known] if recipe.positives == "cross_modality" else None
        identity = identity_loss(logits, targets, recipe.label_smoothing)
        triplet = batch_hard_triplet(seen.features[known], targets, recipe.triplet_margin, across)
        contrast = contrastive_loss(seen.neck[known], targets, modalities=across)
        loss = identity + weight * triplet + recipe.contrast_weight * contrast
        loss = self._with_losses_of_layers(loss, batch, seen)
        target = torch.zeros(())
        if self.target is not None:
            target = self.target.of(seen.logits[batch.labelled :])
            loss = loss + self.target.weight * target
        self._update(loss, epoch)
        accuracy = (logits.argmax(1) == targets).float().mean()
        return [part.item() for part in (loss, identity, triplet, contrast, target, accuracy)]

    def _see(self, batch: _TrainingBatch) -> _Seen:
        """One forward pass of the whole batch."""
        watched = self._whitening or self._causality
        watching: AbstractContextManager[Any] = nullcontext() if watched is None else watched.watching()
        with _autocast(self.recipe.precision), watching as maps, gate_logits(self.learner) as gates:
            weights = None if self._branch is None else self._branch(batch.images)
            domain = batch.domain if weights is None else weights
            features, neck, logits = Given(self.learner)(batch.images, domain)
        return _Seen(features, neck, logits, weights, maps, gates)

    def _with_losses_of_layers(self, loss: Tensor, batch: _TrainingBatch, seen: _Seen) -> Tensor:
        """The loss and those that come with certain norms; all but SNR's, which is of identities, see every row."""
        if seen.weights is not None:
            loss = loss + BRANCH_ENTROPY * entropy_loss(seen.weights.clamp_min(1e-12).log())
        if seen.gates and batch.domain is not None:
            loss = loss + gate_loss(seen.gates, batch.domain)
        if self._whitening is not None:
            loss = loss + ISW_WEIGHT * self._whitening.loss(seen.maps)
        if self._causality is not None:
            maps, targets = seen.maps, batch.targets[batch.order]
            if batch.labelled < len(targets):
                known = targets != UNKNOWN
                maps, targets = [layer[known] for layer in maps], targets[known]
            loss = loss + self._causality.loss(maps, targets)
        return loss

    def _update(self, loss: Tensor, epoch: int) -> None:
        """One step of the optimizer; ConfigError where the loss is not finite."""
        if not math.isfinite(loss.item()):
            raise ConfigError(
                f"the loss became {loss.item()} in epoch {epoch + 1}: the training diverged;"
                " lower train.learning_rate, lengthen train.warmup_epochs or set train.gradient_clip"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.recipe.gradient_clip > 0:
            nn.utils.clip_grad_norm_(self.learner.parameters(), self.recipe.gradient_clip)
        self.optimizer.step()

    def _measure_style(self, whitening: SelectiveWhitening, generator: torch.Generator) -> None:
        """Measure which covariances carry style, on images as they are and with other colours.

        Anew before every epoch (published: once), so that a resumed training needs no state for it.
        """
        data, jitter = self.data, replace(self.augment, flip=0.0, pad=0, erase=0.0)
        order = torch.randperm(len(data.crops), generator=generator)[:STYLE_IMAGES]
        self.learner.eval()

        def pairs() -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
            for rows in torch.split(order, STYLE_BATCH):
                crops, domains = data.crops[rows], None if data.domains is None else data.domains[rows]
                plain, jittered = (self.transform.normalise(view) for view in (crops, jitter(crops, generator)))
                yield plain, jittered, domains

        whitening.measure(self.learner, pairs())


def _autocast(precision: str) -> AbstractContextManager[object]:
    if precision == "bfloat16":
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()
