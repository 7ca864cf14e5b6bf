"""Who makes the statistics of each domain, and whose statistics normalize each image.

An :class:`Assignment` says it for one batch: by labels, by weights, or by what a small gate sees in the
images.  It knows nothing of how statistics are kept or used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConditionError
from reid.norm.condition import Condition, DomainBranch, in_callers_order
from reid.norm.statistics import Stats, pool, pool_softly
from reid.norm.synchronize import synchronized


@dataclass(frozen=True)
class Assignment:
    """B images and G domains.

    ``members`` say whose images make a domain's statistics, ``users`` whose statistics normalize an
    image: each either int64 labels (B,) or weights (B, G) >= 0 with rows that sum to 1.  ``everywhere``:
    the members are those of all processes, see :func:`~reid.norm.synchronize.synchronized`.
    """

    members: Tensor
    users: Tensor
    groups: int
    everywhere: bool = False

    def pool(self, mean: Tensor, var: Tensor) -> Stats:
        """The moments of every domain, from those of the images, (B, C) each."""
        if self.members.is_floating_point():
            batch = pool_softly(mean, var, self.members.to(mean.dtype))
        else:
            batch = pool(mean, var, self.members, self.groups)
        return synchronized(batch) if self.everywhere else batch

    def rows(self, table: Tensor) -> Tensor:
        """What images take from a table (G, C): (B, 1, C) by label, (1, G, C) when every image uses all."""
        return table[None] if self.users.is_floating_point() else table[self.users].unsqueeze(1)

    def weights(self) -> Tensor:
        """The part (B, K, 1) that each of the :meth:`rows` has in the output; (1, 1, 1) by label."""
        if self.users.is_floating_point():
            return self.users.unsqueeze(2)
        return torch.ones(1, 1, 1, device=self.users.device)


def assignment(condition: Condition, images: int, groups: int, device: torch.device) -> Assignment:
    """The assignment that the condition names; labels and weights serve both ways (WBN, Mancini et al. 2018)."""
    domain = condition.domain
    if not isinstance(domain, Tensor):
        domain = torch.full((images,), domain or 0, dtype=torch.int64, device=device)
    if domain.is_floating_point() and domain.shape[1] != groups:
        raise ConditionError(f"domain weights: expected (B, {groups}), a column each domain, got {tuple(domain.shape)}")
    return Assignment(domain, domain, groups)


class DomainGate(nn.Module):
    """Gated BN (Liu et al. 2020): a small network in every layer says which domain an image looks like.

    It sees the mean and the deviation of the image in every channel, so images may have any size (the
    published gate flattens a map and works for one size only).  With labels the statistics are those of
    the labelled domains, and the gate learns from :func:`gate_loss`; without, its weights do both.
    """

    row_parameters = ("layers.2.weight", "layers.2.bias")

    def __init__(self, channels: int, groups: int, hidden: int = 32) -> None:
        super().__init__()
        self.domains = groups
        self.layers = nn.Sequential(nn.Linear(2 * channels, hidden), nn.ReLU(), nn.Linear(hidden, groups))

    def forward(self, mean: Tensor, var: Tensor) -> Tensor:
        """Moments of the images (B, C), (B, C) -> logits (B, G)."""
        seen = torch.cat([mean, (var + 1e-5).sqrt()], 1)
        logits: Tensor = self.layers(seen.to(next(self.layers.parameters()).dtype))
        return logits


class LatentDomains(DomainBranch):
    """Guesses the latent domain of an image: WBN's branch (Mancini et al. 2018) on the image itself.

    Two strided convolutions, the mean over positions, a linear layer and a softmax over G domains.
    """

    def __init__(self, groups: int, width: int = 16) -> None:
        super().__init__()
        self.domains = groups
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=4, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, groups),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> weights (B, G) float32, rows sum to 1."""
        return torch.softmax(self.layers(images).float(), 1)


@contextmanager
def gate_logits(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the logits (B, G) of every gate of ``network`` inside the ``with``; rows are in the caller's order."""
    found: list[Tensor] = []
    gates = [module for module in network.modules() if isinstance(module, DomainGate)]
    hooks = [
        gate.register_forward_hook(lambda _gate, _inputs, logits: found.append(in_callers_order(logits)))
        for gate in gates
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def gate_loss(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Mean cross-entropy of all gates, each (B, G), on the labels (B,) int64: teaches them the domains."""
    return torch.stack([functional.cross_entropy(gate, labels) for gate in logits]).mean()
