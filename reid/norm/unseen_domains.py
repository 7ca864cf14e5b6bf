"""An image of a domain the network does not know: what to do is a choice, never an accident.

"error" refuses; "prior" adds a domain with the mixture of all statistics; "nearest" takes for every image
the domain whose statistics are most like the image's; "mixture" takes all domains and averages what they
say.  The best answer is none of these but a few dozen images and :func:`reid.norm.calibrate`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConditionError, ConfigError, unknown_name
from reid.norm.condition import Given
from reid.norm.convert import NormLayer, add_domain, domains_of, norm_layers, system_of
from reid.norm.domain_batchnorm import DomainBatchNorm
from reid.norm.statistics import Stats, moments
from reid.norm.statistics_source import Source

UNKNOWN = "unknown"
UNKNOWN_DOMAIN = -1  # label of an image of a domain that the network does not know


def with_source(network: nn.Module, source: Source) -> nn.Module:
    """A copy of a converted network whose layers take their statistics from ``source``, in evaluation too.

    ``with_source(network, Prior(16))`` is Schneider et al. 2020, ``with_source(network, Batch())`` Nado et al. 2020.
    """
    copied = copy.deepcopy(network)
    for name, layer in norm_layers(copied).items():
        if not isinstance(layer, DomainBatchNorm) or not layer.source.kept or layer.source.mixes:
            raise ConfigError(
                f'{name}: a layer of norm system "{system_of(network)}" has statistics of its own kind; only plain'
                " BatchNorm per domain can take others"
            )
        layer.source = copy.deepcopy(source)
    return copied


def domain_distances(network: nn.Module, images: Tensor) -> Tensor:
    """How unlike each domain's statistics the images are: (B, G), smaller is more alike.

    D_ig = sum over the layers on maps of |m_i - mu_g|^2 + |s_i - sigma_g|^2, with the moments of image i in the
    network of domain g: squared 2-Wasserstein distances of diagonal Gaussians (Segu et al. 2020, "Batch
    normalization embeddings").  ``network`` is converted and in evaluation mode.
    """
    return _by_domain(network, images)[0]


def domain_weights(distances: Tensor) -> Tensor:
    """Distances (B, G) -> weights (B, G), rows sum to 1, inverse to the distances; at distance 0 all the weight."""
    return functional.normalize(1 / distances.clamp_min(1e-12), p=1, dim=1)


def mixture(network: nn.Module, images: Tensor, weights: Tensor | None = None) -> Tensor:
    """Embeddings (B, D) of unit length: those of every domain, weighed and added.

    ``weights`` (B, G); by default those of the distances (Segu et al. 2020).  Equal ones are the ensemble of
    DSON (Seo et al. 2020), on embeddings in place of logits.
    """
    distances, outputs = _by_domain(network, images)
    parts = domain_weights(distances) if weights is None else weights
    added = (parts.T[:, :, None] * functional.normalize(outputs, dim=2)).sum(0)
    return functional.normalize(added, dim=1)


def nearest(network: nn.Module, images: Tensor) -> Tensor:
    """Embeddings (B, D) of the images, each in the domain it is most like."""
    labels = domain_distances(network, images).argmin(1)
    output: Tensor = Given(network)(images, labels)
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


def answer(network: nn.Module, images: Tensor, labels: Tensor | int, policy: str) -> Tensor:
    """Outputs (B, D) of images (B, 3, H, W), each in the domain of its label, strangers by ``policy`` of UNSEEN.

    ``labels`` (B,) int64, or one int for all, index the network's domains or are STRANGER.  No image depends on
    the others of its batch.
    """
    if policy not in UNSEEN_DOMAIN_ANSWERS:
        raise ConfigError(unknown_name("policy for an unknown domain", policy, UNSEEN_DOMAIN_ANSWERS))
    rows = torch.as_tensor(labels).expand(len(images))
    strange = rows == UNKNOWN_DOMAIN
    outputs: Tensor | None = None
    for chosen in (strange, ~strange):
        if not chosen.any():
            continue
        part = (
            UNSEEN_DOMAIN_ANSWERS[policy](network, images[chosen])
            if chosen is strange
            else Given(network)(images[chosen], rows[chosen])
        )
        outputs = part.new_empty(len(images), part.shape[1]) if outputs is None else outputs
        outputs[chosen] = part
    if outputs is None:
        raise ConditionError("no images to answer for")
    return outputs


def _by_domain(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (B, G) and the outputs (G, B, D) of the network as each of its domains."""
    domains = domains_of(network)
    if not domains:
        raise ConditionError("a network without domains has none to compare an image with; convert and calibrate it")
    if network.training:
        raise ConditionError("domain distances need the kept statistics as they are: call network.eval() first")
    found: list[Tensor] = []

    def collect(row: int, layer: NormLayer, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        if x.dim() < 3:
            return  # a vector has no variance of its own
        mean, var = moments(x[(...,) + (None,) * (4 - x.dim())])
        kept = layer.kept(row)
        image = Stats(mean, var, torch.ones_like(mean[:, 0]))
        found[row] = found[row] + image.wasserstein(kept)

    distances, outputs = [], []
    for row in range(len(domains)):
        found.append(images.new_zeros(len(images)))
        hooks = [layer.register_forward_pre_hook(partial(collect, row)) for layer in norm_layers(network).values()]
        try:
            outputs.append(Given(network)(images, row))
        finally:
            for hook in hooks:
                hook.remove()
        distances.append(found[row])
    return torch.stack(distances, 1), torch.stack(outputs)
