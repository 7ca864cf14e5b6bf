"""What to do with an image of a domain that the network does not know; this is always an explicit choice.

"error" refuses the image.  "prior" adds a domain with the mixture of all statistics.  "nearest" takes for every image
the domain whose statistics are most like those of the image.  "mixture" takes all domains and averages their
embeddings, with equal weight where there are no statistics to compare.  Better than each of these are a few dozen
images and :func:`reid.norm.calibrate`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConditionError, ConfigError, unknown_name
from reid.norm.batchnorm_layer import DomainBatchNorm
from reid.norm.condition import Given
from reid.norm.convert import NormLayer, add_domain, domains_of, norm_layers, system_of
from reid.norm.statistics import Statistics, as_maps, moments
from reid.norm.statistics_source import Source

UNKNOWN = "unknown"
UNKNOWN_DOMAIN = -1  # index of an image of a domain that the network does not know


def with_source(network: nn.Module, source: Source) -> nn.Module:
    """Make a network whose layers take their statistics from ``source``, in evaluation too.

    ``with_source(network, Prior(16))`` is Schneider et al. 2020, ``with_source(network, BatchStatistics())`` is Nado
    et al. 2020.

    Args:
        network: A converted network; it stays as it is.
        source: See :mod:`reid.norm.statistics_source`.

    Returns:
        A copy with this source in every layer.

    Raises:
        ConfigError: If a layer is not plain BatchNorm per domain.

    Example:
        >>> from reid.norm import camera_batchnorm, convert_norm
        >>> from reid.norm.statistics_source import Prior
        >>> network = convert_norm(nn.Sequential(nn.BatchNorm2d(4)), camera_batchnorm(["door", "yard"]))
        >>> with_source(network, Prior(16))[0].source.images
        16
    """
    copied = copy.deepcopy(network)
    for name, layer in norm_layers(copied).items():
        if not isinstance(layer, DomainBatchNorm) or not layer.source.uses_running_only or layer.source.mixes_domains:
            raise ConfigError(
                f'{name}: a layer of norm system "{system_of(network)}" has statistics of its own kind; only plain'
                " BatchNorm per domain can take others"
            )
        layer.source = copy.deepcopy(source)
    return copied


def domain_distances(network: nn.Module, images: Tensor) -> Tensor:
    """Measure how different the statistics of each image are from those of each domain.

    D_ig = sum over the layers on maps of |m_i - mu_g|^2 + |s_i - sigma_g|^2, with the moments of image i in the
    network of domain g: squared 2-Wasserstein distances of diagonal Gaussians (Segu et al. 2020, "Batch normalization
    embeddings").

    Args:
        network: A converted network in evaluation mode.
        images: (B, 3, H, W).

    Returns:
        (B, G), smaller is more alike.

    Raises:
        ConditionError: If the network has no domains or is in training.
    """
    return _run_every_domain(network, images)[0]


def domain_weights(distances: Tensor) -> Tensor:
    """Compute weights that are inverse to the distances; a domain at distance 0 gets all the weight.

    Args:
        distances: (B, G), see :func:`domain_distances`.

    Returns:
        (B, G), rows sum to 1.

    Example:
        >>> domain_weights(torch.tensor([[1.0, 3.0]])).tolist()
        [[0.75, 0.25]]
    """
    return functional.normalize(1 / distances.clamp_min(1e-12), p=1, dim=1)


def mixture(network: nn.Module, images: Tensor, weights: Tensor | None = None) -> Tensor:
    """Embed images as the weighted sum of their embeddings in every domain.

    Args:
        network: A converted network in evaluation mode.
        images: (B, 3, H, W).
        weights: (B, G); by default those of the distances (Segu et al. 2020).  Equal weights are the ensemble of DSON
            (Seo et al. 2020), on embeddings in place of logits.

    Returns:
        Embeddings (B, D) of unit length.

    Raises:
        ConditionError: If the network has no domains or is in training.
    """
    distances, outputs = _run_every_domain(network, images)
    parts = domain_weights(distances) if weights is None else weights
    added = (parts.T[:, :, None] * functional.normalize(outputs, dim=2)).sum(0)
    return functional.normalize(added, dim=1)


def nearest(network: nn.Module, images: Tensor) -> Tensor:
    """Embed each image, (B, 3, H, W) -> (B, D), in the domain whose statistics are most like those of the image.

    Raises:
        ConditionError: If the network keeps no statistics of its domains, or is in training.
    """
    if not norm_layers(network):
        raise ConditionError(
            "this network keeps no statistics of its domains, so none is nearest to an image; choose prior or mixture"
        )
    domain = domain_distances(network, images).argmin(1)
    output: Tensor = Given(network)(images, domain)
    return output


def _prior(network: nn.Module, images: Tensor) -> Tensor:
    output: Tensor = Given(add_domain(network, UNKNOWN))(images, len(domains_of(network)))
    return output


def _refuse(network: nn.Module, images: Tensor) -> Tensor:
    raise ConditionError(
        f"{len(images)} images of a domain this network does not know; it knows {', '.join(domains_of(network))}."
        f" Calibrate it on images of the new one, or choose a policy: {', '.join(UNSEEN_DOMAIN_ANSWERS)}"
    )


UNSEEN_DOMAIN_ANSWERS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "error": _refuse,
    "prior": _prior,
    "nearest": nearest,
    "mixture": mixture,
}


def check_policy(network: nn.Module, policy: str, source: str) -> None:
    """Refuse a policy that is unknown, or that needs statistics which a network with domains does not keep.

    Args:
        network: The network, plain or with domains.
        policy: A name of :data:`UNSEEN_DOMAIN_ANSWERS`.
        source: The file of the network, for the message.

    Raises:
        ConfigError: If the policy cannot be used.
    """
    if policy not in UNSEEN_DOMAIN_ANSWERS:
        raise ConfigError(unknown_name("policy for an unknown domain", policy, UNSEEN_DOMAIN_ANSWERS))
    if policy == "nearest" and domains_of(network) and not norm_layers(network):
        raise ConfigError(
            f"{source}: keeps no statistics per camera, so no camera is nearest to an image; choose prior or mixture"
        )


def answer(network: nn.Module, images: Tensor, domain: Tensor | int, policy: str) -> Tensor:
    """Run a network on images, each in its domain; ``policy`` decides about those of an unknown domain.

    The result for an image does not depend on the others of its batch.

    Args:
        network: A converted network in evaluation mode.
        images: (B, 3, H, W).
        domain: The domain of each image, (B,) int64, or one for all; :data:`UNKNOWN_DOMAIN` where it is unknown.
        policy: A name of :data:`UNSEEN_DOMAIN_ANSWERS`.

    Returns:
        Outputs (B, D).

    Raises:
        ConfigError: If the policy is unknown.
        ConditionError: If there are no images, or if the policy is "error" and a domain is unknown.
    """
    if policy not in UNSEEN_DOMAIN_ANSWERS:
        raise ConfigError(unknown_name("policy for an unknown domain", policy, UNSEEN_DOMAIN_ANSWERS))
    index = torch.as_tensor(domain).expand(len(images))
    unknown = index == UNKNOWN_DOMAIN
    outputs: Tensor | None = None
    for chosen in (unknown, ~unknown):
        if not chosen.any():
            continue
        part = (
            UNSEEN_DOMAIN_ANSWERS[policy](network, images[chosen])
            if chosen is unknown
            else Given(network)(images[chosen], index[chosen])
        )
        outputs = part.new_empty(len(images), part.shape[1]) if outputs is None else outputs
        outputs[chosen] = part
    if outputs is None:
        raise ConditionError("no images to embed")
    return outputs


def _run_every_domain(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the distances (B, G) and the outputs (G, B, D) of the network in each of its domains."""
    domains = domains_of(network)
    if not domains:
        raise ConditionError("a network without domains has none to compare an image with; convert and calibrate it")
    if network.training:
        raise ConditionError("domain distances need unchanged running statistics: call network.eval() first")
    found: list[Tensor] = []

    def collect(domain: int, layer: NormLayer, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].dim() < 3:
            return  # a vector has no variance of its own
        mean, var = moments(as_maps(inputs[0]))
        image = Statistics(mean, var, torch.ones_like(mean[:, 0]))
        found[domain] = found[domain] + image.wasserstein(layer.statistics_of(domain))

    outputs = []
    for domain in range(len(domains)):
        found.append(images.new_zeros(len(images)))
        hooks = [layer.register_forward_pre_hook(partial(collect, domain)) for layer in norm_layers(network).values()]
        try:
            outputs.append(Given(network)(images, domain))
        finally:
            for hook in hooks:
                hook.remove()
    return torch.stack(found, 1), torch.stack(outputs)
