"""Instance selective whitening during a training: which maps, measured how, how much they are punished.

Knows the layers of ``reid.norm`` and the loss of ``reid.training.alignment``; nothing of batches or epochs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from reid.norm import Given
from reid.norm.convert import norm_layers
from reid.norm.domain_batchnorm import DomainBatchNorm
from reid.norm.statistics_source import Blend
from reid.training.alignment import covariance_mask, isw_loss, photometric_sensitivity

LAYERS = 3  # the first ones, as published: stem to second stage

Maps = dict[str, Tensor]


class SelectiveWhitening:
    """The ISW loss (Choi et al., CVPR 2021) on the instance-normalized channels of the first layers of an IBN network.

    Which covariances carry style is measured by :meth:`measure` from images and jittered copies of them.
    """

    def __init__(self, network: nn.Module) -> None:
        blended = {
            name: layer
            for name, layer in norm_layers(network).items()
            if isinstance(layer, DomainBatchNorm)
            and isinstance(layer.source, Blend)
            and not isinstance(layer.source.gate, nn.Parameter)
        }
        self._layers = dict(list(blended.items())[:LAYERS])
        self._masks: dict[str, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[Maps]:
        """The maps (B, C', H, W) that the layers normalize by image in the forward passes inside the ``with``."""
        found: Maps = {}

        def keep(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            gate = layer.source.gate  # type: ignore[union-attr]
            found[name] = inputs[0][:, gate == 0]

        hooks = [layer.register_forward_pre_hook(partial(keep, name)) for name, layer in self._layers.items()]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def measure(self, network: nn.Module, pairs: Iterable[tuple[Tensor, Tensor, Tensor | None]]) -> None:
        """Find the covariances that carry style.

        ``pairs``: batches of images, their jittered copies row for row, and the domain of each row or None.
        """
        seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self._layers}
        for *views, domains in pairs:
            maps = []
            for images in views:
                with self.watching() as found:
                    Given(network)(images, domains)
                maps.append(found)
            for name in seen:
                seen[name].append((maps[0][name], maps[1][name]))
        self._masks = {name: covariance_mask(photometric_sensitivity(views)) for name, views in seen.items()}

    def loss(self, maps: Maps) -> Tensor:
        """The mean over the layers; a scalar >= 0."""
        return torch.stack([isw_loss(maps[name], mask) for name, mask in self._masks.items()]).mean()
