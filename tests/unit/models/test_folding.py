"""Folding against the network as it is, layer kind by layer kind, and wrong foldings, which the comparison refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from helpers.small_checkpoints import IMAGES, SPEC, plain_network, randomize_norms
from reid.errors import ConfigError
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.folding import FoldedEmbedder, fold_batchnorm, fuse_relus
from reid.norm import camera_batchnorm, convert_norm


class Branches(nn.Module):
    """Every case at once: a shared convolution, a result that is used twice, and a norm that follows a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.shared, self.norm2, self.norm3 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.split, self.norm4 = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8)
        self.early = nn.BatchNorm2d(8)
        self.reflected = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.last = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = self.norm2(self.shared(x)).relu() + self.norm3(self.shared(x))
        split = self.split(x)
        x = self.early(torch.relu(x)) + self.norm4(split) + split
        x = nn.functional.relu(self.reflected(x))
        out: Tensor = self.last(x)
        return out


def branches() -> Branches:
    torch.manual_seed(2)
    network = Branches()
    randomize_norms(network)
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    return network.eval()


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(type(module) is kind for module in network.modules())


@pytest.mark.parametrize("fused", [False, True], ids=["folded", "with ReLU"])
def test_folding_changes_nothing_but_the_last_bits(fused: bool) -> None:
    network = branches()
    folded = fold_batchnorm(network, "test")
    folded = fuse_relus(folded) if fused else folded
    with torch.no_grad():
        assert torch.allclose(folded(IMAGES), network(IMAGES), atol=1e-5)


def test_only_a_norm_that_alone_follows_its_own_convolution_is_folded() -> None:
    network = branches()
    before = copy.deepcopy(network.state_dict())
    folded = fold_batchnorm(network, "test")
    assert count(network, nn.BatchNorm2d) == 6  # the network itself stays
    assert count(folded, nn.BatchNorm2d) == 4  # two norms of one convolution, one of a result used twice, one early
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(isinstance(module, nn.ReLU) for module in fuse_relus(folded).modules())


@pytest.mark.parametrize(
    ("backbone", "left"),
    [("osnet_x0_25", 0), ("osnet_ibn_x1_0", 0), ("resnet18", 0), ("resnet18+ibn", 6), ("mobilenet_v2", 0)],
)
def test_backbones(backbone: str, left: int) -> None:
    """An IBN layer normalizes half of the channels of a convolution, so its BatchNorm stays."""
    torch.manual_seed(1)
    network = randomize_norms(Embedder(NetworkSpec(backbone)))
    folded = FoldedEmbedder(network, "test", fuse_relu=True)
    with torch.no_grad():
        expected, found = network(IMAGES), folded(IMAGES)
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.9999
    assert count(folded.backbone, nn.BatchNorm2d) == left


def test_a_wrong_folding_is_seen() -> None:
    """Without its mean a norm moves every vector: the comparison above would refuse it."""
    network = plain_network()
    wrong = copy.deepcopy(network)
    for module in wrong.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()  # type: ignore[union-attr]
    with torch.no_grad():
        cosine = torch.nn.functional.cosine_similarity(FoldedEmbedder(wrong, "test")(IMAGES), network(IMAGES)).min()
    assert cosine < 0.9999


def test_bfloat16_moves_embeddings_a_little() -> None:
    network = plain_network()
    with torch.no_grad():
        found = FoldedEmbedder(network, "test", torch.bfloat16, fuse_relu=True)(IMAGES)
        cosine = torch.nn.functional.cosine_similarity(found, network(IMAGES)).min()
    assert found.dtype == torch.float32
    assert 0.98 < cosine < 1 - 1e-6


class Deciding(nn.Module):
    """A backbone whose steps depend on the values of an image."""

    channels = 3

    def forward(self, x: Tensor) -> Tensor:
        return x if x.mean() > 0 else -x


def test_what_cannot_be_folded_is_one_line() -> None:
    network = Embedder(SPEC)
    network.backbone = Deciding()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="cannot be traced"):
        FoldedEmbedder(network, "deciding.pth")
    with pytest.raises(ConfigError, match="for each image"):
        FoldedEmbedder(convert_norm(Embedder(SPEC), camera_batchnorm(["a", "b"])), "cameras.pth")
    with pytest.raises(ConfigError, match="network of PyTorch"):
        FoldedEmbedder(nn.Identity(), "model.onnx")
