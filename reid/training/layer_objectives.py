"""Losses that are bound to layers of a network.

Each class finds its layers in a network. Its ``observe`` collects values of them in a forward pass, and its ``loss``
turns the values of a batch into a scalar.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reid.norm import Given, system_of
from reid.norm.assignment import DomainGate, gate_logits, gate_loss
from reid.norm.batchnorm_layer import DomainBatchNorm
from reid.norm.condition import DomainBranch, in_callers_order
from reid.norm.convert import norm_layers
from reid.norm.specialised.generalization import SNR, dual_causality_loss
from reid.norm.statistics_source import Blend
from reid.training.batches import TrainingBatch
from reid.training.losses import entropy_loss, isw_loss
from reid.training.style_covariances import covariance_mask, photometric_sensitivity

WHITENED_LAYERS = 3  # ISW works on the first layers, as published: from the stem to the second stage
# For the second and the third stage of a ResNet, where system "snr" has its layers: 0.1 early, 0.5 late, as Jin et al.
# (CVPR 2020) are remembered to weigh the stages; not checked against their text.
CAUSALITY_WEIGHTS = (0.1, 0.5)

Views = Iterable[tuple[Tensor, Tensor, Tensor | None]]


class LayerObjective(ABC):
    """A loss on values of the layers of one network.

    Attributes:
        applies: Whether the network has the layers that the loss needs.
    """

    applies: bool

    @abstractmethod
    def observe(self) -> AbstractContextManager[Any]:
        """Collect the values of the layers in the forward passes inside the ``with`` block."""

    @abstractmethod
    def loss(self, batch: TrainingBatch, values: Any) -> Tensor:
        """Compute the loss, a scalar, from what :meth:`observe` collected of the batch, in the order of its rows."""

    def prepare(self, network: nn.Module, views: Callable[[], Views]) -> None:  # noqa: B027 (few need it)
        """Measure before an epoch what the loss needs; most losses need nothing.

        Args:
            network: The network that is trained.
            views: Gives batches of images (B, 3, H, W) as they are, the same images with other colours, row for row,
                and the domain (B,) of each row or None.
        """


@contextmanager
def _hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Keep the hooks of ``handles`` during the ``with`` block and remove them afterwards."""
    kept = list(handles)
    try:
        yield
    finally:
        for handle in kept:
            handle.remove()


class LatentDomainEntropy(LayerObjective):
    """The entropy of the domains that a branch of the network guesses (Mancini et al. 2018)."""

    def __init__(self, network: nn.Module) -> None:
        self._branches = [module for module in network.modules() if isinstance(module, DomainBranch)]
        self.applies = bool(self._branches)

    @contextmanager
    def observe(self) -> Iterator[list[Tensor]]:
        """Collect the weights (B, G) of the domains; ``Given`` asks the first branch for them."""
        found: list[Tensor] = []
        with _hooked(
            [self._branches[0].register_forward_hook(lambda _branch, _inputs, weights: found.append(weights))]
        ):
            yield found

    def loss(self, batch: TrainingBatch, values: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        """Compute the mean entropy of the weights (B, G), a scalar >= 0."""
        (guessed,) = values
        return entropy_loss(guessed.clamp_min(1e-12).log())


class GateCrossEntropy(LayerObjective):
    """The cross-entropy that teaches the gates of the norms the domains (Gated BN, Liu et al. 2020)."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.applies = any(isinstance(module, DomainGate) for module in network.modules())

    def observe(self) -> AbstractContextManager[list[Tensor]]:
        """Collect the logits (B, G) of every gate."""
        return gate_logits(self._network)

    def loss(self, batch: TrainingBatch, values: Sequence[Tensor]) -> Tensor:
        """Compute the mean over the gates, a scalar >= 0. Without known domains the gates have nothing to learn: 0."""
        if batch.domain is None:
            return values[0].new_zeros(())
        rows = batch.rows_by_domain()
        return gate_loss([logits[rows] for logits in values], batch.domain[rows])


class SelectiveWhitening(LayerObjective):
    """The loss of instance selective whitening (ISW; Choi et al., CVPR 2021) on the first layers of an IBN network.

    It sees the channels that these layers normalize by image. :meth:`prepare` measures which covariances carry style.
    """

    def __init__(self, network: nn.Module) -> None:
        blended = {
            name: layer
            for name, layer in norm_layers(network).items()
            if isinstance(layer, DomainBatchNorm)
            and isinstance(layer.source, Blend)
            and not isinstance(layer.source.gate, nn.Parameter)
        }
        self._layers = dict(list(blended.items())[:WHITENED_LAYERS])
        self._masks: dict[str, Tensor] = {}
        # The systems "ibn" and "isw" have the same layers; only "isw" has the loss.
        self.applies = any(system_of(module) == "isw" for module in network.modules())

    @contextmanager
    def observe(self) -> Iterator[dict[str, Tensor]]:
        """Collect the maps (B, C', H, W) that the layers normalize by image, by the names of the layers."""
        found: dict[str, Tensor] = {}

        def keep(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            gate = layer.source.gate  # type: ignore[union-attr]
            found[name] = in_callers_order(inputs[0][:, gate == 0])

        with _hooked(layer.register_forward_pre_hook(partial(keep, name)) for name, layer in self._layers.items()):
            yield found

    @torch.no_grad()
    def prepare(self, network: nn.Module, views: Callable[[], Views]) -> None:
        """Find the covariances that carry style, with the network in evaluation mode.

        They are measured before every epoch (published: once), so that a resumed training needs no state for them.
        """
        network.eval()
        maps: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self._layers}
        for plain, jittered, domain in views():
            with self.observe() as of_plain:
                Given(network)(plain, domain)
            with self.observe() as of_jittered:
                Given(network)(jittered, domain)
            for name, pairs in maps.items():
                pairs.append((of_plain[name], of_jittered[name]))
        self._masks = {name: covariance_mask(photometric_sensitivity(pairs)) for name, pairs in maps.items()}

    def loss(self, batch: TrainingBatch, values: dict[str, Tensor]) -> Tensor:  # noqa: ARG002
        """Compute the mean over the layers, a scalar >= 0."""
        return torch.stack([isw_loss(values[name], mask) for name, mask in self._masks.items()]).mean()


class DualCausality(LayerObjective):
    """The dual causality loss (Jin et al., CVPR 2020) on the SNR layers of a network, in their order."""

    def __init__(self, network: nn.Module) -> None:
        self._layers = [layer for layer in network.modules() if isinstance(layer, SNR)]
        self.applies = bool(self._layers)

    @contextmanager
    def observe(self) -> Iterator[list[Tensor]]:
        """Collect the inputs (B, C, H, W) of the layers."""
        found: list[Tensor] = []
        with _hooked(
            layer.register_forward_pre_hook(lambda _, inputs: found.append(in_callers_order(inputs[0])))
            for layer in self._layers
        ):
            yield found

    def loss(self, batch: TrainingBatch, values: Sequence[Tensor]) -> Tensor:
        """Compute the weighted sum over the layers, a scalar > 0, of the labelled images."""
        rows = batch.rows_by_domain()
        rows = rows[rows < batch.labelled]
        restored = [layer.restitute(x[rows].float()) for layer, x in zip(self._layers, values, strict=True)]
        losses = [dual_causality_loss(parts, batch.targets[rows]) for parts in restored]
        return torch.stack([weight * loss for weight, loss in zip(CAUSALITY_WEIGHTS, losses, strict=False)]).sum()
