"""Slimmable networks against plain torch.nn layers cut to the leading channels by hand.

The wrong versions these tests catch: a width that uses the trailing or spread channels, statistics or affine shared,
a width 1 that rounds its channels, statistics of other widths touched, a width that leaks between threads, and a
narrow width run with the wide network's statistics.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import mobilenet_v2, resnet18, resnet50

from helpers.slimmable_networks import WIDTHS, differing, plain_network
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import Condition, Given, given
from reid.norm.specialised.switchable import calibrate_widths, extract_width, slim
from reid.norm.specialised.switchable_layers import SwitchableBatchNorm, SwitchableConv2d, slim_channels

MODES = pytest.mark.parametrize("training", [True, False])
AFFINES = pytest.mark.parametrize("affine", ["domain", "shared"])


def by_hand(network: nn.Module, x: Tensor, row: int, affine: str, wrong: str = "") -> Tensor:
    """The oracle: each layer's own tensors, cut to the leading channels of a width, through functional torch.

    With the name of a mistake, a wrong network.
    """
    kept_row, affine_row = (0 if wrong == f"{part} of the widest" else row for part in ("statistics", "affine"))
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            kept = max(8, int(layer.out_channels * WIDTHS[row]))
            kept = kept - 8 if wrong == "rounded down" and row == 0 else kept
            bias = None if layer.bias is None else layer.bias[:kept]
            x = functional.conv2d(x, layer.weight[:kept, : x.shape[1]], bias, layer.stride, layer.padding)
        elif isinstance(layer, SwitchableBatchNorm):
            kept = x.shape[1]
            weight, bias = (
                (t[affine_row][:kept] if affine == "domain" else t[:kept]) for t in (layer.weight, layer.bias)
            )
            if layer.training:
                mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            else:
                mean, var = layer.running_mean[kept_row, :kept], layer.running_var[kept_row, :kept]
            x = (x - mean[:, None, None]) / (var[:, None, None] + layer.eps).sqrt()
            x = x * weight[:, None, None] + bias[:, None, None]
        elif isinstance(layer, nn.Linear):
            x = functional.linear(x, layer.weight[:, : x.shape[1]], layer.bias)
        else:
            x = layer(x)
    return x


@AFFINES
@MODES
def test_every_width_is_the_leading_part_of_every_layer(affine: str, training: bool) -> None:
    network = differing(slim(plain_network(), WIDTHS, affine)).train(training)
    x = torch.randn(6, 3, 16, 8)
    for row in range(len(WIDTHS)):
        expected = by_hand(network, x, row, affine)
        torch.testing.assert_close(Given(network)(x, row), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "row"), [("statistics of the widest", 1), ("affine of the widest", 2), ("rounded down", 0)]
)
def test_wrong_widths_are_refused(wrong: str, row: int) -> None:
    network, x = differing(slim(plain_network(), WIDTHS)).eval(), torch.randn(6, 3, 16, 8)
    if wrong == "rounded down":  # width 1 must use every channel: of these layers, those before the classifier
        network = network[:6]
    found = Given(network)(x, row)
    torch.testing.assert_close(found, by_hand(network, x, row, "domain"), rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found, by_hand(network, x, row, "domain", wrong), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "osnet_x0_25"])
@MODES
def test_width_one_is_the_plain_network_bit_for_bit(name: str, training: bool) -> None:
    """T16."""
    torch.manual_seed(0)
    network = Embedder(NetworkSpec(name, "gem", "fc")).train(training)
    slimmable = slim(network, WIDTHS)
    x = torch.randn(2, 3, 64, 32)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert torch.equal(Given(slimmable)(x, 0), network(x))
    for key, value in network.state_dict().items():
        ours = slimmable.state_dict()[key]
        rows = ours if ours.shape == value.shape else ours[0]
        assert torch.equal(rows, value), key
        if ours.shape != value.shape:
            assert torch.equal(ours[1], before[key])  # the statistics of the other widths stay


@pytest.mark.parametrize("build", [resnet18, resnet50, mobilenet_v2])
def test_torchvision_networks_run_and_extract_at_every_width(build) -> None:
    network = differing(slim(build(num_classes=7), WIDTHS).eval())
    x, sizes = torch.randn(2, 3, 32, 32), []
    for row, width in enumerate(WIDTHS):
        extracted = extract_width(network, width, x)
        assert {type(m) for m in extracted.modules()} == {type(m) for m in build().modules()}
        y = Given(network)(x, row)
        assert y.shape == (2, 7)
        assert torch.equal(extracted(x), y)
        sizes.append(sum(parameter.numel() for parameter in extracted.parameters()))
    assert sizes[1] < 0.4 * sizes[0]
    assert sizes[2] < 0.4 * sizes[1]


@settings(max_examples=200, deadline=None)
@hypothesis_given(channels=st.integers(1, 2048), width=st.floats(0.05, 1))
def test_channels_are_multiples_of_eight_near_the_width(channels: int, width: float) -> None:
    kept = slim_channels(channels, width)
    assert slim_channels(channels, 1.0) == channels
    assert 1 <= kept <= channels
    assert kept % 8 == 0 or kept == channels
    assert kept >= 0.9 * channels * width
    if kept not in (8, channels):
        assert abs(kept - channels * width) <= 8


def test_channel_counts() -> None:
    """11.2 channels become 16, since 8 would be under 0.9 of them."""
    assert [slim_channels(c, 0.35) for c in (32, 1280)] == [16, 448]
    assert [slim_channels(64, w) for w in (1.0, 0.75, 0.5, 0.25)] == [64, 48, 32, 16]


def trailing(conv: SwitchableConv2d, x: Tensor, kept: int) -> Tensor:
    return functional.conv2d(x, conv.weight[-kept:], conv.bias[-kept:], conv.stride, conv.padding)


def spread(conv: SwitchableConv2d, x: Tensor, kept: int) -> Tensor:
    step = conv.out_channels // kept
    return functional.conv2d(x, conv.weight[::step], conv.bias[::step], conv.stride, conv.padding)


@pytest.mark.parametrize("wrong", [trailing, spread])
def test_other_channels_than_the_leading_ones_are_refused(wrong) -> None:
    network, x = slim(plain_network(), WIDTHS), torch.randn(2, 3, 16, 8)
    expected = by_hand(network[:1], x, 1, "domain")
    torch.testing.assert_close(Given(network[0])(x, 1), expected)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(wrong(network[0], x, 16), expected)


@AFFINES
def test_training_a_width_changes_only_its_statistics(affine: str) -> None:
    network = slim(plain_network(), WIDTHS, affine).train()
    before = copy.deepcopy(network[1].state_dict())
    Given(network)(torch.randn(8, 3, 16, 8), 1)
    norm = network[1]
    for key in ("running_mean", "running_var"):
        now, then = norm.state_dict()[key], before[key]
        assert torch.equal(now[[0, 2]], then[[0, 2]])
        assert torch.equal(now[1, 16:], then[1, 16:])
        assert not torch.isclose(now[1, :16], then[1, :16]).any()
    assert (norm.num_batches_tracked - before["num_batches_tracked"]).tolist() == [0, 1, 0]
    frozen = Condition(1, update=False)
    with given(frozen):
        network(torch.randn(8, 3, 16, 8))
    assert (norm.num_batches_tracked - before["num_batches_tracked"]).tolist() == [0, 1, 0]


@AFFINES
def test_gradients_reach_only_the_leading_part(affine: str) -> None:
    network = slim(plain_network(), WIDTHS, affine).train()
    Given(network)(torch.randn(4, 3, 16, 8), 2).square().sum().backward()
    conv, norm = network[3], network[4]
    assert conv.weight.grad[:16, :8].any()
    assert not conv.weight.grad[16:].any()
    assert not conv.weight.grad[:, 8:].any()
    own = norm.weight.grad[2] if affine == "domain" else norm.weight.grad
    assert own[:16].all()
    assert not own[16:].any()
    if affine == "domain":
        assert not norm.weight.grad[:2].any()


def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """Images of five patterns, and a plain network trained to distinguish them."""
    torch.manual_seed(0)
    patterns = torch.randn(5, 3, 16, 8)
    targets = torch.arange(5).repeat(16)
    images = patterns[targets] + 0.5 * torch.randn(80, 3, 16, 8) + 2
    network = slim(plain_network(), WIDTHS, "shared")
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        for row in range(len(WIDTHS)):
            functional.cross_entropy(Given(network.train())(images, row), targets).backward()
        optimizer.step()
    return network.eval(), images, targets


def test_a_width_needs_its_own_statistics() -> None:
    """With the wide network's statistics a narrow one collapses; calibrated on unlabelled images it works."""
    network, images, targets = trained()
    wide = copy.deepcopy(network)
    for norm in (m for m in wide.modules() if isinstance(m, SwitchableBatchNorm)):
        for row in range(1, len(WIDTHS)):
            norm.install_width(row, norm.running_mean[0].clone(), norm.running_var[0].clone())
    calibrated = calibrate_widths(wide, images.split(20))

    def accuracy(model: nn.Module, row: int) -> float:
        return float((Given(model)(images, row).argmax(1) == targets).float().mean())

    for row in range(len(WIDTHS)):
        assert accuracy(calibrated, row) > 0.95
    assert accuracy(wide, 2) < 0.7


def test_calibration_merges_exactly_and_changes_nothing_else() -> None:
    network = slim(plain_network(), WIDTHS)
    images = torch.cat([torch.randn(4, 3, 16, 8) + shift for shift in (-3, 0, 3)])
    before = copy.deepcopy(network.state_dict())
    calibrated = calibrate_widths(network, images.split(4))
    first = network[0]
    for row, kept in enumerate((32, 16, 8)):
        with torch.no_grad():
            y = functional.conv2d(images, first.weight[:kept], first.bias[:kept], 2, 1)
        torch.testing.assert_close(calibrated[1].running_mean[row, :kept], y.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        var = y.var((0, 2, 3), correction=0)
        torch.testing.assert_close(calibrated[1].running_var[row, :kept], var, rtol=1e-4, atol=1e-5)
        averaged = torch.stack([part.var((0, 2, 3), correction=0) for part in y.split(4)]).mean(0)
        assert not torch.allclose(averaged, var, rtol=0.1)  # the wrong way: what lies between batches is lost
    after = network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items() if isinstance(value, Tensor))
    assert torch.equal(calibrated[1].weight, network[1].weight)
    assert calibrated[1].momentum == 0.1
