"""Tent (Wang et al., ICLR 2021): fit the scales and shifts of the norms to unlabelled images of a test site.

The caller chooses the objective on the outputs of the network; Tent's own is the entropy of class logits.  The norms
use the statistics of each batch during the fit; measure running statistics afterwards (:func:`reid.norm.calibrate`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from reid.errors import ConfigError, DataError
from reid.norm.condition import Domain, Given
from reid.norm.convert import PLAIN_NORMS, NormLayer

Objective = Callable[[Tensor], Tensor]


def adapt(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Domain]],
    objective: Objective,
    learning_rate: float = 1e-3,
) -> nn.Module:
    """Lower an objective by steps on the scales and shifts of the norms, one step of Adam for each batch.

    The entropy of logits needs images of the classes that the logits stand for.  Identities of another site are not
    among them; use the entropy of similarities to images of the site there, divided by a temperature (Adachi et al.,
    arXiv 2403.14114).  Embed queries and gallery with the same copy, calibrated on the site.

    Args:
        network: A plain or a converted network.  It does not change, so starting from it again is the reset that Tent
            needs now and then.
        batches: Images (B, 3, H, W), at least 2 in a batch, with their domain as :class:`Given` takes it, None for a
            plain network.
        objective: Computes a scalar of the network's outputs.
        learning_rate: The step size of Adam.

    Returns:
        A copy of the network with other scales and shifts; frozen ones (the shift of a BNNeck) stay, and so does
        everything else.

    Raises:
        ConfigError: If no norm has a scale or shift to learn, or the objective is not a scalar of the outputs.
        DataError: If a batch has one image or the objective is not finite.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        >>> adapted = adapt(network, [(torch.randn(2, 3, 4, 4), None)], lambda maps: maps.square().mean())
        >>> torch.equal(adapted[1].weight, network[1].weight), torch.equal(adapted[0].weight, network[0].weight)
        (False, True)
    """
    working = copy.deepcopy(network).eval()
    fitted = _train_only_affine(working)
    optimizer = torch.optim.Adam(list(fitted.values()), learning_rate)
    given = Given(working)
    with torch.enable_grad():
        for number, (images, domain) in enumerate(batches, 1):
            if len(images) < 2:
                raise DataError(
                    f"adapt: batch {number} has {len(images)} images; statistics of a batch need at least 2"
                )
            loss = objective(given(images, domain))
            if not isinstance(loss, Tensor) or loss.dim() or not loss.requires_grad:
                raise ConfigError("adapt: expected an objective that makes a scalar of the network's output")
            if not loss.isfinite():
                raise DataError(f"adapt: the objective is {loss.item()} on batch {number}; lower the learning rate")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    adapted = copy.deepcopy(network)
    with torch.no_grad():
        for name, value in fitted.items():
            adapted.get_parameter(name).copy_(value)
    return adapted


def batch_norms(network: nn.Module) -> dict[str, nn.Module]:
    """Return the BatchNorm layers, plain or converted, by module name; a layer with two names counts once."""
    return {name: m for name, m in network.named_modules() if isinstance(m, (NormLayer, *PLAIN_NORMS))}


def _train_only_affine(network: nn.Module) -> dict[str, nn.Parameter]:
    """Let norms use batch statistics, make only their scales and shifts trainable, and return these by name."""
    trainable = {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
    network.requires_grad_(False)
    fitted = {}
    for name, layer in batch_norms(network).items():
        layer.training = True  # only this layer, so that dropout stays in evaluation mode
        layer.momentum = 0.0  # type: ignore[assignment]
        for key in ("weight", "bias"):
            parameter = getattr(layer, key, None)
            if parameter is not None and id(parameter) in trainable:
                fitted[f"{name}.{key}".lstrip(".")] = parameter.requires_grad_(True)
    if not fitted:
        raise ConfigError(f"adapt: {type(network).__name__} has no BatchNorm whose scale or shift may be learnt")
    return fitted
