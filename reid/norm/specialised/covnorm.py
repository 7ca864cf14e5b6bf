"""CovNorm (Li and Vasconcelos, CVPR 2019): a trained adapter becomes whitening, a small map and recolouring.

The inputs and outputs of an adapter vary in few directions.  With U, L the k_x leading eigenvectors and eigenvalues of
the covariance of its inputs x, and V, S the k_z leading ones of its outputs z = A x, the adapter becomes

    z ~ C M W (x - mean x) + mean z,   W = L^(-1/2) U^T,   C = V S^(1/2),   M = pinv(C) A pinv(W).

W whitens the inputs, M (k_z, k_x) is the mini-adaptation, which can be trained further, and C recolours.  C M W is A
between the projections onto the leading directions.  Its mean squared error is at most the variance of z that is cut
off (the least that rank k_z allows, Eckart and Young) plus the variance that A gives to the part of x that is cut off;
with all directions kept the error is 0.  An adapter of C channels shrinks from C^2 numbers to C (k_x + k_z) + k_x k_z,
and C more for the offset, which is needed because features after a ReLU are not centred.  All factors are trainable, as
in the authors' code (with a tenth of the adapter's learning rate); to train only M, freeze the others.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from reid.errors import ConfigError, DataError
from reid.norm.condition import Given
from reid.norm.convert import domain_index
from reid.norm.covariance import CovarianceStatistics, covariances
from reid.norm.specialised.adapters import Adapter, LowRankAdapter, adapted_layers, adapter_domains

VARIANCE = 0.995  # the fraction of the variance that the authors keep
SMALLEST = 2  # the fewest directions that the authors keep
ROUNDING = 1e-12  # an eigenvalue below this fraction of the largest is a rounding error of 0


@dataclass(frozen=True)
class Directions:
    """The k leading principal directions of some data.

    Args:
        vectors: (C, k), orthonormal columns.
        variances: (k,), descending.
    """

    vectors: Tensor
    variances: Tensor

    def whiten(self) -> Tensor:
        """Return the matrix (k, C) that gives the data covariance I; a direction without variance becomes 0."""
        empty = self.variances <= ROUNDING * self.variances[0]
        return torch.where(empty, 0.0, self.variances.rsqrt())[:, None] * self.vectors.T

    def recolour(self) -> Tensor:
        """Return the matrix (C, k) that gives white vectors these variances: the pseudo-inverse of :meth:`whiten`."""
        full = self.variances > ROUNDING * self.variances[0]
        return self.vectors * (self.variances * full).sqrt()


def principal(covariance: Tensor, variance: float = VARIANCE, smallest: int = SMALLEST) -> Directions:
    """Find the fewest leading directions that hold a fraction of the variance.

    Args:
        covariance: (C, C).
        variance: The fraction, in (0, 1].
        smallest: The fewest directions to return.

    Example:
        >>> principal(torch.diag(torch.tensor([1.0, 8.0, 1.0])), 0.75, 1).variances
        tensor([8.])
    """
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    held = values.cumsum(0) / values.sum()
    fewest = int((held < variance).sum()) + 1 if variance < 1 else len(values)
    count = min(max(fewest, smallest), len(values))
    return Directions(vectors[:, :count], values[:count])


def compress(adapter: Adapter, inputs: CovarianceStatistics, variance: float = VARIANCE) -> LowRankAdapter:
    """Compute the low-rank form of a trained adapter on data of some statistics.

    Args:
        adapter: An adapter from I to O channels.
        inputs: The statistics of its inputs, of one group and one block: mean (1, I), cov (1, 1, I, I).
        variance: The fraction of the variance of inputs and of outputs that is kept.

    Raises:
        DataError: If the outputs of the adapter do not vary.
    """
    matrix, offset = (value.detach().double() for value in adapter.affine())
    mean, covariance = inputs.mean[0].double(), inputs.cov[0, 0].double()
    outputs = matrix @ covariance @ matrix.T
    if not float(outputs.trace()) > 0:
        raise DataError("the adapter gives the same for every image, so it has no directions to keep: train it first")
    x, z = principal(covariance, variance), principal(outputs, variance)
    whiten, recolour = x.whiten(), z.recolour()
    mini = z.whiten() @ matrix @ x.recolour()  # pinv(C) A pinv(W)
    shift = matrix @ mean + offset - recolour @ (mini @ (whiten @ mean))
    like = next(adapter.parameters())
    new = LowRankAdapter(*(part.to(like.dtype).contiguous() for part in (whiten, mini, shift, recolour)))
    return new.train(adapter.training)


def compress_adapters(
    network: nn.Module, batches: Iterable[Tensor], domain: str, variance: float = VARIANCE
) -> nn.Module:
    """Compress the adapters of one domain; the other domains stay the same to the bit.

    Each adapter is compressed on its inputs in the trained network, which runs in evaluation mode.  An adapter whose
    data fill most directions gets larger; see :func:`reid.norm.added_domain.domain_sizes`.

    Args:
        network: A network with trained adapters; it does not change.
        batches: Images (B, 3, H, W) of the domain.
        domain: The name of the domain.
        variance: The fraction of the variance of inputs and of outputs that is kept, in (0, 1].

    Returns:
        A copy of the network with low-rank adapters.

    Raises:
        ConfigError: If the network has no adapters, does not know the domain, or the fraction cannot be used.
        DataError: If an adapter gets no more positions than it has channels, or was never trained.
    """
    if not 0 < variance <= 1:
        raise ConfigError(f"variance: expected a part of the whole, above 0 and at most 1, got {variance}")
    new = copy.deepcopy(network)
    layers = adapted_layers(new)
    if not layers:
        raise ConfigError(f"{type(network).__name__} has no adapters to compress; add_adapters, then train them")
    row = domain_index(adapter_domains(new), domain)
    found = _measure_inputs(network, batches, row)
    for name, layer in layers.items():
        channels = layer.adapter(row).affine()[0].shape[1]
        positions = int(found[name].mass) if name in found else 0
        if positions <= channels:
            raise DataError(
                f"{name}: expected more positions than its {channels} channels, got {positions}; give more images"
            )
        try:
            layer.adapters[row] = compress(layer.adapter(row), found[name], variance)
        except DataError as error:
            raise DataError(f"{name}, domain {domain}: {error}") from error
    return new


def _measure_inputs(network: nn.Module, batches: Iterable[Tensor], row: int) -> dict[str, CovarianceStatistics]:
    """The statistics over all positions of the inputs of one domain's adapters, by layer name."""
    measured, found = copy.deepcopy(network).eval(), dict[str, CovarianceStatistics]()
    for name, layer in adapted_layers(measured).items():
        layer.adapter(row).register_forward_pre_hook(partial(_collect, found, name))
    given = Given(measured)
    with torch.inference_mode():
        for images in batches:
            given(images, row)
    return found


def _collect(found: dict[str, CovarianceStatistics], name: str, _adapter: nn.Module, inputs: tuple[Tensor]) -> None:
    x = inputs[0].double()
    images = covariances(x, torch.zeros(len(x), dtype=torch.int64, device=x.device), 1, x.shape[1])
    positions = replace(images, mass=images.mass * (x.shape[2] * x.shape[3]))
    found[name] = found[name].merge(positions) if name in found else positions
