"""Prefixes that wrappers around a network, such as DataParallel and torch.compile, leave in the keys of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from reid.errors import WeightsError

WRAPPERS = ("module", "_orig_mod")  # DataParallel and torch.compile
MODEL = "model"  # the attribute that holds the network in many training programs
TRUNK = "backbone"  # the attribute that holds the network, or its first part, as in FastReID


def without_wrappers(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers, in any order and however often they stand there.

    "module." and "_orig_mod." go from the beginning of each key.  "model." and "backbone." name parts of some networks,
    so they go where every key has them; behind a "backbone." that stays, they are wrappers too.

    Args:
        tensors: The table of a file.
        path: The file, for the message.

    Raises:
        WeightsError: If two tensors would have the same name.

    Example:
        >>> import torch
        >>> list(without_wrappers({"module.model._orig_mod.conv1.weight": torch.ones(1)}, Path("w.pth")))
        ['conv1.weight']
    """
    names = {key: _split(key) for key in tensors}
    while True:
        first = {prefixes[0] if prefixes else "" for prefixes, _ in names.values()}
        if len(first) != 1 or "" in first:
            break
        names = {key: (prefixes[1:], rest) for key, (prefixes, rest) in names.items()}
    table: dict[str, Tensor] = {}
    for key, (prefixes, rest) in names.items():
        outer = prefixes if TRUNK not in prefixes else prefixes[: prefixes.index(TRUNK) + 1]
        name = ".".join((*outer, rest))
        if name in table:
            raise WeightsError(
                f"{path}: two tensors for {name}, the second is {key}; keep only one of them in the file"
            )
        table[name] = tensors[key]
    return table


def _split(key: str) -> tuple[list[str], str]:
    """The prefixes "model" and "backbone" at the beginning of a key, and the rest; other wrappers are left out."""
    prefixes: list[str] = []
    rest = key
    while True:
        first, dot, inner = rest.partition(".")
        if not dot or first not in (*WRAPPERS, MODEL, TRUNK):
            return prefixes, rest
        prefixes += [first] if first not in WRAPPERS else []
        rest = inner
