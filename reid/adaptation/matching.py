"""Fit the first layers of a network so that the last norms see the statistics that they were trained with.

BN-statistics matching (Ishii and Sugiyama, arXiv 2101.10842) needs neither the training images nor labels: the last
stage and the neck are frozen with their stored statistics, and the layers before learn to send them activations with
these statistics.  The second term asks that every crop belongs clearly to one cluster, and all clusters are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from reid.adaptation.clusters import cluster_site
from reid.adaptation.contrast import unit_means
from reid.adaptation.site_network import SiteNetwork
from reid.data.loading import Progress
from reid.errors import ConfigError
from reid.norm import domains_of
from reid.norm.convert import NormLayer, norm_layers
from reid.norm.statistics import as_maps

BATCH = 32
STEPS = 20  # in an epoch
LEARNING_RATE, SGD_MOMENTUM = 1e-3, 0.9
INFORMATION_WEIGHT = 0.1
TEMPERATURE = 0.05


def gaussian_divergence(mean: Tensor, var: Tensor, stored_mean: Tensor, stored_var: Tensor) -> Tensor:
    """Compute the mean over channels of KL(N(mean, var) || N(stored_mean, stored_var)).

    Args:
        mean: (C,) float32, of the batch.
        var: (C,) float32, of the batch, above 0.
        stored_mean: (C,) float32.
        stored_var: (C,) float32, above 0.

    Returns:
        A scalar, 0 where the statistics are equal.

    Example:
        >>> one = torch.ones(2)
        >>> gaussian_divergence(one, one, one, one).item(), gaussian_divergence(2 * one, one, one, one).item()
        (0.0, 0.5)
    """
    ratio = (var + (mean - stored_mean).square()) / stored_var
    return 0.5 * (stored_var.log() - var.log() + ratio - 1).mean()


def information_loss(logits: Tensor) -> Tensor:
    """Compute the mean entropy of each row's probabilities less the entropy of their mean; (B, K) -> scalar.

    Example:
        >>> round(information_loss(torch.tensor([[99.0, 0.0], [0.0, 99.0]])).item(), 3)
        -0.693
    """
    probabilities = logits.softmax(1)
    mean = probabilities.mean(0)
    return -(probabilities * logits.log_softmax(1)).sum(1).mean() + (mean * mean.clamp_min(1e-12).log()).sum()


def frozen_norms(network: nn.Module) -> dict[str, NormLayer]:
    """Find the norms that keep their statistics: those of the neck and of the last stage of the backbone that has any.

    Raises:
        ConfigError: The network has no norms before them, so nothing could be fitted.
    """
    layers = norm_layers(network)
    stages = [name.split(".")[1] for name in layers if name.startswith("backbone.")]
    found = {
        name: layer
        for name, layer in layers.items()
        if not name.startswith("backbone.") or name.split(".")[1] == stages[-1]
    }
    if not stages or len(found) == len(layers):
        raise ConfigError("matching: the network has no BatchNorm in two stages; use cluster or statistics")
    return found


def fit_statistics(site: SiteNetwork, epochs: int, seed: int, progress: Progress | None = None) -> None:
    """Fit the layers before the frozen norms to the stored statistics; each batch is of one camera.

    Args:
        site: The network and the crops, not measured yet, so that its statistics are the stored ones; it changes.
        epochs: Epochs of 20 steps.
        seed: Decides the crops of the batches.
        progress: Is called with units of work done.
    """
    network, frozen = site.network, frozen_norms(site.network)
    _freeze(network, frozen)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], LEARNING_RATE, SGD_MOMENTUM)
    centroids = _centroids(site, progress)
    random = np.random.default_rng(seed)
    domain = site.crops.domain.numpy()
    for _ in range(epochs * STEPS):
        rows = np.flatnonzero(domain == random.integers(len(domains_of(network))))
        batch = random.permutation(rows)[:BATCH]
        _set_mode(network, frozen)
        with _watched(frozen, int(domain[batch[0]])) as divergences, torch.enable_grad():
            embeddings = site.run(site.images(batch), site.crops.domain[torch.from_numpy(batch)])
        loss = torch.stack(divergences).mean()
        if centroids is not None:
            loss = loss + INFORMATION_WEIGHT * information_loss(embeddings @ centroids.T / TEMPERATURE)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if progress is not None:
            progress(3 * len(batch))
    site.measure(seed, progress, keep=tuple(frozen))


def _centroids(site: SiteNetwork, progress: Progress | None) -> Tensor | None:
    """The centroids of the clusters of the crops as the network is now; None where there are fewer than two."""
    vectors = site.embed(progress)
    labels = cluster_site(vectors, site.crops, np.unique(site.crops.groups).tolist()).labels
    count = int(labels.max(initial=-1)) + 1
    return torch.from_numpy(unit_means(vectors, labels, count)) if count > 1 else None


def _freeze(network: nn.Module, frozen: dict[str, NormLayer]) -> None:
    """Freeze the stage that the frozen norms stand in, and all that follows the backbone."""
    for name, parameter in network.named_parameters():
        stage = ".".join(name.split(".")[:2])
        if not name.startswith("backbone.") or any(f"{layer}.".startswith(f"{stage}.") for layer in frozen):
            parameter.requires_grad_(False)


def _set_mode(network: nn.Module, frozen: dict[str, NormLayer]) -> None:
    """Let all norms use the statistics of the batch, without moving those they keep, and the frozen ones the stored."""
    network.eval()
    for name, layer in norm_layers(network).items():
        layer.momentum = 0.0
        layer.train(name not in frozen)


@contextmanager
def _watched(frozen: dict[str, NormLayer], domain: int) -> Iterator[list[Tensor]]:
    """Collect how far the inputs of the frozen norms are from the statistics that they store for a domain."""
    found: list[Tensor] = []

    def collect(layer: NormLayer, inputs: tuple[Tensor]) -> None:
        maps = as_maps(inputs[0])
        var, mean = torch.var_mean(maps, dim=(0, 2, 3), correction=0)
        stored = layer.statistics_of(domain)
        diagonal = getattr(stored, "var", None)
        if diagonal is not None:
            target = stored.mean[0].clone(), diagonal[0] + layer.eps
            found.append(gaussian_divergence(mean, var + layer.eps, *target).cpu())

    hooks = [layer.register_forward_pre_hook(collect) for layer in frozen.values()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
