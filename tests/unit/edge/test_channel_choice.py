"""Which channels stay: targets are met, the important ones stay, impossible targets are refused."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.small_checkpoints import randomize_norms
from reid.edge.channel_choice import (
    BAND,
    channels_to_keep,
    check_target,
    counts_above_threshold,
    draw_candidates,
    draw_counts,
    fewest_channels,
    scale_importance,
    weight_importance,
)
from reid.edge.neighbour_overlap import neighbour_overlap
from reid.errors import ConfigError
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.networks.channel_removal import keep_channels
from reid.models.networks.multiply_adds import ShareOfMultiplyAdds, count_multiply_adds, multiply_adds_of_layers
from reid.models.networks.tied_channels import TiedChannels, tied_channels
from reid.norm import convert_norm, domain_batchnorm

SIDES = (64, 32)


@cache
def prepared(backbone: str = "resnet18_x0_25+ibn") -> tuple[nn.Module, tuple[TiedChannels, ...], ShareOfMultiplyAdds]:
    torch.manual_seed(0)
    network = randomize_norms(Embedder(NetworkSpec(backbone)))
    groups = tied_channels(network)
    return network, groups, ShareOfMultiplyAdds(multiply_adds_of_layers(network, *SIDES), groups)


@pytest.mark.parametrize("backbone", ["resnet18_x0_25+ibn", "osnet_x0_25"])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
def test_drawn_networks_keep_the_target_and_differ(backbone: str, target: float) -> None:
    network, groups, share = prepared(backbone)
    random = np.random.default_rng(0)
    drawn = [draw_counts(groups, share, target, random) for _ in range(4)]
    assert len({tuple(counts) for counts in drawn}) == 4
    for counts in drawn:
        small = keep_channels(network, channels_to_keep(groups, weight_importance(network, groups), counts))
        kept = count_multiply_adds(small, *SIDES) / count_multiply_adds(network, *SIDES)
        assert kept == pytest.approx(target, abs=BAND)


@pytest.mark.parametrize("backbone", ["resnet18_x0_25", "osnet_x0_25"])
def test_the_first_candidate_is_uniform_only_where_it_meets_the_target(backbone: str) -> None:
    """OSNet x0.25 has so few channels that steps of four miss half of the multiply-adds by far."""
    _, groups, share = prepared(backbone)
    for target in (0.4, 0.5, 0.6):
        drawn = draw_candidates(groups, share, target, 2, np.random.default_rng(0))
        assert len(drawn) == 2
        assert all(abs(share(counts) - target) <= BAND for counts in drawn)


@given(target=st.floats(0.15, 0.95), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_groups_keep_between_the_fewest_and_all(target: float, seed: int) -> None:
    _, groups, share = prepared()
    counts = draw_counts(groups, share, target, np.random.default_rng(seed))
    for group, count in zip(groups, counts, strict=True):
        assert fewest_channels(group) <= count <= group.size


def test_the_channels_with_the_largest_weights_stay() -> None:
    network, groups = copy.deepcopy(prepared()[0]), prepared()[1]
    group = next(one for one in groups if one.name == "backbone.layer4.0.conv1")
    conv = network.get_submodule(group.name)
    with torch.no_grad():
        conv.weight[[1, 5, 9]] = 100
    kept = channels_to_keep([group], weight_importance(network, [group]), [3])
    assert kept[group.name].tolist() == [1, 5, 9]


def test_a_threshold_removes_the_smallest_scales_of_the_whole_network() -> None:
    network, groups, share = prepared("resnet18_x0_25")
    importance = scale_importance(network, groups)
    removed = groups[3].name
    importance = {name: torch.full_like(numbers, 0.01 if name == removed else 1.0) + 1e-3 * torch.rand(len(numbers))
                  for name, numbers in importance.items()}  # fmt: skip
    counts = dict(zip([group.name for group in groups], counts_above_threshold(groups, share, 0.95, importance),
                      strict=True))  # fmt: skip
    assert counts[removed] == fewest_channels(groups[3])
    assert share(list(counts.values())) <= 0.95


def test_a_channel_that_one_camera_scales_counts_for_all() -> None:
    network, _, _ = prepared("resnet18_x0_25")
    cameras = convert_norm(network, domain_batchnorm(("a", "b")))
    group = tied_channels(cameras)[1]
    norm = cameras.get_submodule(group.passers[0])
    with torch.no_grad():
        norm.weight.zero_()
        norm.weight[1, 3] = -2.0
    importance = scale_importance(cameras, [group])[group.name]
    assert importance.argmax() == 3
    assert importance[3] == 2.0
    assert importance.count_nonzero() == 1


@pytest.mark.parametrize("target", [0.001, 1.0, 1.5, -0.2, float("nan")])
def test_an_impossible_target_is_refused(target: float) -> None:
    _, groups, share = prepared()
    with pytest.raises(ConfigError, match="--target"):
        check_target(groups, share, target)


def test_the_overlap_counts_common_neighbours() -> None:
    """Against a loop: a crop is not its own neighbour, and order does not count."""
    random = np.random.default_rng(0)
    first, second = (random.normal(size=(30, 8)).astype(np.float32) for _ in range(2))
    shared = []
    for row in range(30):
        near = []
        for vectors in (first, second):
            scores = vectors @ vectors[row]
            scores[row] = -np.inf
            near.append(set(np.argsort(-scores)[:5].tolist()))
        shared.append(len(near[0] & near[1]) / 5)
    assert neighbour_overlap(first, second, 5) == pytest.approx(np.mean(shared))
    assert neighbour_overlap(first, first) == 1
    assert neighbour_overlap(first[:3], second[:3]) == 1
