"""Weights of networks that write crops: a safetensors file whose header holds a card.

The card says what the network is for, how it was trained and on how many crops, so that a file explains itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from reid.errors import WeightsError
from reid.files import require_regular_file
from reid.norm.tensor_file import write_table
from reid.structured_text import parse_json

FORMAT = "reid-generation-1"
METHODS = {"completion": "reid complete", "generator": "reid generate"}


@dataclass(frozen=True)
class TrainingCard:
    """What is known about the weights of a network that writes crops.

    Attributes:
        method: What the network does: "completion" or "generator".
        settings: What decides its layers and its losses.
        data: A hash of the rows that it learned from.
        crops: Their number.
        seed: The seed of the training.
        rounds: How many rounds it was trained.
        metrics: The last line of its metrics.
    """

    method: str
    settings: Mapping[str, object]
    data: str
    crops: int
    seed: int
    rounds: int
    metrics: Mapping[str, float] = field(default_factory=dict)

    def number(self, name: str, most: int) -> int:
        """Return a whole number of the settings, from 1 to ``most``; WeightsError otherwise."""
        value = self.settings.get(name)
        if type(value) is not int or not 1 <= value <= most:
            raise WeightsError(
                f"the card says {name} = {value}; expected a whole number of 1 to {most}; train it again"
            )
        return value


def save_weights(path: Path, tensors: Mapping[str, Tensor], card: TrainingCard) -> None:
    """Write weights and their card; the file appears whole or not at all.

    Raises:
        WeightsError: The file cannot be written.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_table(path, whole, {"format": FORMAT, "card": json.dumps({**asdict(card)})})


def load_weights(path: Path, method: str) -> tuple[dict[str, Tensor], TrainingCard]:
    """Read weights and their card.

    Args:
        path: The file.
        method: What the network has to be for.

    Returns:
        The tensors by name, and the card.

    Raises:
        WeightsError: The file is missing or damaged, or holds another network.
    """
    require_regular_file(path, "weights file")
    if not path.is_file():
        raise WeightsError(f'{path}: no such weights file; "{METHODS[method]} --train" writes one')
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dict
        if metadata.get("format") != FORMAT:
            raise WeightsError(f'{path}: expected weights of "{METHODS[method]} --train", got another safetensors file')
        values = parse_json(metadata["card"])
        card = TrainingCard(**values) if isinstance(values, dict) else None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise WeightsError(f'{path}: damaged or no weights file; "{METHODS[method]} --train" writes one') from error
    if card is None or not isinstance(card.settings, dict):
        raise WeightsError(f"{path}: the card in the header is damaged; train it again")
    if card.method != method:
        command = METHODS.get(str(card.method), "another program")
        raise WeightsError(f'{path}: these weights are for "{command}", not for "{METHODS[method]}"')
    return tensors, card


def fill_network(network: nn.Module, tensors: Mapping[str, Tensor], prefix: str, path: Path) -> nn.Module:
    """Load the tensors whose names begin with ``prefix`` into a network, and put it into evaluation mode.

    Raises:
        WeightsError: They do not fit, or a number is not finite.
    """
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        network.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"{path}: the tensors do not fit the network of this version; train it again") from error
    if not all(bool(torch.isfinite(value).all()) for value in state.values() if value.is_floating_point()):
        raise WeightsError(f"{path}: holds numbers that are not finite; train it again with a lower learning rate")
    return network.eval()


def with_prefix(network: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return the state of a network with a prefix before every name."""
    return {f"{prefix}{name}": value for name, value in network.state_dict().items()}
