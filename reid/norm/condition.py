"""What a normalization layer is told about a batch besides its pixels, and the one door it comes by.

``Given(network)(images, domain)`` makes the condition visible to every layer of ``network`` for
the length of one forward pass.  The store is per thread, so threads serving different cameras do
not meet; it nests, and an exception restores what was there.  Nothing here knows what a layer
does with the condition.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from reid.errors import ConditionError

Domain = int | Tensor | None
Groups = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Condition:
    """What is known about a batch.

    ``domain`` is an int when the whole batch belongs to one domain, an int64 tensor (B,) of one
    index per row when domains are mixed, None when nothing is known.  Indices count the domain
    names of the network, see :func:`reid.norm.domains_of`.  ``groups`` may say of rows sorted by
    domain which runs they form: (domain, number of rows), in order; layers then work run by run.
    """

    domain: Domain = None
    groups: Groups | None = None


class _Store(threading.local):
    condition: Condition | None = None


_STORE = _Store()


def current_condition() -> Condition | None:
    """The condition of the forward pass that this thread is in, or None outside of any."""
    return _STORE.condition


@contextmanager
def given(condition: Condition | None) -> Iterator[None]:
    """Let the layers called inside the ``with`` see ``condition``; restore the previous one after.

    Gradient checkpointing recomputes outside the forward pass and needs
    ``context_fn=lambda: (nullcontext(), given(condition))``.
    """
    previous = _STORE.condition
    _STORE.condition = condition
    try:
        yield
    finally:
        _STORE.condition = previous


class Given(nn.Module):
    """``Given(network)(images, domain)``: the network with its condition as an ordinary argument.

    ``images`` (B, 3, H, W); ``domain`` int, int64 tensor (B,) or None, see :class:`Condition`.
    A network without domains takes any condition and ignores it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, domain: Domain = None) -> Any:
        """Run the network under the condition; raises ConditionError on labels of another shape or type.

        The output is the network's: a tensor, or a structure of tensors whose rows are those of ``images``.
        """
        if not isinstance(domain, Tensor):
            if not (domain is None or isinstance(domain, int)):
                raise ConditionError(
                    f"domain: expected an int, an int64 tensor of one index per image, or None,"
                    f" got {type(domain).__name__}; indices count reid.norm.domains_of(network)"
                )
            with given(Condition(domain)):
                return self.model(images)
        check_labels(domain, len(images))
        if not len(domain) or domain.device.type != "cpu" or torch.compiler.is_compiling():
            with given(Condition(domain)):
                return self.model(images)
        return self._by_group(images, domain)

    def _by_group(self, images: Tensor, labels: Tensor) -> Any:
        """Sort the rows by domain once, so that every layer can give each run to torch's fused kernel.

        The result of a row is then that of a batch of its domain alone, bit for bit.  An accelerator would
        wait for the host to read the labels, so there the layers take labels in any order instead.
        """
        order = torch.argsort(labels, stable=True)
        runs, lengths = torch.unique_consecutive(labels[order], return_counts=True)
        groups = tuple(zip(runs.tolist(), lengths.tolist(), strict=True))
        if len(groups) == 1:
            with given(Condition(groups[0][0])):
                return self.model(images)
        if torch.equal(order, torch.arange(len(order))):
            with given(Condition(labels, groups)):
                return self.model(images)
        with given(Condition(labels[order], groups)):
            output = self.model(images[order])
        back = torch.argsort(order)
        return tree_map_only(Tensor, lambda rows: rows[back], output)


def check_labels(labels: Tensor, rows: int) -> None:
    """Refuse labels that are not one int64 index per row of the batch."""
    if labels.dtype != torch.int64 or labels.shape != (rows,):
        raise ConditionError(
            f"domain labels: expected int64 of shape ({rows},), one per image,"
            f" got {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}"
        )
