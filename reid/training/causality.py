"""The dual causality loss of SNR during a training: which layers, how much each counts.

Knows the layers and the loss of ``reid.norm.specialised.generalization``; nothing of batches or epochs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from reid.norm.specialised.generalization import SNR, dual_causality_loss

# For the second and the third stage of a ResNet, where system "snr" has its layers: 0.1 early, 0.5 late, as Jin et al.
# (CVPR 2020) are remembered to weigh the stages; not checked against their text.
WEIGHTS = (0.1, 0.5)


class DualCausality:
    """The dual causality loss (Jin et al., CVPR 2020) on the SNR layers of a network, in their order."""

    def __init__(self, network: nn.Module) -> None:
        self._layers = [layer for layer in network.modules() if isinstance(layer, SNR)]

    @contextmanager
    def watching(self) -> Iterator[list[Tensor]]:
        """The inputs (B, C, H, W) of the layers in the forward passes inside the ``with``."""
        found: list[Tensor] = []
        hooks = [layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])) for layer in self._layers]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    def loss(self, maps: Sequence[Tensor], identities: Tensor) -> Tensor:
        """The weighted sum over the layers, a scalar > 0; ``identities`` (B,) int64 in the order of the maps' rows."""
        restored = [layer.restitute(x.float()) for layer, x in zip(self._layers, maps, strict=True)]
        losses = [dual_causality_loss(parts, identities) for parts in restored]
        return torch.stack([weight * loss for weight, loss in zip(WEIGHTS, losses, strict=False)]).sum()
