"""What the layers of a network know about a batch besides its pixels, above all the domain of each image.

``Given(network)(images, domain)`` shows a :class:`Condition` to every layer of ``network`` for the length of one
forward pass.  The condition is stored per thread, so several threads may use one network with different domains.
Conditions nest, and an exception restores the outer one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from reid.errors import ConditionError, unknown_name
from reid.norm.domain_rows import named_domains

Domain = int | Tensor | None
NamedDomain = Domain | str | Sequence[str]
Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Condition:
    """What is known about a batch of B images with G domains.

    Attributes:
        domain: The domain of the images: an int when all belong to one domain, an int64 tensor (B,) with one index
            for each image, a float tensor (B, G) of weights whose rows sum to 1, or None when it is not known.
            Indices count the names of :func:`reid.norm.domains_of`.
        runs: The runs that rows sorted by domain form, as pairs (domain, number of rows); layers then work run by
            run.  None when the rows are not sorted.
        order: Int64 (B,): row i inside the network is row ``order[i]`` of the caller.  None when they are the same;
            see :func:`in_callers_order`.
        style: (B, S) or (B,), for the layers of :mod:`reid.norm.specialised.style`.
        mask: (B, 1, H, W), for the layers of :mod:`reid.norm.specialised.region_norm`.
        update: Whether layers in training move their running statistics.
    """

    domain: Domain = None
    runs: Runs | None = None
    order: Tensor | None = None
    style: Tensor | None = None
    mask: Tensor | None = None
    update: bool = True


class _ThreadState(threading.local):
    # Set in __init__, which every thread runs: the compiler cannot guard the default of a class.
    def __init__(self) -> None:
        self.condition: Condition | None = None


_STATE = _ThreadState()


def current_condition() -> Condition | None:
    """Return the condition of the forward pass that this thread is in, or None outside of any."""
    return _STATE.condition


@contextmanager
def given(condition: Condition | None) -> Iterator[None]:
    """Show a condition to the layers that are called inside the ``with``, and restore the previous one afterwards.

    Args:
        condition: What the layers are to know, or None for nothing.

    Example:
        >>> from reid.norm.condition import current_condition
        >>> with given(Condition(domain=2)):
        ...     current_condition().domain
        2
        >>> current_condition() is None
        True
    """
    previous = _STATE.condition
    _STATE.condition = condition
    try:
        yield
    finally:
        _STATE.condition = previous


def in_callers_order(rows: Tensor) -> Tensor:
    """Put rows that a layer or a hook sees inside a forward pass into the order of the images that the caller gave.

    On a CPU :class:`Given` sorts the images by domain, so a hook sees them in another order than the domains that the
    training code holds.  Call this inside the hook, where the condition of the pass is known.

    Args:
        rows: A tensor (B, ...) with one row for each image of the batch.

    Returns:
        The same rows in the caller's order.  A tensor without a row for each image (a scalar, or one of another
        length) is returned unchanged, and so is everything outside of a pass.

    Example:
        >>> layer = nn.Identity()
        >>> found = []
        >>> hook = layer.register_forward_hook(lambda _layer, _inputs, output: found.append(in_callers_order(output)))
        >>> _ = Given(layer)(torch.tensor([[10.0], [20.0], [30.0]]), torch.tensor([1, 0, 1]))
        >>> found[0].flatten().tolist()
        [10.0, 20.0, 30.0]
    """
    condition = _STATE.condition
    return rows if condition is None else _unsorted(rows, condition.order)


def recomputing() -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """Make the ``context_fn`` of ``torch.utils.checkpoint.checkpoint(..., use_reentrant=False)``.

    Gradient checkpointing computes a part of the network again when the forward pass, and with it the condition, is
    over.  The second computation then gets the condition of the first, and does not move the running statistics a
    second time.  Call this inside the forward pass.

    Returns:
        A function that gives the contexts of the first and of the second computation.
    """
    condition = current_condition() or Condition()
    return lambda: (nullcontext(), given(replace(condition, update=False)))


class DomainBranch(nn.Module):
    """A part of a network that predicts the domain of an image: images (B, 3, H, W) -> weights (B, G).

    :class:`Given` calls it when the caller gives no domain.
    """


class Given(nn.Module):
    """Give a network the domain of each image as an ordinary argument: ``Given(network)(images, domain)``.

    A network without domains takes any index and ignores it.

    Args:
        model: The network; it is kept as ``model``.

    Example:
        >>> from reid.norm import camera_batchnorm, convert_norm
        >>> network = convert_norm(nn.Sequential(nn.BatchNorm2d(3)), camera_batchnorm(["door", "yard"])).eval()
        >>> images = torch.zeros(2, 3, 4, 4)
        >>> Given(network)(images, ["yard", "door"]).shape
        torch.Size([2, 3, 4, 4])
        >>> torch.equal(Given(network)(images, "yard"), Given(network)(images, 1))
        True
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Tensor, domain: NamedDomain = None, style: Tensor | None = None, mask: Tensor | None = None
    ) -> Any:
        """Run the network under the condition.

        Args:
            images: (B, 3, H, W).
            domain: One domain for all images (an index or a name), one for each image (an int64 tensor (B,) of
                indices, or a sequence of B names), float weights (B, G), or None.  Indices and names are those of
                :func:`reid.norm.domains_of`.
            style: See :class:`Condition`.
            mask: See :class:`Condition`.

        Returns:
            What the network returns, with rows in the order of ``images``.  Tensors without a row for each image
            stay as they are.

        Raises:
            ConditionError: If a name is unknown, or if ``domain`` has another type or shape.
        """
        index = self._as_index(domain, images)
        condition = Condition(index, style=style, mask=mask)
        if not isinstance(index, Tensor) or index.is_floating_point() or not _can_sort(index):
            with given(condition):
                return self.model(images)
        return self._run_sorted(images, condition, index)

    def _as_index(self, domain: NamedDomain, images: Tensor) -> Domain:
        """Look up names, ask a branch where there is no domain, and check the rest."""
        if domain is None:
            branch = next((part for part in self.model.modules() if isinstance(part, DomainBranch)), None)
            domain = None if branch is None else branch(images)
        elif isinstance(domain, str):
            domain = _look_up([domain], named_domains(self.model))[0]
        elif isinstance(domain, Sequence) and all(isinstance(name, str) for name in domain):
            found = _look_up(domain, named_domains(self.model))
            domain = torch.tensor(found, dtype=torch.int64, device=images.device)
        elif not isinstance(domain, int | Tensor):
            raise ConditionError(
                f"domain: expected an int or a name, an int64 tensor or a list of names with one for each image,"
                f" weights (B, G), or None, got {type(domain).__name__}; indices and names are those of"
                " reid.norm.domains_of(network)"
            )
        if isinstance(domain, Tensor):
            check_domain(domain, images.shape[0])
        return domain

    def _run_sorted(self, images: Tensor, condition: Condition, domain: Tensor) -> Any:
        """Sort the rows by domain once, so that every layer can give each run to torch's fused kernel.

        The result of a row is then bit for bit that of a batch of its domain only.  An accelerator would wait for
        the host to read the domains, so there the layers take rows in any order instead.
        """
        order = torch.argsort(domain, stable=True)
        starts, lengths = torch.unique_consecutive(domain[order], return_counts=True)
        runs = tuple(zip(starts.tolist(), lengths.tolist(), strict=True))
        if len(runs) == 1:
            with given(replace(condition, domain=runs[0][0])):
                return self.model(images)
        if torch.equal(order, torch.arange(len(order))):
            with given(replace(condition, runs=runs)):
                return self.model(images)
        style, mask = (None if rows is None else rows[order] for rows in (condition.style, condition.mask))
        with given(Condition(domain[order], runs, order, style, mask)):
            output = self.model(images[order])
        return tree_map_only(Tensor, lambda rows: _unsorted(rows, order), output)


def _can_sort(domain: Tensor) -> bool:
    return not torch.compiler.is_compiling() and domain.device.type == "cpu" and len(domain) > 0


def _unsorted(rows: Tensor, order: Tensor | None) -> Tensor:
    """Undo ``rows[order]``; a tensor without a row for each image stays."""
    if order is None or rows.dim() == 0 or len(rows) != len(order):
        return rows
    return rows[torch.argsort(order)]


def _look_up(names: Sequence[str], known: tuple[str, ...]) -> list[int]:
    for name in names:
        if name not in known:
            raise ConditionError(unknown_name("domain", name, known))
    return [known.index(name) for name in names]


def check_domain(domain: Tensor, images: int) -> None:
    """Raise ConditionError unless the tensor holds an int64 index, or a row of weights, for each of the images."""
    weights = domain.is_floating_point() and domain.dim() == 2 and domain.shape[0] == images
    if not weights and (domain.dtype != torch.int64 or domain.shape != (images,)):
        raise ConditionError(
            f"domain: expected int64 of shape ({images},), one index for each image, or weights ({images}, G),"
            f" got {str(domain.dtype).removeprefix('torch.')} of shape {tuple(domain.shape)}"
        )


def check_known_domains(condition: Condition, domains: Sequence[str], *, required: bool = True) -> None:
    """Check that the condition names domains of a layer.

    Args:
        condition: What is known about the batch.
        domains: The names of the domains of the layer; () is one domain.
        required: Whether a layer with several domains needs to know which.

    Raises:
        ConditionError: If an index is out of range, or if the domain is required and not known.
    """
    if required and condition.domain is None and len(domains) > 1:
        raise ConditionError(
            f"this network normalizes by domain ({', '.join(domains)}) and does not know which:"
            " call Given(network)(images, domain)"
        )
    whole = [condition.domain] if isinstance(condition.domain, int) else []
    for domain in whole or [domain for domain, _ in condition.runs or ()]:
        if not 0 <= domain < max(len(domains), 1):
            raise ConditionError(f"domain {domain} is out of range: this network has {max(len(domains), 1)}")
