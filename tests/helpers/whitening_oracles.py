"""Whitening by slow, obvious code: a loop over domains and blocks, and textbook covariances."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reid.norm.covariance import covariances
from reid.norm.domain_whitening import DomainWhitening
from reid.norm.whitening_matrices import WHITENERS

C, SIZE = 6, 3

NAMES = ("a", "b", "c")

METHODS = pytest.mark.parametrize("method", WHITENERS)


def images(rows: int = 9, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw maps (rows, C, 4, 3) of correlated channels with means far from 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(C, C, generator=generator, dtype=dtype)
    x = torch.einsum("cd,bdhw->bchw", mixing, torch.randn(rows, C, 4, 3, generator=generator, dtype=dtype))
    return x + torch.randn(rows, C, 1, 1, generator=generator, dtype=dtype) + 3


def columns(x: Tensor) -> Tensor:
    """Collect all values of each channel: (B, C, H, W) -> (C, B H W)."""
    return x.transpose(0, 1).flatten(1)


def slow_cov(x: Tensor) -> Tensor:
    """Compute the biased covariance (C, C) over images and positions with the function of torch."""
    return torch.cov(columns(x), correction=0)


def block_diagonal(blocks: Tensor) -> Tensor:
    return torch.block_diag(*blocks)


def slow_root(cov: Tensor, method: str) -> Tensor:
    """Compute the whitening matrix of one covariance (g, g) by the inverse of a factor or of eigenvalues."""
    if method == "cholesky":
        return torch.linalg.inv(torch.linalg.cholesky(cov))
    values, vectors = torch.linalg.eigh(cov)
    if method == "newton":  # of each eigenvalue by itself
        trace, steps = values.sum(), torch.ones_like(values)
        for _ in range(5):
            steps = (3 * steps - steps**3 * values / trace) / 2
        return vectors @ torch.diag(steps / trace.sqrt()) @ vectors.T
    return vectors @ torch.diag(values**-0.5) @ vectors.T


def slow_whitening(x: Tensor, domain: list[int], method: str = "cholesky", eps: float = 1e-3) -> Tensor:
    """Whiten the images of each domain by themselves, block by block, with weight 1 and bias 0."""
    out = torch.empty_like(x)
    for index in set(domain):
        rows = [i for i, label in enumerate(domain) if label == index]
        values = columns(x[rows])
        for start in range(0, C, SIZE):
            block = values[start : start + SIZE]
            cov = (1 - eps) * torch.cov(block, correction=0) + eps * torch.eye(SIZE, dtype=x.dtype)
            white = slow_root(cov, method) @ (block - block.mean(1, keepdim=True))
            out[rows, start : start + SIZE] = white.view(SIZE, len(rows), *x.shape[2:]).transpose(0, 1)
    return out


def make_layer(**options) -> DomainWhitening:
    """Make a layer in float64 whose three domains and channels all differ."""
    layer = DomainWhitening(C, NAMES, block_size=SIZE, **options).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for row in range(3):
            layer.set_statistics(
                row, covariances(images(4, row + 20, torch.float64), torch.zeros(4).long(), 1, SIZE), 0
            )
        layer.weight.copy_(torch.rand(C, generator=generator) + 0.5)
        layer.bias.copy_(torch.randn(C, generator=generator))
    return layer


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
