"""Normalized weights: a reparametrization of the weight bounds how much a layer can lengthen its input.

Spectral normalization (Miyato et al. 2018) is torch's; orthogonalization by Newton's iteration (ONI, Huang et al. 2020)
is implemented here.  Both treat a convolution as the matrix (out, in * k * k) of its filters.  This matrix is not the
operator: with largest singular value 1 the convolution can still lengthen a map, up to k times for a k x k kernel of
stride 1.  :func:`operator_norm` measures how much.
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
    """Parametrization of a weight (out, in, ...) by a weight close to it whose filters are nearly orthogonal.

    With Z the filters as rows and S = (Z Z^T + eps I) / |Z Z^T + eps I|_F, T iterations of B <- 1.5 B - 0.5 B^3 S from
    B = I give B Z / sqrt(|.|_F) (Huang et al. 2020, algorithm 1).  Here the pair (B, B S) is iterated, which gives the
    same B and does not diverge where filters are nearly dependent.  Singular values are at most ``gain`` and grow with
    T: T = 0 only scales by the Frobenius norm; T around 7 makes random weights orthogonal.

    Where there are more filters than numbers in a filter, the columns become orthogonal instead, by the same steps on
    Z^T; the published variant for columns does not divide S, so it diverges or depends on the scale of the weights.
    Rows are centred first where that costs no rank, which is when there are fewer rows than columns.  Z is scaled to
    |Z|_F = 1, and ``eps`` is in units of its mean squared singular value, so the scale of the weights never matters.

    Args:
        iterations: T.
        groups: The groups of the convolution, whose filters have different inputs.
        gain: The length of the filters; sqrt(2) is published for networks with ReLUs.
        eps: As above.
    """

    def __init__(self, iterations: int = 5, groups: int = 1, gain: float = 2.0**0.5, eps: float = 1e-5) -> None:
        super().__init__()
        self.iterations, self.groups, self.gain, self.eps = iterations, groups, gain, eps

    def forward(self, weight: Tensor) -> Tensor:
        """Compute the normalized weight, of the same shape; in float32 under autocast too."""
        with torch.autocast(weight.device.type, enabled=False):
            filters = weight.reshape(self.groups, len(weight) // self.groups, -1)  # (groups, out / groups, in * k * k)
            rows, columns = filters.shape[1:]
            wide = filters if rows <= columns else filters.mT
            if rows != columns:
                wide = wide - wide.mean(2, keepdim=True)
            normal = self._orthogonalize(wide)
            return self.gain * (normal if rows <= columns else normal.mT).reshape(weight.shape)

    def _orthogonalize(self, z: Tensor) -> Tensor:
        """Make the rows of z (groups, n, m), n <= m, nearly orthonormal."""
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


def _add_spectral(layer: nn.Module) -> None:
    parametrizations.spectral_norm(layer, "weight")


def _add_oni(layer: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", ONI(groups=int(getattr(layer, "groups", 1))))


PARAMETRIZATIONS: dict[str, Callable[[nn.Module], None]] = {"spectral": _add_spectral, "oni": _add_oni}


def normalize_weights(network: nn.Module, method: str) -> nn.Module:
    """Normalize the weights of all linear layers and convolutions at every use.

    Args:
        network: The network; it does not change.
        method: A name in ``PARAMETRIZATIONS``.  "spectral" divides by the largest singular value, which one power
            iteration estimates in each forward pass of training and none in evaluation; "oni" is :class:`ONI`.

    Returns:
        A copy whose weights are called ``parametrizations.weight.original``, so load the state of a plain network
        before.

    Raises:
        ConfigError: If the name is not known.

    Example:
        >>> layer = normalize_weights(nn.Sequential(nn.Linear(4, 2)), "oni")[0]
        >>> (layer.weight @ layer.weight.T).shape
        torch.Size([2, 2])
    """
    if method not in PARAMETRIZATIONS:
        raise ConfigError(unknown_name("weight normalization", method, PARAMETRIZATIONS))
    network = copy.deepcopy(network)
    for layer in [module for module in network.modules() if isinstance(module, WEIGHTED)]:
        PARAMETRIZATIONS[method](layer)
    return network


def fold_weights(network: nn.Module) -> nn.Module:
    """Return a copy of a network with its normalized weights as plain ones, for serving or export."""
    network = copy.deepcopy(network)
    for layer in [module for module in network.modules() if parametrize.is_parametrized(module)]:
        normalizations: nn.ModuleDict = layer.parametrizations.eval()  # type: ignore[assignment, union-attr]
        with torch.no_grad():
            values = {name: getattr(layer, name).clone() for name in normalizations}
        # torch's remove_parametrizations would edit the class, which the copy shares with the original.
        layer.__class__ = type(layer).__bases__[0]
        del layer.parametrizations
        for name, value in values.items():
            layer.register_parameter(name, nn.Parameter(value))
    return network


def operator_norm(layer: nn.Conv2d, size: tuple[int, int], iterations: int = 100) -> float:
    """Estimate how many times a convolution lengthens a map at most: the largest singular value of the operator A.

    Power iterations on A^T A in float64, with A^T as the gradient of A, approach it from below, to about three digits.
    Stride, padding, dilation and groups count; the bias does not.

    Args:
        layer: The convolution.
        size: Height and width of the map.
        iterations: The number of power iterations.

    Example:
        >>> identity = nn.Conv2d(1, 1, 1, bias=False)
        >>> _ = nn.init.constant_(identity.weight, 2.0)
        >>> round(operator_norm(identity, (4, 4)), 3)
        2.0
    """
    plain = copy.deepcopy(layer).double().eval()  # in training a spectral norm would change with every pass
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
