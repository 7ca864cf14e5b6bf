"""How much a network computes for an image: the multiplications with an addition of its convolutions and linear layers.

Papers call this number FLOPs or MACs.  Norms, sums and poolings are left out, as papers leave them out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from reid.models.networks.tied_channels import TiedChannels
from reid.norm import Given, domains_of
from reid.records import IntArray


def multiply_adds_of_layers(network: nn.Module, height: int, width: int) -> dict[str, int]:
    """Count the multiply-adds of each convolution and linear layer for one image.

    Args:
        network: Plain or with domains; it runs once on an empty image and stays as it is.
        height: H of the image.
        width: W of the image.

    Returns:
        The number for each layer by name; a layer that runs several times counts as often.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False))
        >>> multiply_adds_of_layers(network, 4, 2)  # 4 x 2 positions, 8 x 3 x 3 x 3 weights
        {'0': 1728}
    """
    found: Counter[str] = Counter()
    hooks = [
        layer.register_forward_hook(partial(_note, found, name))
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    device, was_training = next(network.parameters()).device, network.training
    try:
        with torch.inference_mode():
            network.eval()
            Given(network)(torch.zeros(1, 3, height, width, device=device), 0 if domains_of(network) else None)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return dict(found)


def count_multiply_adds(network: nn.Module, height: int, width: int) -> int:
    """Count the multiply-adds of a network for one image, as :func:`multiply_adds_of_layers` does for its layers."""
    return sum(multiply_adds_of_layers(network, height, width).values())


def _note(found: Counter[str], name: str, layer: nn.Conv2d | nn.Linear, _inputs: object, output: Tensor) -> None:
    positions = output.shape[2] * output.shape[3] if isinstance(layer, nn.Conv2d) else output[0].numel() // len(
        layer.weight
    )  # fmt: skip
    found[name] += positions * layer.weight.numel()


class ShareOfMultiplyAdds:
    """How much a network computes with fewer channels, as a share of what it computes with all.

    Args:
        costs: The multiply-adds of each layer of the whole network.
        groups: The groups of channels that can be removed.

    Example:
        >>> from reid.models.embedder import Embedder, NetworkSpec
        >>> from reid.models.networks.tied_channels import tied_channels
        >>> network = Embedder(NetworkSpec("resnet18_x0_25"))
        >>> groups = tied_channels(network)
        >>> share = ShareOfMultiplyAdds(multiply_adds_of_layers(network, 64, 32), groups)
        >>> bool(share([group.size for group in groups]) == 1)
        True
    """

    def __init__(self, costs: Mapping[str, int], groups: tuple[TiedChannels, ...]) -> None:
        self._sizes = np.array([group.size for group in groups], np.float64)
        self._costs = np.array(list(costs.values()), np.float64) / sum(costs.values())
        everything = len(groups)  # the row of what stays whole
        row = {name: number for number, name in enumerate(costs)}
        self._written, self._read = (np.full(len(costs), everything) for _ in range(2))
        for number, group in enumerate(groups):
            self._written[[row[name] for name in (*group.writers, *group.passers) if name in row]] = number
            self._read[[row[name] for name in group.readers if name in row]] = number

    def __call__(self, counts: IntArray | Sequence[int]) -> float:
        """Return the share that remains, 0..1, with so many channels in each group, (groups,)."""
        parts = np.append(np.asarray(counts, np.float64) / self._sizes, 1.0)
        return float((self._costs * parts[self._written] * parts[self._read]).sum())
