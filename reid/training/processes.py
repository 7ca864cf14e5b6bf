"""Several processes that train one network or share one piece of work, as ``torchrun`` starts them.

Each process has a part of the rows of every batch. The outputs of all parts are put together again in every process,
so that each computes the loss of the whole batch, with all its pairs, and the gradients of the parts are added up.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore, Store

from reid.errors import ConfigError, ReidError

_T = TypeVar("_T")
_ERRORS = f"errors of start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"  # a key of the store
_TIMEOUT = timedelta(hours=2)  # without an answer; a process that ends is noticed at once
_ENDED = re.compile(r"gloo|nccl|connection|socket|timed out|peer", re.IGNORECASE)


class SilentExit(ReidError):  # noqa: N818 - it ends a process, and another one tells why
    """This process ends because another one does, which has told why."""


@dataclass(frozen=True)
class Processes:
    """The processes that work together, and which of them this one is.

    Attributes:
        rank: The number of this process, from 0.
        count: The number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def share(self, total: int, rank: int | None = None) -> range:
        """Return which of ``total`` things are for a process; the numbers of two processes differ by 1 at most.

        Example:
            >>> [list(Processes(0, 3).share(7, rank)) for rank in range(3)]
            [[0, 1], [2, 3], [4, 5, 6]]
        """
        number = self.rank if rank is None else rank
        return range(total * number // self.count, total * (number + 1) // self.count)

    def broadcast(self, value: _T) -> _T:
        """Return the value of process 0 in every process."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]

    def collect(self, value: _T) -> list[_T]:
        """Return the values of all processes in every process."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def own_rows(self, rows: int, groups: int, group_rows: int, rank: int | None = None) -> Tensor:
        """Choose the positions (b,) int64 of the rows of a batch that a process computes.

        Args:
            rows: The number of rows: one or several blocks of ``groups`` times ``group_rows``.
            groups: The groups of a block, such as the identities of the labelled rows. A group stays in one process.
            group_rows: The rows of a group.
            rank: The process; None stands for this one.

        Example:
            >>> Processes(1, 2).own_rows(8, groups=2, group_rows=2).tolist()
            [2, 3, 6, 7]
        """
        blocks = torch.arange(rows).view(-1, groups, group_rows)
        own = self.share(groups, rank)
        return blocks[:, own.start : own.stop].flatten()


ONE_PROCESS = Processes()


def rank_and_count() -> tuple[int, int]:
    """Return the number of this process and the number of all, from the variables that torchrun sets; (0, 1) without.

    Raises:
        ConfigError: The variables hold no such numbers.
    """
    rank, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        found = int(rank), int(count)
    except ValueError:
        found = (-1, 0)
    if not 0 <= found[0] < found[1]:
        raise ConfigError(f"RANK={rank} and WORLD_SIZE={count}: expected a process and a count, as torchrun sets them")
    return found


@contextmanager
def joined_processes(remedy: str, backend: str = "gloo") -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started during the ``with`` block.

    An error is told once, by the first process that has one.

    Args:
        remedy: What the user can do when another process has ended.
        backend: What carries tensors between processes.

    Raises:
        ConfigError: Another process ended or cannot be reached.
        SilentExit: This process ends because another one does, which has told why.
    """
    processes = Processes(*rank_and_count())
    if processes.count == 1:
        yield processes
        return
    store = _join(processes, backend)
    before, failed = signal.signal(signal.SIGTERM, _end_by_signal), True
    try:
        yield processes
        failed = False
    except SilentExit:
        raise
    except ReidError as error:
        raise _told_once(store, error, is_own=True, rank=processes.rank) from error
    except RuntimeError as error:
        if not _ENDED.search(str(error)):
            raise
        ended = ConfigError(
            f"another of the {processes.count} processes ended or cannot be reached, so process {processes.rank} ends"
            f" too; {remedy}"
        )
        raise _told_once(store, ended, is_own=False, rank=processes.rank) from error
    finally:
        signal.signal(signal.SIGTERM, before)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        if failed and processes.is_writer:
            _wait_for_others(store, processes.count)


def _join(processes: Processes, backend: str) -> Store:
    try:
        distributed.init_process_group(backend, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"process {processes.rank} of {processes.count} cannot join the others ({str(error).splitlines()[0]});"
            " start all of them with torchrun"
        ) from error
    store: Store = distributed_c10d._get_default_store()
    return PrefixStore("reid", store)


def _end_by_signal(_number: int, _frame: object) -> None:
    """End this process when torchrun ends all: as if the connection to the process that failed had closed."""
    raise RuntimeError("the connection closed: torchrun ends all processes")


def _told_once(store: Store, error: ReidError, *, is_own: bool, rank: int) -> ReidError:
    """Return the error in the first process that asks, and a silent one in the others.

    Args:
        store: Where the processes count their errors. Without torchrun it ends with process 0.
        error: The error of this process.
        is_own: Whether it is more than that another process ended.
        rank: The number of this process.
    """
    try:
        first = store.add(_ERRORS, 1) == 1
    except RuntimeError:  # process 0 was killed: process 1 tells it
        first = not is_own and rank == 1
    return error if first else SilentExit("")


def _wait_for_others(store: Store, count: int) -> None:
    """Keep the store for a moment, in which the other processes learn whether the error was told."""
    with suppress(RuntimeError):
        for _ in range(100):
            if store.add(_ERRORS, 0) >= count:
                return
            time.sleep(0.05)


def check_same_rows(processes: Processes, digest: str) -> None:
    """Check that all processes read the same rows.

    Raises:
        ConfigError: A process reads others.
    """
    found = processes.collect(digest)
    for rank, other in enumerate(found):
        if other != found[0]:
            raise ConfigError(
                f"process {rank} reads other training rows than process 0 ({other}, {found[0]}); give all processes the"
                " same data"
            )


class RowGathering(torch.autograd.Function):
    """Put the rows of all processes together, in the order of the whole batch.

    Every process computes the same loss from them, so the gradient of a process's own rows is the gradient of the
    loss, and nothing has to be sent back.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, positions: list[Tensor], rank: int) -> Tensor:
        """Gather rows (b, ...); ``positions`` are those of each process's rows in the whole batch."""
        most = max(len(part) for part in positions)
        padded = own.new_zeros((most, *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in positions]
        distributed.all_gather(parts, padded)
        whole = own.new_empty((sum(len(part) for part in positions), *own.shape[1:]))
        for part, where in zip(parts, positions, strict=True):
            whole[where] = part[: len(where)]
        ctx.own = positions[rank]
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the rows of this process."""
        return gradients[0][ctx.own], None, None
