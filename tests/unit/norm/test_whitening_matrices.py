"""Whitening matrices are compared with inverses of factors and eigenvalues, on known covariances.

The wrong code that these tests catch: eps added instead of shrunk towards, ZCA taken for Cholesky, gradients of
eigenvectors where eigenvalues repeat, too many Newton steps, matrices computed in half precision, blocks
that see their neighbours or every other channel.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.whitening_oracles import METHODS, SIZE, C, block_diagonal, close, images, slow_root
from reid.errors import ConfigError
from reid.norm.whitening_matrices import WHITENERS, cholesky, newton, whiten, whitening_matrices, zca


def spd(condition: float, dtype: torch.dtype, size: int = 4, count: int = 5) -> Tensor:
    """Make covariances (count, size, size) with eigenvalues from 1 down to 1 / condition."""
    generator = torch.Generator().manual_seed(3)
    vectors = torch.linalg.qr(torch.randn(count, size, size, dtype=torch.float64, generator=generator)).Q
    values = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), size, dtype=torch.float64)
    return ((vectors * values) @ vectors.mT).to(dtype)


@pytest.mark.parametrize("method", ["cholesky", "zca"])
@pytest.mark.parametrize(("condition", "dtype", "tolerance"), [(1e3, torch.float32, 1e-3), (1e8, torch.float64, 1e-6)])
def test_whitened_covariance_is_the_identity(
    method: str, condition: float, dtype: torch.dtype, tolerance: float
) -> None:
    cov = spd(condition, dtype)
    w = whitening_matrices(cov, method, 0.0)
    close(w @ cov @ w.mT, torch.eye(4, dtype=dtype).expand_as(cov), tolerance)


@METHODS
def test_matrices_are_those_of_the_oracle(method: str) -> None:
    cov, eps = spd(50, torch.float64), 0.01
    found = whitening_matrices(cov, method, eps)
    for one, matrix in zip(cov, found, strict=True):
        close(matrix, slow_root((1 - eps) * one + eps * torch.eye(4).double(), method))
        added = slow_root(one + eps * torch.eye(4).double(), method)
        assert (matrix - added).abs().max() > 1e-3  # shrinking is not adding


def test_shrinkage_leaves_a_known_covariance() -> None:
    """cov(out) = W Sigma W^T = (I - eps W W^T) / (1 - eps): about I when well-conditioned, far from it when not."""
    eps = 1e-3
    for condition, least, most in ((1e2, 0.0, 0.11), (6.7e4, 0.5, 1.0)):
        cov = spd(condition, torch.float64)
        w = whitening_matrices(cov, "cholesky", eps)
        out = w @ cov @ w.mT
        close(out, (torch.eye(4).double() - eps * w @ w.mT) / (1 - eps))
        assert least < (out - torch.eye(4)).abs().max() < most


def test_cholesky_is_triangular_and_zca_symmetric() -> None:
    cov = spd(20, torch.float64)
    triangular, symmetric = cholesky(cov), zca(cov)
    assert not triangular.triu(1).any()
    close(symmetric, symmetric.mT)
    assert symmetric.triu(1).abs().max() > 0.1
    assert (triangular - triangular.mT).abs().max() > 0.1
    close(newton(spd(2, torch.float64)), zca(spd(2, torch.float64)), 1e-3)


@METHODS
def test_matrices_are_never_computed_in_half_precision(method: str) -> None:
    cov = spd(20, torch.float32)
    expected = whitening_matrices(cov, method, 1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(whitening_matrices(cov, method, 1e-3), expected)
    assert whitening_matrices(cov.half(), method, 1e-3).dtype == torch.float32


@METHODS
def test_gradient_of_the_matrices(method: str) -> None:
    root = torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: WHITENERS[method](a @ a.mT + torch.eye(3)), (root,))


def textbook_zca(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(cov)
    return vectors @ torch.diag(values.rsqrt()) @ vectors.T


@METHODS
def test_gradients_are_finite_where_eigenvalues_repeat(method: str) -> None:
    slope = torch.arange(16.0).view(4, 4)
    cov = torch.eye(4).requires_grad_()
    (gradient,) = torch.autograd.grad((WHITENERS[method](cov) * slope).sum(), cov)
    assert gradient.isfinite().all()
    if method == "zca":  # d (I + E)^-1/2 = -E / 2
        close(gradient, -slope / 2, 1e-5)
    (wrong,) = torch.autograd.grad((textbook_zca(cov) * slope).sum(), cov)
    assert not wrong.isfinite().all()


def test_more_newton_steps_diverge_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    cov = spd(6.7e4, torch.float32)
    assert (newton(cov) @ cov @ newton(cov)).abs().max() < 1.1
    monkeypatch.setattr("reid.norm.whitening_matrices.NEWTON_STEPS", 20)
    assert not (newton(cov) @ cov @ newton(cov)).abs().max() < 1.1


def test_a_covariance_that_cannot_be_whitened_is_an_error() -> None:
    for cov in (torch.full((1, 2, 2), torch.nan), torch.full((1, 2, 2), 1e9)):
        with pytest.raises(ConfigError, match="eps"):
            whitening_matrices(cov, "cholesky", 1e-3)
    assert whitening_matrices(torch.full((1, 2, 2), 1e9), "zca", 1e-3).isfinite().all()


def test_one_matrix_for_all_images_or_one_for_each() -> None:
    x = images(5)
    torch.manual_seed(0)
    matrices, shift = torch.randn(1, C // SIZE, SIZE, SIZE), torch.randn(1, C)
    each = whiten(x, matrices.expand(5, -1, -1, -1), shift.expand(5, -1))
    close(whiten(x, matrices, shift), each, 1e-5)
    dense = torch.einsum("cd,bdhw->bchw", block_diagonal(matrices[0]), x) + shift[0][:, None, None]
    close(each, dense, 1e-5)


def check_blocks(matrix: Tensor, x: Tensor) -> None:
    """Check that the channels of every block come out with mean 0 and covariance I, whatever other blocks hold."""
    y = torch.einsum("cd,bdhw->bchw", matrix, x - x.mean((0, 2, 3), keepdim=True))
    out = torch.cov(y.transpose(0, 1).flatten(1), correction=0)
    inside = block_diagonal(torch.ones(C // SIZE, SIZE, SIZE)).bool()
    close(out[inside], torch.eye(C, dtype=x.dtype)[inside], 1e-6)
    assert not matrix[~inside].any()
    assert out[~inside].abs().max() > 0.05  # correlations between blocks stay


@pytest.mark.parametrize("method", ["cholesky", "zca"])
def test_grouped_whitening_is_block_diagonal(method: str) -> None:
    """Refused are one matrix for all channels, blocks of every other channel, and variances without covariances."""
    x = images(dtype=torch.float64)
    cov = torch.cov(x.transpose(0, 1).flatten(1), correction=0)
    parts = torch.stack([cov[i : i + SIZE, i : i + SIZE] for i in range(0, C, SIZE)])
    check_blocks(block_diagonal(whitening_matrices(parts, method, 0.0)), x)
    stride = torch.arange(C).view(SIZE, -1).T.flatten()  # 0 2 4 1 3 5
    order = torch.argsort(stride)
    strided = torch.stack([cov[stride][:, stride][i : i + SIZE, i : i + SIZE] for i in range(0, C, SIZE)])
    for wrong in (
        whitening_matrices(cov[None], method, 0.0)[0],
        block_diagonal(whitening_matrices(strided, method, 0.0))[order][:, order],
        torch.diag(cov.diagonal().rsqrt()),
    ):
        with pytest.raises(AssertionError):
            check_blocks(wrong, x)
