"""One epoch of a training: batches of crops in memory are augmented and embedded, and each gives one update.

Unlabelled crops of a batch pass through the network with the others, so that statistics see both. The losses on
identities do not see them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from reid.config import Train
from reid.data.channel_exchange import draw_exchanges, exchange_channels
from reid.data.transforms import EvaluationTransform, RandomNumbers, TrainTransform
from reid.errors import ConfigError
from reid.models.embedder import Embedder
from reid.norm import Given
from reid.norm.calibrate import device_of
from reid.records import IntArray
from reid.training.batches import TrainingBatch
from reid.training.objective import Objective, Outputs, total_loss
from reid.training.parallel_network import ParallelNetwork
from reid.training.processes import ONE_PROCESS, Processes
from reid.training.schedule import learning_rate
from reid.training.second_views import LearnedView, with_second_views
from reid.training.training_data import LEARNED, UNKNOWN, TrainingSet

STYLE_IMAGES, STYLE_BATCH = 256, 32  # on which terms of the objective may measure what colours change
# Losses that every line of metrics.jsonl has, as in version 0.1.0; 0 where a training does not use them.
_LOSSES_OF_EVERY_LINE = ("identity_loss", "triplet_loss", "contrastive_loss", "target_loss")


class Learner(nn.Module):
    """An embedder and the classifier that only the training needs: a linear layer on the neck, without bias.

    BNNeck (Luo et al. 2019, "Bag of tricks"): the triplet loss sees the features before the neck and the classifier
    those after it. The contrastive loss sees those after it too, because it is about the embeddings themselves.

    Args:
        embedder: The embedder.
        identities: The number of identities.
        learned_view: Whether second views of visible images are made by a network that is trained with this one.
    """

    def __init__(self, embedder: Embedder, identities: int, learned_view: bool = False) -> None:
        super().__init__()
        self.embedder = embedder
        self.learned_view = LearnedView() if learned_view else None
        self.classifier = nn.Linear(embedder.dimension, identities, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute features before (B, C) and after the neck (B, D), and logits (B, I), of images (B, 3, H, W)."""
        features, neck = self.embedder.forward_train(images)
        return features.float(), neck, self.classifier(neck).float()


@dataclass(frozen=True)
class EpochReport:
    """Means over the batches of an epoch; weights and learning rate are those of its last update.

    Attributes:
        epoch: The number of the epoch, from 1.
        loss: The weighted sum of the losses.
        losses: Every loss without its weight, by its name in the objective.
        weights: The weight of every loss.
        accuracy: The fraction (0..1) of the labelled images whose identity has the largest logit.
        learning_rate: The learning rate.
        seconds: How long the epoch took.
        images_per_second: The number of images over this time.
        held_out: The scores of held-out identities, fractions (0..1) by name, where they were measured.
    """

    epoch: int
    loss: float
    losses: dict[str, float]
    weights: dict[str, float]
    accuracy: float
    learning_rate: float
    seconds: float
    images_per_second: float
    held_out: dict[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """Describe the changing part of the report, for a progress bar."""
        scores = "".join(f", {name.replace('_', ' ')} {value:.3f}" for name, value in self.held_out.items())
        return f"loss {self.loss:.3f}, accuracy {self.accuracy:.3f}{scores}, {self.images_per_second:.0f} images/s"

    def to_json(self) -> dict[str, float]:
        """Return the line of metrics.jsonl, with the keys of version 0.1.0 and one for each further loss."""
        return {
            "epoch": self.epoch,
            "loss": self.loss,
            **dict.fromkeys(_LOSSES_OF_EVERY_LINE, 0.0),
            **{f"{name}_loss": value for name, value in self.losses.items()},
            "triplet_weight": self.weights.get("triplet", 0.0),
            "accuracy": self.accuracy,
            "learning_rate": self.learning_rate,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            **self.held_out,
        }


def make_optimizer(learner: nn.Module, recipe: Train) -> torch.optim.AdamW:
    """Make an AdamW optimizer with weight decay only on the weights of convolutions and linear layers.

    Scales, shifts and biases have no decay, which would pull those of rare domains to zero.
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


class TrainingLoop:
    """What stays the same from epoch to epoch.

    Args:
        learner: The network with its classifier.
        optimizer: See :func:`make_optimizer`.
        data: The crops and their labels.
        augment: How images are changed in every epoch.
        transform: How images are prepared, in training as in evaluation.
        recipe: Rates, weights and settings of the losses.
        target_loss: The name of the loss on unlabelled images; "" for none.
        processes: The processes that share every batch; this one computes its own rows.
    """

    def __init__(
        self,
        learner: Learner,
        optimizer: torch.optim.Optimizer,
        data: TrainingSet,
        augment: TrainTransform,
        transform: EvaluationTransform,
        recipe: Train,
        target_loss: str = "",
        processes: Processes = ONE_PROCESS,
    ) -> None:
        self.learner, self.optimizer, self.data, self.recipe = learner, optimizer, data, recipe
        self.augment, self.transform, self.processes = augment, transform, processes
        self.device = device_of(learner)
        self.objective = Objective(learner, recipe, target_loss)
        # Gradients of float16 are scaled, so that small ones do not become 0; for other precisions this does nothing.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "float16")
        self._parallel: ParallelNetwork | None = None
        if processes.count > 1:
            if recipe.second_view != "none":
                raise ConfigError("train.second_view needs all rows of a batch in one process; train without torchrun")
            self.objective.refuse_layer_losses()
            self._parallel = ParallelNetwork(learner, recipe, processes)

    def train_epoch(
        self,
        epoch: int,
        batches: Sequence[IntArray],
        generator: torch.Generator,
        on_batch: Callable[[int], object] | None = None,
    ) -> EpochReport:
        """Train once on the batches.

        Args:
            epoch: The number of the epoch, from 0.
            batches: The row numbers (B,) int64 of each batch, labelled rows first.
            generator: Drives the augmentation.
            on_batch: Is called after every update with its number of images.

        Raises:
            ConfigError: The loss is not finite any more.
        """
        self.objective.prepare(lambda: self._style_views(generator))
        self.learner.train()
        started, sums = time.perf_counter(), dict[str, float]()
        rate, weights = 0.0, dict[str, float]()
        for number, rows in enumerate(batches):
            rate = self._learning_rate(epoch, number, len(batches))
            weights = self.objective.weights(epoch + number / len(batches))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            measured = self._step(self._batch(torch.from_numpy(rows), generator), weights, epoch)
            sums = {name: sums.get(name, 0.0) + value for name, value in measured.items()}
            if on_batch is not None:
                on_batch(len(rows))
        seconds = time.perf_counter() - started
        means = {name: total / len(batches) for name, total in sums.items()}
        return EpochReport(
            epoch=epoch + 1,
            loss=means["loss"],
            losses={name: means[f"{name}_loss"] for name in weights},
            accuracy=means["accuracy"],
            weights=weights,
            learning_rate=rate,
            seconds=round(seconds, 3),
            images_per_second=round(sum(len(rows) for rows in batches) / seconds, 1),
        )

    def _learning_rate(self, epoch: int, number: int, batches: int) -> float:
        """Compute the learning rate of batch ``number`` of the epoch."""
        recipe = self.recipe
        return learning_rate(
            epoch * batches + number,
            steps=recipe.epochs * batches,
            warmup=round(recipe.warmup_epochs * batches),
            peak=recipe.learning_rate,
            final=recipe.final_learning_rate,
        )

    def _batch(self, rows: Tensor, generator: torch.Generator) -> TrainingBatch:
        """Take the crops at ``rows`` (B,) int64, augmented, and their labels, on the device of the network.

        With several processes, images and domains are those of this process's rows and the labels are those of all.
        """
        data, device = self.data, self.device
        rows, is_second = with_second_views(rows, data) if self.recipe.second_view != "none" else (rows, None)
        targets = data.targets[rows]
        numbers = self.augment.draw((len(rows), *data.crops.shape[1:]), generator)
        own = rows
        if self._parallel is not None:
            positions = self._parallel.own_positions(len(rows))
            own, numbers = rows[positions], _select(numbers, positions)
        crops, domain = data.crops[own], None if data.domains is None else data.domains[own]
        if is_second is not None:
            if self.recipe.second_view != LEARNED:
                crops[is_second] = exchange_channels(crops[is_second], draw_exchanges(int(is_second.sum()), generator))
            if domain is not None and data.grey_domains is not None:
                domain[is_second] = data.grey_domains[domain[is_second]]
        images = self.transform.normalise(self.augment.apply(crops, numbers))
        return TrainingBatch(
            images.contiguous(memory_format=torch.channels_last).to(device),
            targets.to(device),
            data.modalities[rows].to(device),
            None if domain is None else domain.to(device),
            int((targets != UNKNOWN).sum()),
            self.recipe,
            is_second if is_second is None else is_second.to(device),
        )

    def _step(self, batch: TrainingBatch, weights: dict[str, float], epoch: int) -> dict[str, float]:
        """Make one update; returns every loss such as "identity_loss", their weighted sum "loss", and "accuracy"."""
        with _autocast(self.device, self.recipe.precision), self.objective.observe() as observed:
            if self._parallel is None:
                features, neck, logits = Given(self.learner)(self._views(batch), batch.domain)
            else:
                features, neck, logits = self._parallel(batch.images, batch.domain, len(batch.targets))
        terms = self.objective.terms(batch, Outputs(features, neck, logits, observed))
        loss = total_loss(terms, weights)
        self._update(loss, epoch)
        known = slice(batch.labelled)
        accuracy = (logits[known].argmax(1) == batch.targets[known]).float().mean()
        losses = {f"{name}_loss": term.item() for name, term in terms.items()}
        return {**losses, "loss": loss.item(), "accuracy": accuracy.item()}

    def _views(self, batch: TrainingBatch) -> Tensor:
        """Return the images of a batch, with second views by the network that makes them, where the recipe has one."""
        learned = getattr(self.learner, "learned_view", None)
        if learned is None or batch.is_second is None:
            return batch.images
        return torch.where(batch.is_second[:, None, None, None], learned(batch.images), batch.images)

    def _update(self, loss: Tensor, epoch: int) -> None:
        """Make one step of the optimizer; ConfigError where the loss is not finite."""
        if not math.isfinite(loss.item()):
            raise ConfigError(
                f"the loss became {loss.item()} in epoch {epoch + 1}: the training diverged;"
                " lower train.learning_rate, lengthen train.warmup_epochs or set train.gradient_clip"
            )
        self.optimizer.zero_grad(set_to_none=True)
        share = loss * self.processes.count if self._parallel is not None else loss  # gradients are averaged over them
        self.scaler.scale(share).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        if self.recipe.gradient_clip > 0:
            nn.utils.clip_grad_norm_(self.learner.parameters(), self.recipe.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _style_views(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Give some images as they are, the same ones with other colours, and their domains, batch by batch."""
        data, jitter = self.data, replace(self.augment, flip=0.0, pad=0, erase=0.0)
        order = torch.randperm(len(data.crops), generator=generator)[:STYLE_IMAGES]
        for rows in torch.split(order, STYLE_BATCH):
            crops, domain = data.crops[rows], None if data.domains is None else data.domains[rows]
            plain, jittered = (self.transform.normalise(view) for view in (crops, jitter(crops, generator)))
            yield plain.to(self.device), jittered.to(self.device), None if domain is None else domain.to(self.device)


def _select(numbers: RandomNumbers, positions: Tensor) -> RandomNumbers:
    """Select the random numbers of the images at ``positions`` (b,) int64."""
    return RandomNumbers(**{part.name: getattr(numbers, part.name)[positions] for part in fields(numbers)})


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    return nullcontext() if precision == "float32" else torch.autocast(device.type, dtype=getattr(torch, precision))
