"""Which images measure the statistics of each domain, and which statistics normalize each image.

An :class:`Assignment` holds both for one batch: by domain indices, by weights, or by what a small gate predicts from
the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConditionError
from reid.norm.condition import Condition, DomainBranch, in_callers_order
from reid.norm.statistics import Statistics, pool, pool_by_weights
from reid.norm.synchronize import synchronized


@dataclass(frozen=True)
class Assignment:
    """How the B images of a batch and the G domains of a layer belong together.

    Attributes:
        members: Which images measure the statistics of a domain: int64 indices (B,), or weights (B, G), at least 0,
            whose rows sum to 1.
        users: Which statistics normalize an image, in the same form.
        domain_count: G.
        across_processes: Whether the members are the images of all processes, see
            :func:`~reid.norm.synchronize.synchronized`.
    """

    members: Tensor
    users: Tensor
    domain_count: int
    across_processes: bool = False

    def pool(self, mean: Tensor, var: Tensor) -> Statistics:
        """Pool the moments of the images, (B, C) each, into the statistics of the G domains."""
        if self.members.is_floating_point():
            batch = pool_by_weights(mean, var, self.members.to(mean.dtype))
        else:
            batch = pool(mean, var, self.members, self.domain_count)
        return synchronized(batch) if self.across_processes else batch

    def look_up(self, table: Tensor) -> Tensor:
        """Look up what each image uses of a table (G, C).

        Returns:
            (B, 1, C) with domain indices; (1, G, C) with weights, since every image then uses all domains.
        """
        return table[None] if self.users.is_floating_point() else table[self.users].unsqueeze(1)

    def output_weights(self) -> Tensor:
        """Return the weight (B, K, 1) of each entry of :meth:`look_up` in the output; (1, 1, 1) with indices."""
        if self.users.is_floating_point():
            return self.users.unsqueeze(2)
        return torch.ones(1, 1, 1, device=self.users.device)


def assign(condition: Condition, images: int, domain_count: int, device: torch.device) -> Assignment:
    """Make the assignment that the condition names.

    Indices and weights serve as members and as users (WBN, Mancini et al. 2018).

    Args:
        condition: What is known about the batch.
        images: B, the number of images.
        domain_count: G, the number of domains of the layer.
        device: Where the images are.

    Returns:
        The assignment of the images.

    Raises:
        ConditionError: If weights are of another number of domains.
    """
    domain = condition.domain
    if not isinstance(domain, Tensor):
        domain = torch.full((images,), domain or 0, dtype=torch.int64, device=device)
    if domain.is_floating_point() and domain.shape[1] != domain_count:
        raise ConditionError(
            f"domain weights: expected (B, {domain_count}), a column each domain, got {tuple(domain.shape)}"
        )
    return Assignment(domain, domain, domain_count)


class DomainGate(nn.Module):
    """Gated BN (Liu et al. 2020): a small network in every layer that predicts which domain an image looks like.

    It sees the mean and the deviation of the image in every channel, so images may have any size (the published gate
    flattens a map and works for one size only).  When the domains are given, the statistics are those of the domains,
    and the gate learns from :func:`gate_loss`.  Otherwise its weights choose the statistics.

    Args:
        channels: C.
        domain_count: G.
        hidden: The width of the hidden layer.
    """

    row_parameters = ("layers.2.weight", "layers.2.bias")

    def __init__(self, channels: int, domain_count: int, hidden: int = 32) -> None:
        super().__init__()
        self.domain_count = domain_count
        self.layers = nn.Sequential(nn.Linear(2 * channels, hidden), nn.ReLU(), nn.Linear(hidden, domain_count))

    def forward(self, mean: Tensor, var: Tensor) -> Tensor:
        """Compute logits (B, G) from the moments of the images, (B, C) each."""
        features = torch.cat([mean, (var + 1e-5).sqrt()], 1)
        logits: Tensor = self.layers(features.to(next(self.layers.parameters()).dtype))
        return logits


class LatentDomains(DomainBranch):
    """The branch of WBN (Mancini et al. 2018), which predicts the latent domain of an image from its pixels.

    Two strided convolutions, the mean over positions, a linear layer and a softmax over G domains.

    Args:
        domain_count: G.
        width: The channels of the first convolution.
    """

    def __init__(self, domain_count: int, width: int = 16) -> None:
        super().__init__()
        self.domain_count = domain_count
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=4, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, domain_count),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Predict weights (B, G) float32, whose rows sum to 1, from images (B, 3, H, W)."""
        return torch.softmax(self.layers(images).float(), 1)


@contextmanager
def gate_logits(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the logits of every gate of ``network`` inside the ``with``, from the thread that opens it.

    Yields:
        A list that grows with every forward pass: (B, G) for each layer with a gate, in the order of the layers, with
        rows in the order of the images that the caller gave.
    """
    found: list[Tensor] = []
    own = get_ident()

    def collect(_gate: nn.Module, _inputs: object, logits: Tensor) -> None:
        if get_ident() == own:  # another thread may embed with the same network
            found.append(in_callers_order(logits))

    hooks = [module.register_forward_hook(collect) for module in network.modules() if isinstance(module, DomainGate)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def gate_loss(logits: Sequence[Tensor], domain: Tensor) -> Tensor:
    """Compute the mean cross-entropy of all gates, which teaches them the domains.

    Args:
        logits: What :func:`gate_logits` collected, (B, G) for each gate.
        domain: (B,) int64, the domain of each image.

    Returns:
        A scalar.
    """
    return torch.stack([functional.cross_entropy(gate, domain) for gate in logits]).mean()
