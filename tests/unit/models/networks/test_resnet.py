"""ResNets against torchvision's: the same keys, the same random weights of a seed and the same outputs to the bit.

Wrong variants that are caught: a stride in the first 1x1 convolution of a bottleneck, layers built or initialised in
another order, a shortcut of another shape.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from reid.models.networks.backbones import build_backbone
from reid.models.networks.resnet import CHANNELS, RESNETS, BasicBlock, ResNet, narrow_resnet18

PUBLISHED = ["resnet18", "resnet34", "resnet50", "resnet101"]


def assert_equal_networks(ours: nn.Module, theirs: nn.Module) -> None:
    """Compare the order of modules and keys, all values, and the outputs in training and in evaluation."""
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in theirs.named_modules()]
    values, expected = ours.state_dict(), theirs.state_dict()
    assert list(values) == list(expected)
    assert all(torch.equal(values[key], expected[key]) for key in expected)
    images = torch.randn(2, 3, 64, 32)
    for training in (True, False):
        with torch.no_grad():
            assert torch.equal(ours.train(training)(images), theirs.train(training)(images))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_seed_gives_the_network_of_torchvision(name: str) -> None:
    torch.manual_seed(0)
    theirs = models.get_model(name, weights=None)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    ours = RESNETS[name]()
    assert torch.equal(torch.get_rng_state(), after)
    assert_equal_networks(ours, theirs)


def test_gradients_are_those_of_torchvision() -> None:
    torch.manual_seed(0)
    theirs, ours = models.resnet50(weights=None), RESNETS["resnet50"]()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 32)
    for net in (ours, theirs):
        net(images).square().mean().backward()
    expected = dict(theirs.named_parameters())
    assert all(torch.equal(value.grad, expected[name].grad) for name, value in ours.named_parameters())


def test_a_narrow_resnet18_is_torchvisions_made_narrow() -> None:
    """The layers of torchvision's ResNet-18 replaced by narrow ones, which is how version 0.1.0 built it."""
    torch.manual_seed(0)
    theirs = models.resnet18(weights=None)
    stem, *stages = (channels * 3 // 8 for channels in CHANNELS)
    theirs.conv1, theirs.bn1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False), nn.BatchNorm2d(stem)
    theirs.inplanes = stem
    for number, channels in enumerate(stages, 1):
        stage = theirs._make_layer(models.resnet.BasicBlock, channels, 2, stride=1 if number == 1 else 2)
        setattr(theirs, f"layer{number}", stage)
    theirs.fc = nn.Linear(stages[-1], 1000)
    for module in theirs.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    torch.manual_seed(0)
    assert_equal_networks(RESNETS["resnet18_x0_375"](), theirs)


def test_a_narrow_resnet18_is_the_wide_one_with_fewer_channels() -> None:
    """Every weight has the wide network's shape with its channels (not its colours or kernel) halved."""
    wide, narrow = (build_backbone(name).state_dict() for name in ("resnet18", "resnet18_x0_5"))
    assert wide.keys() == narrow.keys()
    for name, weight in wide.items():
        halved = [size if axis > 1 or size == 3 else size // 2 for axis, size in enumerate(weight.shape)]
        assert list(narrow[name].shape) == halved
        if weight.ndim == 4:  # He's initialisation for ReLU, of the narrow layer's own fan
            fan = narrow[name].shape[0] * narrow[name][0, 0].numel()
            assert narrow[name].std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.1)


def test_channels_are_those_of_the_width() -> None:
    assert narrow_resnet18(0.25).fc.in_features == 128
    assert ResNet(BasicBlock, (1, 1, 1, 1), (8, 8, 8, 8, 24)).fc.in_features == 24
