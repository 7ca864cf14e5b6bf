"""What layers with a row of numbers for each named domain share: the names in their state, and rows found by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn


class NamedRows(nn.Module):
    """A layer with a row for each of the named ``domains``.

    The names are saved with its state, so that a state loads by name, whatever the order.
    """

    domains: tuple[str, ...]

    def get_extra_state(self) -> dict[str, list[str]]:
        return {"domains": list(self.domains)}

    def set_extra_state(self, state: dict[str, list[str]]) -> None:
        """Restore nothing: the names are checked when the rows load."""

    def row_order(self, state_dict: dict[str, Any], prefix: str, error_messages: list[str]) -> list[int] | None:
        """Find the row of ``state_dict`` that each domain takes.

        A state without names is taken to have the names of this layer.

        Args:
            state_dict: The state that is being loaded.
            prefix: The name of this layer in it.
            error_messages: Where a message is added when the state has other names.

        Returns:
            One row for each domain, or None when the names differ.
        """
        extra: Mapping[str, list[str]] = state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())
        names = list(extra["domains"])
        if sorted(names) != sorted(self.domains):
            error_messages.append(f"{prefix.rstrip('.')}: expected domains {list(self.domains)}, the state has {names}")
            return None
        return [names.index(name) for name in self.domains]


def fill_rows(table: Tensor, old: Tensor, rows: Sequence[int | None], default: Tensor) -> None:
    """Set ``table[i]`` to ``old[rows[i]]``, or to ``default`` where ``rows[i]`` is None."""
    for i, row in enumerate(rows[: len(table)]):
        table[i] = default if row is None else old[row]


def copy_flags_and_hooks(new: nn.Module, old: nn.Module) -> None:
    """Copy to ``new`` what the state of ``old`` does not hold: the training flag, frozen parameters and hooks."""
    new.train(old.training)
    for key, parameter in new.named_parameters(recurse=False):
        parameter.requires_grad_(getattr(old, key).requires_grad)
    new._forward_hooks.update(old._forward_hooks)
    new._forward_pre_hooks.update(old._forward_pre_hooks)


def named_domains(network: nn.Module) -> tuple[str, ...]:
    """Return the domain names that the layers of a network know, in the order of their indices; () for none.

    These are the names of :func:`reid.norm.domains_of` and, in a network of plain norms, those of its adapters.
    """
    layers = (layer for layer in network.modules() if isinstance(layer, NamedRows))
    return next((layer.domains for layer in layers if layer.domains), ())
