"""Which channels of a network stay: how important each is, and how many each group keeps.

Measures of importance: the L1 norm of the weights that write a channel (Li et al., "Pruning Filters for Efficient
ConvNets", ICLR 2017, section 3.1), the scale that its norms give it (Liu et al., "Learning Efficient Convolutional
Networks through Network Slimming", ICCV 2017, section 3), and the product of both with the weights that read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from reid.errors import ConfigError
from reid.models.networks.multiply_adds import ShareOfMultiplyAdds
from reid.models.networks.resnet_changes import InstanceBatchNorm
from reid.models.networks.tied_channels import TiedChannels
from reid.records import IntArray

STEP = 4  # a group keeps a multiple of it, because processors compute with several channels at a time
SMALLEST_SHARE = 0.125  # of its channels a group keeps at least
SMALLEST_GROUP = 8  # channels; smaller groups, such as the hidden units of a gate, stay whole
BAND = 0.01  # the multiply-adds of a candidate differ from the target by at most this share of the whole network
DRAWS = 200  # until a candidate lies in the band
_HALVINGS = 40

Importance = Mapping[str, Tensor]  # for the name of a group one number for each channel, (C,)


def fewest_channels(group: TiedChannels) -> int:
    """Return how many channels a group keeps at least.

    Example:
        >>> [fewest_channels(TiedChannels("conv", size, ("conv",), (), ())) for size in (4, 16, 256)]
        [4, 4, 32]
    """
    if group.size < SMALLEST_GROUP:
        return group.size
    return min(group.size, max(STEP, int(np.ceil(SMALLEST_SHARE * group.size / STEP)) * STEP))


def check_target(groups: Sequence[TiedChannels], share: ShareOfMultiplyAdds, target: float) -> None:
    """Refuse a target that no choice of channels reaches.

    Raises:
        ConfigError: It is not a share below 1, or more than it remains when every group is as small as it may be.
    """
    least = share([fewest_channels(group) for group in groups])
    if not least <= target < 1:
        raise ConfigError(
            f"--target {target:g}: expected the share of the multiply-adds that remains, from {least:.3f}, which this"
            " network reaches at most, to below 1"
        )


def weight_importance(network: nn.Module, groups: Sequence[TiedChannels]) -> dict[str, Tensor]:
    """Measure channels by the L1 norm of the weights that write them, depthwise convolutions included.

    Args:
        network: The network, plain or with domains.
        groups: Its groups of channels.

    Returns:
        For each group (C,) float32, the mean over its layers, each divided by its mean over the channels.
    """
    found = {}
    for group in groups:
        norms = []
        for name in (*group.writers, *group.passers):
            layer = network.get_submodule(name)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                norm = layer.weight.detach().abs().flatten(1).sum(1).cpu()
                norms.append(norm / norm.mean().clamp_min(1e-12))
        found[group.name] = torch.stack(norms).mean(0)
    return found


def scale_importance(network: nn.Module, groups: Sequence[TiedChannels]) -> dict[str, Tensor]:
    """Measure channels by the scale |gamma| of their norms.

    Where each domain has a scale of its own the largest counts, because a channel that one camera needs is needed.

    Returns:
        For each group with a norm (C,) float32, the mean over its norms; groups without one are left out.
    """
    found = {}
    for group in groups:
        layers = (network.get_submodule(name) for name in group.passers)
        scales = [scale for layer in layers if (scale := _scale(layer)) is not None]
        if scales:
            found[group.name] = torch.stack(scales).mean(0)
    return found


def channel_importance(network: nn.Module, groups: Sequence[TiedChannels]) -> dict[str, Tensor]:
    """Measure channels by the product of the weights that write them, the scale of their norms, and what reads them.

    In trials this product kept more of the embeddings than any of its factors.

    Returns:
        For each group (C,) float32.
    """
    scales, found = scale_importance(network, groups), weight_importance(network, groups)
    for group in groups:
        for name in group.readers:
            layer = network.get_submodule(name)
            weight = layer.weight.detach().abs().cpu()  # type: ignore[operator]
            norm = weight.transpose(0, 1).flatten(1).sum(1)
            found[group.name] = found[group.name] * (norm / norm.mean().clamp_min(1e-12)) ** (1 / len(group.readers))
        if group.name in scales:
            found[group.name] = found[group.name] * scales[group.name]
    return found


def _scale(layer: nn.Module) -> Tensor | None:
    if isinstance(layer, InstanceBatchNorm):
        parts = [_scale(layer.IN), _scale(layer.BN)]
        return torch.cat([part for part in parts if part is not None])
    weight = None if isinstance(layer, nn.Conv2d) else getattr(layer, "weight", None)
    if weight is None:
        return None
    scale: Tensor = weight.detach().abs().cpu()
    return scale.amax(0) if scale.dim() == 2 else scale


def channels_to_keep(
    groups: Sequence[TiedChannels], importance: Importance, counts: Sequence[int] | IntArray
) -> dict[str, Tensor]:
    """Choose the most important channels of each group.

    Args:
        groups: G groups.
        importance: A number for each channel of each group that becomes smaller.
        counts: (G,) how many stay.

    Returns:
        For each group that becomes smaller the indices that stay, in increasing order.

    Example:
        >>> group = TiedChannels("conv", 4, ("conv",), (), ())
        >>> channels_to_keep([group], {"conv": torch.tensor([3.0, 1.0, 2.0, 4.0])}, [2])["conv"].tolist()
        [0, 3]
    """
    kept = {}
    for group, count in zip(groups, counts, strict=True):
        if count == group.size:
            continue
        first, numbers = group.first_of(int(count)), importance[group.name]
        parts = (numbers[: group.first].topk(first).indices,
                 group.first + numbers[group.first :].topk(int(count) - first).indices)  # fmt: skip
        kept[group.name] = torch.cat(parts).sort().values
    return kept


def draw_candidates(
    groups: Sequence[TiedChannels], share: ShareOfMultiplyAdds, target: float, count: int, random: np.random.Generator
) -> list[IntArray]:
    """Draw ``count`` candidates as :func:`draw_counts` does.

    The first loses the same part of every group, where this meets the target as well as the others do.
    """
    uniform = uniform_counts(groups, share, target)
    first = [uniform] if abs(share(uniform) - target) <= BAND else []
    return first + [draw_counts(groups, share, target, random) for _ in range(count - len(first))]


def uniform_counts(groups: Sequence[TiedChannels], share: ShareOfMultiplyAdds, target: float) -> IntArray:
    """Return how many channels each group keeps if all lose the same part; (G,) int64, at most ``target`` remains."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if share(counts_of_width(groups, middle)) <= target else (low, middle)
    return counts_of_width(groups, low)


def draw_counts(
    groups: Sequence[TiedChannels], share: ShareOfMultiplyAdds, target: float, random: np.random.Generator
) -> IntArray:
    """Draw how many channels each group keeps, so that the network keeps a share of its multiply-adds.

    Every group gets a rate at random; one factor for all rates, found by halving an interval, then meets the target
    (Li et al., "EagleEye", ECCV 2020, section 3.3, draws until it is met by chance).

    Args:
        groups: G groups.
        share: Counts multiply-adds.
        target: The share, checked by :func:`check_target`.
        random: Decides the rates.

    Returns:
        (G,) int64.

    Raises:
        ConfigError: No draw came near enough.
    """
    for _ in range(DRAWS):
        rates = random.uniform(size=len(groups)) ** random.uniform(0.5, 2)
        low, high = 0.0, 1e4
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if share(_counts(groups, middle * rates)) > target else (low, middle)
        counts = _counts(groups, high * rates)
        if abs(share(counts) - target) <= BAND:
            return counts
    raise ConfigError(
        f"--target {target:g}: no choice of channels came within {BAND:g} of it; a network this narrow only has few"
        " choices, so take another target"
    )


def counts_of_width(groups: Sequence[TiedChannels], width: float) -> IntArray:
    """Count how many channels each group has at a width, a share of the channels above 0 and at most 1.

    Example:
        >>> counts_of_width([TiedChannels("conv", 64, ("conv",), (), ())], 0.5).tolist()
        [32]
    """
    return _counts(groups, np.full(len(groups), 1.0 - width))


def counts_above_threshold(
    groups: Sequence[TiedChannels], share: ShareOfMultiplyAdds, target: float, importance: Importance
) -> IntArray:
    """Count the channels whose importance is above one threshold for the whole network that meets a target.

    Args:
        groups: G groups; one without importance stays whole.
        share: Counts multiply-adds.
        target: The largest share that may remain, checked by :func:`check_target`.
        importance: A number for each channel.

    Returns:
        (G,) int64.

    Raises:
        ConfigError: More remains with the highest threshold.
    """
    candidates = torch.cat(list(importance.values())).sort().values.tolist()
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        counts = _counts_above(groups, importance, candidates[middle])
        low, high = (middle + 1, high) if share(counts) > target else (low, middle)
    counts = _counts_above(groups, importance, candidates[low])
    if share(counts) > target:
        raise ConfigError(
            f"--target {target:g}: {share(counts):.3f} of the multiply-adds remain without any channel that a norm"
            " scales; take a larger target, or --method search"
        )
    return counts


def _counts_above(groups: Sequence[TiedChannels], importance: Importance, threshold: float) -> IntArray:
    rates = [
        1 - float((importance[group.name] > threshold).float().mean()) if group.name in importance else 0.0
        for group in groups
    ]
    return _counts(groups, np.array(rates))


def _counts(groups: Sequence[TiedChannels], rates: np.typing.NDArray[np.float64]) -> IntArray:
    """How many channels stay where a rate of each group goes, in steps."""
    sizes, fewest = (np.array(one) for one in zip(*((g.size, fewest_channels(g)) for g in groups), strict=True))
    wanted = np.rint(sizes * (1 - np.minimum(rates, 1.0)) / STEP).astype(np.int64) * STEP
    counts: IntArray = np.minimum(sizes, np.maximum(fewest, wanted)).astype(np.int64)
    return counts
