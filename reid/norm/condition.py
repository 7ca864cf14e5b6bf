"""What a normalization layer is told about a batch besides its pixels, and the one door it comes by.

``Given(network)(images, domain)`` makes the condition visible to every layer of ``network`` for
the length of one forward pass.  The store is per thread, so threads serving different cameras do
not meet; it nests, and an exception restores what was there.  Nothing here knows what a layer
does with the condition.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
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
    index per row when domains are mixed, a float tensor (B, G) of weights that sum to 1 in every row
    when it is known in part, None when nothing is known.  Indices count the domain names of the
    network, see :func:`reid.norm.domains_of`.  ``groups`` may say of rows sorted by domain which runs
    they form: (domain, number of rows), in order; layers then work run by run.

    ``style`` (B, S) or (B,) and ``mask`` (B, 1, H, W) are for the layers of ``reid.norm.specialised.style`` and
    ``reid.norm.specialised.region_norm``.  With ``update`` false no layer moves its running statistics.
    """

    domain: Domain = None
    groups: Groups | None = None
    style: Tensor | None = None
    mask: Tensor | None = None
    update: bool = True


class _Store(threading.local):
    def __init__(self) -> None:  # in every thread that comes by; the compiler cannot guard a class's default
        self.condition: Condition | None = None


_STORE = _Store()


def current_condition() -> Condition | None:
    """The condition of the forward pass that this thread is in, or None outside of any."""
    return _STORE.condition


@contextmanager
def given(condition: Condition | None) -> Iterator[None]:
    """Let the layers called inside the ``with`` see ``condition``; restore the previous one after."""
    previous = _STORE.condition
    _STORE.condition = condition
    try:
        yield
    finally:
        _STORE.condition = previous


def recomputing() -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """The ``context_fn`` of ``torch.utils.checkpoint.checkpoint(..., use_reentrant=False)`` inside a forward pass.

    Gradient checkpointing computes a part of the network again when the forward pass, and with it the
    condition, is over.  This gives the second computation the condition of the first, without moving the
    running statistics a second time.
    """
    condition = current_condition() or Condition()
    return lambda: (nullcontext(), given(replace(condition, update=False)))


class DomainBranch(nn.Module):
    """A part of a network that predicts the domain of an image: images (B, 3, H, W) -> weights (B, G).

    ``Given`` asks it when the caller gives no domain.
    """


class Given(nn.Module):
    """``Given(network)(images, domain)``: the network with its condition as an ordinary argument.

    ``images`` (B, 3, H, W); ``domain`` int, int64 tensor (B,), float tensor (B, G) or None; ``style`` and
    ``mask``: see :class:`Condition`.  A network without domains takes any condition and ignores it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Tensor, domain: Domain = None, style: Tensor | None = None, mask: Tensor | None = None
    ) -> Any:
        """Run the network under the condition; raises ConditionError on labels of another shape or type.

        The output is the network's: a tensor, or a structure of tensors whose rows are those of ``images``.
        """
        if domain is None:
            branch = next((part for part in self.model.modules() if isinstance(part, DomainBranch)), None)
            domain = None if branch is None else branch(images)
        elif not isinstance(domain, int | Tensor):
            raise ConditionError(
                f"domain: expected an int, an int64 tensor of one index per image, weights (B, G), or None,"
                f" got {type(domain).__name__}; indices count reid.norm.domains_of(network)"
            )
        if isinstance(domain, Tensor):
            check_domain(domain, images.shape[0])
        condition = Condition(domain, style=style, mask=mask)
        if not isinstance(domain, Tensor) or domain.is_floating_point() or not _sortable(domain):
            with given(condition):
                return self.model(images)
        return self._by_group(images, condition, domain)

    def _by_group(self, images: Tensor, condition: Condition, labels: Tensor) -> Any:
        """Sort the rows by domain once, so that every layer can give each run to torch's fused kernel.

        The result of a row is then that of a batch of its domain alone, bit for bit.  An accelerator would
        wait for the host to read the labels, so there the layers take labels in any order instead.
        """
        order = torch.argsort(labels, stable=True)
        runs, lengths = torch.unique_consecutive(labels[order], return_counts=True)
        groups = tuple(zip(runs.tolist(), lengths.tolist(), strict=True))
        if len(groups) == 1:
            with given(replace(condition, domain=groups[0][0])):
                return self.model(images)
        if torch.equal(order, torch.arange(len(order))):
            with given(replace(condition, groups=groups)):
                return self.model(images)
        style, mask = (None if rows is None else rows[order] for rows in (condition.style, condition.mask))
        with given(replace(condition, domain=labels[order], groups=groups, style=style, mask=mask)):
            output = self.model(images[order])
        back = torch.argsort(order)
        return tree_map_only(Tensor, lambda rows: rows[back], output)


def _sortable(labels: Tensor) -> bool:
    return not torch.compiler.is_compiling() and labels.device.type == "cpu" and len(labels) > 0


def check_domain(domain: Tensor, rows: int) -> None:
    """Refuse what is neither one int64 index per row of the batch nor a row of weights for each."""
    soft = domain.is_floating_point() and domain.dim() == 2 and domain.shape[0] == rows
    if not soft and (domain.dtype != torch.int64 or domain.shape != (rows,)):
        raise ConditionError(
            f"domain labels: expected int64 of shape ({rows},), one per image, or weights ({rows}, G),"
            f" got {str(domain.dtype).removeprefix('torch.')} of shape {tuple(domain.shape)}"
        )
