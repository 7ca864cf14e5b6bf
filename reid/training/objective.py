"""The objective of a training: one table of its losses, each with a weight.

A new loss is a function of a batch and of what the network gave for it, and a row of :data:`TERMS`. A setting that
users shall choose, such as the weight, is a field of :class:`reid.config.Train`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from reid.config import Train
from reid.errors import ConfigError
from reid.training.batches import TrainingBatch
from reid.training.layer_objectives import (
    DualCausality,
    GateCrossEntropy,
    LatentDomainEntropy,
    LayerObjective,
    SelectiveWhitening,
    Views,
)
from reid.training.losses import (
    anti_collapse_triplet,
    batch_hard_triplet,
    consensus_loss,
    contrastive_loss,
    entropy_loss,
    identity_loss,
    weighted_triplet,
)
from reid.training.schedule import ramp


@dataclass(frozen=True)
class Outputs:
    """What a network gives for a batch, row for row.

    Attributes:
        features: Features (B, C) float32 before the neck.
        neck: Features (B, D) float32 after the neck.
        logits: Scores (B, I) float32 of the identities of the training.
        observed: What each term that is bound to layers observed, by the name of the term.
    """

    features: Tensor
    neck: Tensor
    logits: Tensor
    observed: Mapping[str, Any] = field(default_factory=dict)


TermFunction = Callable[[TrainingBatch, Outputs], Tensor]
WeightSchedule = Callable[[Train, float], float]


@dataclass(frozen=True)
class Term:
    """A row of the table of losses.

    Attributes:
        loss: A function of a batch and of the outputs for it that returns a scalar; or a
            :class:`~reid.training.layer_objectives.LayerObjective`, for a loss on values of layers, which is used for
            networks that have these layers.
        weight: A number, or a function of the recipe and the epoch (0.0 at the start of the first one, 0.5 in the
            middle of it).
        on_unlabelled: Whether the loss is for unlabelled images. An experiment chooses such a loss by its name behind
            the system: norm.system = "dwt+mec". It is reported under the name "target".
        views: How often an unlabelled image stands in a batch, augmented anew each time.
        defence: The method of defence that needs the loss; "" where it depends on nothing else.
    """

    loss: TermFunction | type[LayerObjective]
    weight: float | WeightSchedule = 1.0
    on_unlabelled: bool = False
    views: int = 1
    defence: str = ""


def _identity(batch: TrainingBatch, outputs: Outputs) -> Tensor:
    known = slice(batch.labelled)
    return identity_loss(outputs.logits[known], batch.targets[known], batch.recipe.label_smoothing)


def _triplet(batch: TrainingBatch, outputs: Outputs) -> Tensor:
    known = slice(batch.labelled)
    features, targets, modalities = outputs.features[known], batch.targets[known], _positive_modalities(batch)
    margin = batch.recipe.triplet_margin
    if margin == "weighted" or margin == "weighted_squared":
        return weighted_triplet(features, targets, modalities, squared=margin == "weighted_squared")
    return batch_hard_triplet(features, targets, margin, modalities)


def _triplet_weight(recipe: Train, epoch: float) -> float:
    return recipe.triplet_weight * ramp(epoch, start=recipe.triplet_start, length=recipe.triplet_ramp)


def _contrastive(batch: TrainingBatch, outputs: Outputs) -> Tensor:
    known = slice(batch.labelled)
    return contrastive_loss(outputs.neck[known], batch.targets[known], modalities=_positive_modalities(batch))


def _contrastive_weight(recipe: Train, _epoch: float) -> float:
    return recipe.contrast_weight


def _anti_collapse(batch: TrainingBatch, outputs: Outputs) -> Tensor:
    clean, margin = len(outputs.features) - batch.attacked, batch.recipe.triplet_margin
    if margin == "weighted" or margin == "weighted_squared":  # reid.config refuses it
        raise ConfigError(f'train.triplet_margin = "{margin}" is no margin of an anti-collapse triplet')
    return anti_collapse_triplet(outputs.features[:clean], outputs.features[clean:], batch.targets[:clean], margin)


def _positive_modalities(batch: TrainingBatch) -> Tensor | None:
    """The modality of each labelled image if positives must be of another modality, else None."""
    return batch.modalities[: batch.labelled] if batch.recipe.positives == "cross_modality" else None


def _unlabelled_entropy(batch: TrainingBatch, outputs: Outputs) -> Tensor:
    return entropy_loss(outputs.logits[batch.labelled :])


def _unlabelled_consensus(batch: TrainingBatch, outputs: Outputs) -> Tensor:
    first, second = outputs.logits[batch.labelled :].chunk(2)
    return consensus_loss(first, second)


# The losses on unlabelled images were published for tasks whose target has the classes of the source. The identities
# of another site are others than those of the training, so for re-identification these losses ask for certainty about
# a question without an answer.
TERMS: dict[str, Term] = {
    "identity": Term(_identity),
    "triplet": Term(_triplet, _triplet_weight),
    "contrastive": Term(_contrastive, _contrastive_weight),
    "latent_entropy": Term(LatentDomainEntropy, 0.1),  # Mancini et al. 2018
    "gate": Term(GateCrossEntropy),
    "isw": Term(SelectiveWhitening, 0.6),  # the weight of RobustNet
    "dual_causality": Term(DualCausality),
    "anti_collapse": Term(_anti_collapse, defence="anti_collapse"),  # Zhou et al. 2021
    "entropy": Term(_unlabelled_entropy, 0.1, on_unlabelled=True),  # Carlucci et al. 2017 (AutoDIAL), for AlexNet
    "mec": Term(_unlabelled_consensus, 0.1, on_unlabelled=True, views=2),  # Roy et al. 2019 (DWT)
}


def target_losses() -> tuple[str, ...]:
    """Name the losses on unlabelled images that an experiment may choose.

    Example:
        >>> target_losses()
        ('entropy', 'mec')
    """
    return tuple(name for name, term in TERMS.items() if term.on_unlabelled)


class Objective:
    """The terms of :data:`TERMS` that one training uses.

    Args:
        network: The network that is trained; terms that are bound to layers look for them in it.
        recipe: The recipe of the training.
        target_loss: The name of the loss on unlabelled images; "" for none.
        defence: The method of defence of the training.

    Attributes:
        views: How often an unlabelled image must stand in a batch.
    """

    def __init__(self, network: nn.Module, recipe: Train, target_loss: str = "", defence: str = "none") -> None:
        self._network, self._recipe = network, recipe
        self._layer_objectives: dict[str, LayerObjective] = {}
        self._losses: dict[str, TermFunction] = {}
        self._weights: dict[str, float | WeightSchedule] = {}
        self.views = TERMS[target_loss].views if target_loss else 1
        for name, term in TERMS.items():
            if term.on_unlabelled:
                if name == target_loss:
                    self._add("target", term)
            elif term.defence in ("", defence):
                self._add(name, term)

    def _add(self, name: str, term: Term) -> None:
        loss = term.loss
        if isinstance(loss, type):
            layers = loss(self._network)
            if not layers.applies:
                return
            self._layer_objectives[name] = layers
            self._losses[name] = lambda batch, outputs: layers.loss(batch, outputs.observed[name])
        else:
            self._losses[name] = loss
        self._weights[name] = term.weight

    def weights(self, epoch: float) -> dict[str, float]:
        """Return the weight of every term at a fractional epoch, counted from 0.0."""
        return {
            name: weight(self._recipe, epoch) if callable(weight) else weight for name, weight in self._weights.items()
        }

    def refuse_layer_losses(self) -> None:
        """Refuse to train in several processes with losses on values of layers, each of which has only its own rows.

        Raises:
            ConfigError: There is such a loss.
        """
        for name in self._layer_objectives:
            raise ConfigError(
                f'the loss "{name}" of this norm.system needs all rows in one process; train without torchrun'
            )

    def prepare(self, views: Callable[[], Views]) -> None:
        """Measure before an epoch what the terms need; see :meth:`LayerObjective.prepare`."""
        for layers in self._layer_objectives.values():
            layers.prepare(self._network, views)

    @contextmanager
    def observe(self) -> Iterator[dict[str, Any]]:
        """Collect what the terms observe in a forward pass inside the ``with`` block.

        The dictionary is filled at the end of the block, by the names of the terms, in the order of the batch's rows.
        """
        found: dict[str, Any] = {}
        with ExitStack() as stack:
            values = {name: stack.enter_context(layers.observe()) for name, layers in self._layer_objectives.items()}
            yield found
        found.update(values)

    def terms(self, batch: TrainingBatch, outputs: Outputs) -> dict[str, Tensor]:
        """Compute every term of a batch, each a scalar without its weight."""
        return {name: loss(batch, outputs) for name, loss in self._losses.items()}


def total_loss(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum the terms by their weights, in the order of the table.

    Example:
        >>> import torch
        >>> losses = {"identity": torch.tensor(2.0), "triplet": torch.tensor(3.0)}
        >>> total_loss(losses, {"identity": 1.0, "triplet": 0.5})
        tensor(3.5000)
    """
    weighted = [weights[name] * term for name, term in terms.items()]
    loss = weighted[0]
    for term in weighted[1:]:
        loss = loss + term
    return loss
