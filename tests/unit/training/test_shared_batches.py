"""How processes share the rows of a batch, and the gathering of rows in one process."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reid.config import Train
from reid.errors import ConfigError
from reid.training.parallel_network import ParallelNetwork
from reid.training.processes import ONE_PROCESS, Processes, check_same_rows, joined_processes, rank_and_count
from reid.training.synchronized_norms import SynchronizedBatchNorm, synchronized_norms


@given(st.integers(1, 4), st.integers(2, 9), st.integers(1, 4), st.integers(1, 5))
def test_every_row_is_of_one_process_and_identities_stay_together(
    blocks: int, groups: int, group_rows: int, count: int
) -> None:
    rows = blocks * groups * group_rows
    parts = [Processes(rank, count).own_rows(rows, groups, group_rows) for rank in range(count)]
    assert sorted(torch.cat(parts).tolist()) == list(range(rows))
    for part in parts:
        owners = {(row // group_rows) % groups for row in part.tolist()}
        assert len(part) == blocks * group_rows * len(owners)
    sizes = [len(part) // (blocks * group_rows) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_more_processes_than_identities_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 processes"):
        ParallelNetwork(nn.Linear(1, 1), Train(identities_per_batch=2), Processes(0, 3))


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with joined_processes("again") as processes:
        assert processes == ONE_PROCESS
    assert processes.broadcast("x") == "x"
    assert processes.collect(1) == [1]
    check_same_rows(processes, "digest")


@pytest.mark.parametrize(("rank", "count"), [("x", "2"), ("2", "2"), ("-1", "2"), ("0", "0")])
def test_wrong_variables_of_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch, rank: str, count: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", count)
    with pytest.raises(ConfigError, match=f"RANK={rank}"):
        rank_and_count()


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 2)])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_synchronized_norm_of_one_process_is_batchnorm(shape: tuple[int, ...], momentum: float | None) -> None:
    torch.manual_seed(0)
    make = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    ours, plain = make(4, momentum=momentum), make(4, momentum=momentum)
    for layer in (ours, plain):
        with torch.no_grad():
            layer.weight.copy_(torch.arange(4) + 0.5)
    x = torch.randn(shape, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    with synchronized_norms(nn.Sequential(ours)):
        assert type(ours) is SynchronizedBatchNorm
        for _ in range(2):
            found, expected = ours(x), plain(y)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        (found * torch.linspace(0, 1, 4).view(1, -1, *[1] * (len(shape) - 2))).square().sum().backward()
        (expected * torch.linspace(0, 1, 4).view(1, -1, *[1] * (len(shape) - 2))).square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-4)
    assert type(ours) is make
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)


def test_a_norm_of_an_unknown_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="BatchNorm3d"), synchronized_norms(nn.Sequential(nn.BatchNorm3d(2))):
        pass
