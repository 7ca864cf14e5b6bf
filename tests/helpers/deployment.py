"""What the tests of compiled, exported, parallel and copied networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from helpers.ddp_worker import (
    EVERYWHERE,
    ROWS,
    WEIGHTS,
    domains,
    images,
)
from reid.norm import Given

STATISTICS = ("running_mean", "running_var", "running_cov", "num_batches_tracked")

BATCHES = [(0, 1, 2, 2, 1, 0), (2, 0, 0, 0, 1, 0), (1, 1, 1, 1, 1, 1)]


def domain_indices(values: tuple[int, ...], system: str = "batch") -> Tensor:
    return torch.tensor(values) % len(domains(system))


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def same_statistics(network: nn.Module, other: nn.Module, tolerance: float = 1e-5) -> None:
    theirs = dict(other.named_buffers())
    statistics = {key: value for key, value in network.named_buffers() if key.endswith(STATISTICS)}
    assert statistics
    for key, value in statistics.items():
        close(value, theirs[key], tolerance)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.grad for key, value in network.named_parameters() if value.grad is not None}


def train_step(model: nn.Module, domain: int | Tensor) -> None:
    direction = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(3))
    (Given(model)(images(), domain) * direction).sum().backward()


DOMAINS = {"int": 1, "labels": torch.tensor(EVERYWHERE), "weights": WEIGHTS}
