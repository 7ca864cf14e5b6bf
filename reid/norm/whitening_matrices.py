"""Whitening matrices: for a covariance Sigma a matrix W with W Sigma W^T = I, in three ways, and their use on maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reid.errors import ConfigError
from reid.norm.covariance import split_into_blocks
from reid.norm.statistics import statistics_dtype

NEWTON_STEPS = 5  # more of them diverge in float32 on covariances of a condition number of 1e4


def cholesky(cov: Tensor) -> Tensor:
    """Compute W = L^-1 with Sigma = L L^T, lower triangular: channel i is whitened by the channels before it (DWT)."""
    factor = torch.linalg.cholesky(cov)
    inverse: Tensor = torch.linalg.solve_triangular(factor, _identity(cov), upper=False)
    return inverse


def zca(cov: Tensor) -> Tensor:
    """Compute W = Sigma^-1/2, symmetric: of all whitening matrices it moves the activations least."""
    root: Tensor = _InverseRoot.apply(cov)[0]
    return root


def newton(cov: Tensor) -> Tensor:
    """Approximate Sigma^-1/2 by Newton-Schulz iterations (Huang et al. 2019, "Iterative normalization").

    P_0 = I and P_k = (3 P_k-1 - P_k-1^3 Sigma) / 2, with Sigma over its trace.  Five steps leave the smallest
    eigenvalues of an ill-conditioned Sigma partly unwhitened, which damps the noise in them.
    """
    trace = cov.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    scaled = cov / trace
    root = _identity(cov)
    for _ in range(NEWTON_STEPS):
        root = 1.5 * root - 0.5 * root @ root @ root @ scaled
    return root * trace.rsqrt()


def _identity(cov: Tensor) -> Tensor:
    return torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device).expand_as(cov)


WHITENERS: dict[str, Callable[[Tensor], Tensor]] = {"cholesky": cholesky, "zca": zca, "newton": newton}


class _InverseRoot(torch.autograd.Function):
    """Sigma^-1/2 by eigenvalues, with a gradient that stays finite when eigenvalues repeat.

    The gradient of ``eigh`` contains 1 / (l_i - l_j).  For a function f of a symmetric matrix only the divided
    difference (f(l_i) - f(l_j)) / (l_i - l_j) counts (Daleckii-Krein).  For l^-1/2 it is -1 / (s_i s_j (s_i + s_j))
    with s = l^1/2: the solution of a Lyapunov equation, which contains no difference.
    """

    @staticmethod
    def forward(cov: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(cov)
        rounding = torch.finfo(cov.dtype).eps * values[..., -1:]  # smaller eigenvalues are rounding, perhaps negative
        scale = values.maximum(rounding).sqrt()
        return vectors @ (vectors / scale[..., None, :]).mT, scale, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:  # noqa: ARG004
        ctx.save_for_backward(*output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        scale, vectors = ctx.saved_tensors
        rows, columns = scale[..., :, None], scale[..., None, :]
        slope = -1 / (rows * columns * (rows + columns))
        by_cov: Tensor = vectors @ (slope * (vectors.mT @ gradients[0] @ vectors)) @ vectors.mT
        return by_cov


def whitening_matrices(cov: Tensor, method: str, eps: float) -> Tensor:
    """Compute whitening matrices for covariances that are first shrunk to (1 - eps) Sigma + eps I.

    Shrinking multiplies a channel without variance by eps^-1/2 instead of infinity.

    Args:
        cov: Covariances (..., g, g).
        method: A name of :data:`WHITENERS`.
        eps: 0..1.

    Returns:
        W (..., g, g), in float32 at least.

    Raises:
        ConfigError: If a covariance cannot be whitened, because it is not finite or so large that eps is lost in
            rounding.

    Example:
        >>> cov = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
        >>> whitening_matrices(cov, "cholesky", eps=0.0).tolist()
        [[0.5, 0.0], [0.0, 1.0]]
    """
    exact = cov.to(statistics_dtype(cov))
    with torch.autocast(cov.device.type, enabled=False):
        try:
            return WHITENERS[method]((1 - eps) * exact + eps * _identity(exact))
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise ConfigError(
                f"whitening: a covariance is not positive definite in {str(exact.dtype).removeprefix('torch.')} (the"
                " activations are not finite or very large); lower the learning rate or raise eps of the norm"
            ) from error


def whiten(x: Tensor, matrices: Tensor, shift: Tensor) -> Tensor:
    """Compute y = W x + t block by block, with one matrix for all images or one for each image.

    Args:
        x: Maps (B, C, H, W).
        matrices: (R, K, g, g), where R is 1 (then it is a grouped 1x1 convolution) or B.
        shift: (R, C).

    Returns:
        Maps (B, C, H, W) in the memory format of ``x``.
    """
    if matrices.shape[0] == 1:
        return functional.conv2d(x, matrices.reshape(x.shape[1], -1, 1, 1), shift[0], groups=matrices.shape[1])
    y = (matrices @ split_into_blocks(x, matrices.shape[-1])).reshape(x.shape) + shift[:, :, None, None]
    if torch.compiler.is_compiling() or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return y
    return y.contiguous(memory_format=torch.channels_last)  # else the next convolution would have to turn it
