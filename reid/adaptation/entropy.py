"""Lower the entropy of each crop's similarities to its neighbours, by the scales and shifts of the norms only.

Tent (Wang et al., ICLR 2021) lowers the entropy of class probabilities, but the identities of a new site are not among
the classes of the training.  TEMP (Adachi et al., IJCNN 2024, arXiv 2403.14114) asks the gallery instead: the
probabilities are the softmax over the similarities to the most similar crops.  Three guards keep the fit from running
away: only crops with a low entropy count (SAR, Niu et al., ICLR 2023; EATA, Niu et al., ICML 2022), the scales and
shifts are held near their first values (EATA), and they return there after a number of steps or where the entropy
collapses (RDumb, Press et al., NeurIPS 2023; SAR).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from reid.adaptation.site_network import SiteNetwork
from reid.data.loading import Progress
from reid.errors import ConfigError
from reid.norm.specialised.tent import batch_norms

NEIGHBOURS = 50
TEMPERATURE = 0.05  # with TEMP's 1, all entropies of cosines are within a hundredth of their maximum
BATCH = 16
LEARNING_RATE = 3.5e-4
ANCHOR = 1e-4  # weight of the squared distance from the first scales and shifts
RELIABLE = 0.4  # of the largest entropy, ln k; crops above do not count
COLLAPSED = 0.2  # mean entropy below which the fit returns to its start
RESET_EVERY = 1000  # steps


def neighbour_entropy(embeddings: Tensor, gallery: Tensor, own: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Compute the entropy of each embedding's similarities to its nearest crops.

    Args:
        embeddings: (B, D) float32, unit rows.
        gallery: (N, D) float32, unit rows.
        own: (B,) int64, the row of the gallery that is the crop itself and does not count.
        neighbours: How many of the most similar crops count.

    Returns:
        (B,) float32, 0..ln k.

    Example:
        >>> gallery = torch.eye(3)
        >>> round(neighbour_entropy(gallery[:1], gallery, torch.tensor([0])).item(), 4)  # log 2
        0.6931
    """
    scores = embeddings @ gallery.T / TEMPERATURE
    scores = scores.scatter(1, own[:, None], -torch.inf)
    highest = scores.topk(min(neighbours, len(gallery) - 1), dim=1).values
    return -(highest.softmax(1) * highest.log_softmax(1)).sum(1)


def fit_entropy(site: SiteNetwork, epochs: int, seed: int, progress: Progress | None = None) -> int:
    """Fit the scales and shifts of the norms of a site's network; everything else stays.

    Statistics and the gallery's embeddings are measured again before every epoch and after the last one.

    Args:
        site: The network and the crops; the network changes.
        epochs: How often every crop is used.
        seed: Decides the order of the crops.
        progress: Is called with units of work done.

    Returns:
        How often the fit returned to its start.

    Raises:
        ConfigError: The network has no norm whose scale or shift may be learnt.
    """
    affine = _train_only_affine(site.network)
    fit = _AnchoredFit(affine)
    random = np.random.default_rng(seed)
    for epoch in range(epochs):
        site.measure(seed + epoch, progress)
        gallery = torch.from_numpy(site.embed(progress))
        site.network.eval()
        rows = random.permutation(len(site.crops))
        for batch in np.array_split(rows, -(-len(rows) // BATCH)):
            with torch.enable_grad():
                embeddings = site.run(site.images(batch), site.crops.domain[torch.from_numpy(batch)])
                fit.step(neighbour_entropy(embeddings, gallery, torch.from_numpy(batch)))
            if progress is not None:
                progress(3 * len(batch))
    site.measure(seed + epochs, progress)
    return fit.resets


class _AnchoredFit:
    """Adam on some parameters that stay near their first values and return to them."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters, self.resets, self._steps = parameters, 0, 0
        self._first = [parameter.detach().clone() for parameter in parameters]
        self._begin()

    def _begin(self) -> None:
        self._optimizer = torch.optim.Adam(self.parameters, LEARNING_RATE)
        self._mean: float | None = None

    def step(self, entropy: Tensor) -> None:
        """Lower the entropies (B,) that are reliable."""
        limit = RELIABLE * math.log(NEIGHBOURS)
        kept = entropy[entropy.detach() <= limit]
        if len(kept):
            loss = kept.mean()
            for parameter, first in zip(self.parameters, self._first, strict=True):
                loss = loss + ANCHOR * (parameter - first).square().sum()
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        now = float(entropy.detach().mean())
        self._mean = now if self._mean is None else 0.9 * self._mean + 0.1 * now
        self._steps += 1
        if self._mean < COLLAPSED or self._steps % RESET_EVERY == 0:
            self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Return to the first values."""
        for parameter, first in zip(self.parameters, self._first, strict=True):
            parameter.copy_(first)
        self.resets += 1
        self._begin()


def _train_only_affine(network: nn.Module) -> list[nn.Parameter]:
    """Make the scales and shifts of the norms trainable, and nothing else; return them."""
    trainable = {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
    network.requires_grad_(False)
    found = [
        parameter
        for layer in batch_norms(network).values()
        for parameter in layer.parameters(recurse=False)
        if id(parameter) in trainable
    ]
    for parameter in found:
        parameter.requires_grad_(True)
    if not found:
        raise ConfigError("entropy: the network has no BatchNorm whose scale or shift may be learnt; use cluster")
    return found
