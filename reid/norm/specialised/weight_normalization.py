"""Normalized weights: what a layer may do to its input is bounded by a reparametrization of its weight.

Spectral normalization (Miyato et al. 2018) is torch's own; orthogonalization by Newton's iteration (ONI,
Huang et al. 2020) is here.  Both look at a convolution as the matrix (out, in * k * k) of its filters.  That
matrix is not the operator: with largest singular value 1 the convolution can still stretch a map, up to k
times for a k x k kernel of stride 1.  :func:`operator_norm` measures how much.  Nothing here knows statistics
of activations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from reid.errors import ConfigError, unknown_name

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


class ONI(nn.Module):
    """Weight (out, in, ...) -> nearly the nearest weight whose filters are orthogonal, of length ``gain``.

    With Z the filters as rows and S = (Z Z^T + eps I) / |Z Z^T + eps I|_F, T ``iterations`` of
    B <- 1.5 B - 0.5 B^3 S from B = I give B Z / sqrt(|.|_F) (Huang et al. 2020, algorithm 1); here as the pair
    (B, B S), which is the same B but does not run away where filters are nearly dependent.  Singular values are
    at most ``gain`` and grow with T: T = 0 only scales by the Frobenius norm, T around 7 is orthogonal for random
    weights.  The published gain is sqrt(2), for networks of ReLUs.

    With more filters than entries in one, the columns are made orthogonal instead, by the same steps on Z^T; the
    published column variant leaves out the division of S, so that it diverges or depends on the weights' scale.
    Rows are centred first where that costs no rank, which is when they are longer than many.  Z is scaled to
    |Z|_F = 1 and ``eps`` counts in units of its mean squared singular value, so the scale of the weights never
    matters.  ``groups`` as of the convolution: filters of different groups see different inputs.
    """

    def __init__(self, iterations: int = 5, groups: int = 1, gain: float = 2.0**0.5, eps: float = 1e-5) -> None:
        super().__init__()
        self.iterations, self.groups, self.gain, self.eps = iterations, groups, gain, eps

    def forward(self, weight: Tensor) -> Tensor:
        """The normalized weight, of the same shape; in float32 under autocast too."""
        with torch.autocast(weight.device.type, enabled=False):
            filters = weight.reshape(self.groups, len(weight) // self.groups, -1)  # (groups, out / groups, in * k * k)
            rows, columns = filters.shape[1:]
            wide = filters if rows <= columns else filters.mT
            if rows != columns:
                wide = wide - wide.mean(2, keepdim=True)
            normal = self._orthogonalize(wide)
            return self.gain * (normal if rows <= columns else normal.mT).reshape(weight.shape)

    def _orthogonalize(self, z: Tensor) -> Tensor:
        """z (groups, n, m), n <= m -> rows nearly orthonormal."""
        z = z / _frobenius(z).clamp_min(torch.finfo(z.dtype).tiny)
        identity = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        s = z @ z.mT + self.eps / len(identity) * identity  # the trace of z z^T is 1
        size = _frobenius(s)
        y, b = s / size, identity.expand_as(s)
        for _ in range(self.iterations):  # y = b S throughout; y -> S^1/2, b -> S^-1/2
            step = 1.5 * identity - 0.5 * b @ y
            y, b = y @ step, step @ b
        return b @ z / size.sqrt()


def _frobenius(matrices: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.matrix_norm(matrices, keepdim=True)
    return norm


def _spectral(layer: nn.Module) -> None:
    parametrizations.spectral_norm(layer, "weight")


def _oni(layer: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", ONI(groups=int(getattr(layer, "groups", 1))))


PARAMETRIZATIONS: dict[str, Callable[[nn.Module], None]] = {"spectral": _spectral, "oni": _oni}


def normalize_weights(network: nn.Module, kind: str) -> nn.Module:
    """A copy of a network whose linear and convolution weights are normalized at every use.

    ``kind`` is a name of ``PARAMETRIZATIONS``.  "spectral": divided by the largest singular value, estimated by
    one power iteration a forward pass in training and none in evaluation.  "oni": :class:`ONI`.  The weights
    themselves become ``parametrizations.weight.original``, so load a plain network's state before.
    """
    if kind not in PARAMETRIZATIONS:
        raise ConfigError(unknown_name("weight normalization", kind, PARAMETRIZATIONS))
    network = copy.deepcopy(network)
    for layer in [module for module in network.modules() if isinstance(module, WEIGHTED)]:
        PARAMETRIZATIONS[kind](layer)
    return network


def fold_weights(network: nn.Module) -> nn.Module:
    """A copy of a network with its normalized weights written down as plain ones, to serve or to export."""
    network = copy.deepcopy(network)
    for layer in [module for module in network.modules() if parametrize.is_parametrized(module)]:
        normalizations: nn.ModuleDict = layer.parametrizations.eval()  # type: ignore[assignment, union-attr]
        with torch.no_grad():
            values = {name: getattr(layer, name).clone() for name in normalizations}
        # Not torch's remove_parametrizations: it edits the class, which the copy shares with the original.
        layer.__class__ = type(layer).__bases__[0]
        del layer.parametrizations
        for name, value in values.items():
            layer.register_parameter(name, nn.Parameter(value))
    return network


def operator_norm(layer: nn.Conv2d, size: tuple[int, int], iterations: int = 100) -> float:
    """How many times a convolution lengthens a map (H, W) at most: the largest singular value of the operator.

    Its stride, padding, dilation and groups count; the bias does not.  By ``iterations`` power iterations in
    float64 on A^T A, A^T being the gradient of A; approached from below, to about three digits.
    """
    plain = copy.deepcopy(layer).double().eval()  # a spectral norm would move on with every pass
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, layer.in_channels, *size, dtype=torch.float64, generator=generator).to(plain.weight.device)
    with torch.no_grad():
        offset = plain(torch.zeros_like(x))  # the bias, as a map
    norm = 0.0
    for _ in range(iterations):
        x = (x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)).requires_grad_(True)
        with torch.enable_grad():
            y = plain(x) - offset
            norm = float(y.detach().norm())
            (x,) = torch.autograd.grad(y, x, y.detach())
    return norm
