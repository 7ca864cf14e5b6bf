"""Several widths of a network in one file of weights, and which of them is loaded.

A narrow network has the leading channels of the wide one.  Its convolutions and linear layers are parts of those of the
wide network and take no space in the file; its norms, with the statistics of each camera, are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from reid.errors import ConfigError, WeightsError, unknown_name
from reid.models.embedder import NetworkSpec
from reid.models.execution import current_width
from reid.models.networks.channel_removal import leading_rows, leading_weights

PREFIX = "widths."  # of the names of tensors that belong to one width, before its name

Channels = Mapping[str, int]


@dataclass(frozen=True, eq=False)
class NarrowWidth:
    """One width beside the widest.

    Attributes:
        channels: How many channels each group that is smaller has.
        tensors: What it does not share with the wide network, by name.
    """

    channels: Channels
    tensors: Mapping[str, Tensor]


def name_of_width(width: float) -> str:
    """Return the name of a width in a file.

    Example:
        >>> name_of_width(0.50)
        '0.5'
    """
    return f"{width:g}"


def check_single_width(source: str) -> None:
    """Refuse a width for a network that has one only."""
    width = current_width()
    if width not in (None, 1.0):
        raise ConfigError(
            f'{source}: has one width, not {width:g}; make a file of several with "reid slim --widths", or leave'
            " --width out"
        )


def select_width(
    spec: NetworkSpec,
    widths: Mapping[str, Channels],
    tensors: dict[str, Tensor],
    source: str,
    build: Callable[[], nn.Module],
) -> tuple[NetworkSpec, dict[str, Tensor]]:
    """Select the tensors of the current width.

    Args:
        spec: The wide network.
        widths: The channels of each narrower width by its name; {} for a file of one width.
        tensors: All tensors of the file.
        source: The file, for messages.
        build: Builds the wide network, with any weights.

    Returns:
        What the network is built of, and its tensors.

    Raises:
        ConfigError: The file does not have this width.
        WeightsError: Its widths do not fit its network.
    """
    wide = {key: tensor for key, tensor in tensors.items() if not key.startswith(PREFIX)}
    width = current_width()
    if width in (None, 1.0):
        return spec, wide
    if not widths:
        check_single_width(source)
    name = name_of_width(width or 1.0)
    if name not in widths:
        raise ConfigError(f"{source}: {unknown_name('--width', name, ['1', *widths])}")
    channels = tuple(widths[name].items())
    rows = leading_rows(build(), channels)
    start = f"{PREFIX}{name}:"
    own = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
    narrow = replace(spec, channels=tuple({**dict(spec.channels), **dict(channels)}.items()))
    try:
        return narrow, {**leading_weights(wide, rows), **own}
    except (IndexError, RuntimeError) as error:
        raise WeightsError(f"{source}: the header of this weights file is damaged (width {name})") from error


def tensors_of_widths(widths: Mapping[str, NarrowWidth]) -> dict[str, Tensor]:
    """Return the tensors of some widths under their names in a file."""
    return {
        f"{PREFIX}{name}:{key}": tensor.detach().cpu().contiguous().clone()
        for name, width in widths.items()
        for key, tensor in width.tensors.items()
    }
