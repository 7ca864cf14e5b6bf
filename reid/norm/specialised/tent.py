"""Scales and shifts of the norms, fitted to unlabelled images of the test: Tent (Wang et al., ICLR 2021).

What "fitted" means is the caller's objective on what the network gives: Tent's own is the entropy of class
logits.  Statistics are always those of the batch, so the kept ones say nothing here; measure them afterwards
(:func:`reid.norm.calibrate`).  Nothing here knows identities, losses or cameras.
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
    """A copy of ``network`` whose norms' scales and shifts lessen ``objective``: one step of Adam a batch.

    ``batches`` yields (images (B, 3, H, W), domain as :class:`Given` takes it, None for a plain network), B at
    least 2.  ``objective`` takes what the network gives for them and returns a scalar.  ``network`` may be plain
    or converted and stays bit for bit, so taking it again is the reset that Tent needs after a while; of the copy
    all but the scales and shifts is bit-equal too, and frozen ones (a BNNeck's shift) stay frozen.

    The entropy of logits needs images of the very classes that the logits stand for.  Identities of another site
    are not among them: there take the entropy of similarities to images of the site itself, over a temperature
    (Adachi et al., arXiv 2403.14114).  Embed queries and gallery with the same copy, calibrated on the site.

    Raises ConfigError for a network without such parameters or an objective that is no scalar, DataError for a
    batch of one image or an objective that is not finite.
    """
    working = copy.deepcopy(network).eval()
    fitted = _open(working)
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
    """The norms over the batch, plain or converted, by module name; one in two places once."""
    return {name: m for name, m in network.named_modules() if isinstance(m, (NormLayer, *PLAIN_NORMS))}


def _open(network: nn.Module) -> dict[str, nn.Parameter]:
    """Let the batch normalize and nothing but scales and shifts learn; these, by name."""
    trainable = {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
    network.requires_grad_(False)
    fitted = {}
    for name, layer in batch_norms(network).items():
        layer.training = True  # the layer alone: what it drops out stays in evaluation
        layer.momentum = 0.0  # type: ignore[assignment]
        for key in ("weight", "bias"):
            parameter = getattr(layer, key, None)
            if parameter is not None and id(parameter) in trainable:
                fitted[f"{name}.{key}".lstrip(".")] = parameter.requires_grad_(True)
    if not fitted:
        raise ConfigError(f"adapt: {type(network).__name__} has no BatchNorm whose scale or shift may be learnt")
    return fitted
