"""Removing channels of whole networks: the smaller network against the whole one with these channels at 0.

The wrong removals these tests catch: a branch of a residual sum, a gate or a shortcut forgotten; the wrong channels of
a depthwise convolution, a norm or a reader; statistics of one camera only; the parts of IBN-a mixed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from helpers.small_checkpoints import randomize_norms
from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError, WeightsError
from reid.models.checkpoint import load_checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.networks.channel_removal import keep_channels, leading_channels
from reid.models.networks.multiply_adds import ShareOfMultiplyAdds, count_multiply_adds, multiply_adds_of_layers
from reid.models.networks.resnet_changes import InstanceBatchNorm
from reid.models.networks.tied_channels import TiedChannels, tied_channels
from reid.norm import DomainBatchNorm, Given, camera_batchnorm, convert_norm, domain_batchnorm

SPECS = [
    NetworkSpec("osnet_x0_25", neck="fc"),
    NetworkSpec("osnet_x0_25"),
    NetworkSpec("osnet_ain_x1_0"),
    NetworkSpec("osnet_ibn_x1_0"),
    NetworkSpec("resnet18_x0_25", "gem"),
    NetworkSpec("resnet50+ibn+nonlocal"),
    NetworkSpec("resnet18+ibnb"),
    NetworkSpec("mobilenetv2_x1_0"),
]
IMAGES = torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(1))


def network_of(spec: NetworkSpec) -> nn.Module:
    torch.manual_seed(0)
    return randomize_norms(Embedder(spec))


def drawn_channels(groups: tuple[TiedChannels, ...], seed: int = 0) -> dict[str, Tensor]:
    """Random channels of every group, at least one of each part."""
    random = torch.Generator().manual_seed(seed)
    kept = {}
    for group in groups:
        count = int(torch.randint(2 if group.first else 1, group.size + 1, (1,), generator=random))
        first = group.first_of(count)
        parts = [torch.randperm(group.first, generator=random)[:first],
                 group.first + torch.randperm(group.size - group.first, generator=random)[: count - first]]  # fmt: skip
        kept[group.name] = torch.cat(parts).sort().values
    return kept


@torch.no_grad()
def silenced(network: nn.Module, kept: dict[str, Tensor]) -> nn.Module:
    """The oracle: every layer that writes or scales a removed channel gives 0 there; nothing is cut."""
    for group in tied_channels(network):
        removed = torch.ones(group.size, dtype=torch.bool)
        removed[kept[group.name]] = False
        for name in (*group.writers, *group.passers):
            layer = network.get_submodule(name)
            parts = ((layer.IN, removed[: layer.first]), (layer.BN, removed[layer.first :])) if isinstance(
                layer, InstanceBatchNorm
            ) else ((layer, removed),)  # fmt: skip
            for part, rows in parts:
                for key in ("weight", "bias"):
                    tensor = getattr(part, key, None)
                    if tensor is not None and isinstance(part, DomainBatchNorm):
                        tensor[..., rows] = 0
                    elif tensor is not None:
                        tensor[rows] = 0
    return network


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.backbone} {spec.neck}")
def test_removal_is_exact(spec: NetworkSpec) -> None:
    network = network_of(spec)
    kept = drawn_channels(tied_channels(network))
    small = keep_channels(network, kept)
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in network.parameters())
    with torch.inference_mode():
        wanted = silenced(network, kept)(IMAGES)
        assert wanted.std() > 1e-3
        torch.testing.assert_close(small(IMAGES), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("policy", [camera_batchnorm, domain_batchnorm])
@pytest.mark.parametrize("backbone", ["osnet_x0_25", "resnet18+ibn"])
def test_removal_is_exact_for_every_camera(policy, backbone: str) -> None:
    network = randomize_norms(convert_norm(network_of(NetworkSpec(backbone)), policy(("a", "b"))))
    kept = drawn_channels(tied_channels(network), seed=3)
    small, domain = keep_channels(network, kept), torch.tensor([0, 1, 1])
    with torch.inference_mode():
        wanted = Given(silenced(network, kept))(IMAGES, domain)
        torch.testing.assert_close(Given(small)(IMAGES, domain), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS[:2] + SPECS[4:6], ids=lambda spec: f"{spec.backbone} {spec.neck}")
def test_a_smaller_network_is_built_from_its_spec_and_its_file(spec: NetworkSpec, tmp_path: Path) -> None:
    network = network_of(spec)
    kept = drawn_channels(tied_channels(network), seed=1)
    small = keep_channels(network, kept)
    counted = NetworkSpec(
        spec.backbone, spec.pooling, spec.neck, tuple((name, len(rows)) for name, rows in kept.items())
    )
    built = Embedder(counted)
    assert {key: value.shape for key, value in built.state_dict().items()} == {
        key: value.shape for key, value in small.state_dict().items()
    }
    path, transform = tmp_path / "w.safetensors", EvaluationTransform(64, 32)
    save_checkpoint(path, small, counted, transform, (), (), {})
    loaded = load_checkpoint(path, spec.backbone)
    assert loaded.spec == counted
    with torch.inference_mode():
        torch.testing.assert_close(loaded.embed(IMAGES), small(IMAGES), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "channels", [{"backbone.conv9": 3}, {"backbone.conv1": 0}, {"backbone.conv1": 17}, {"neck": 4}]
)
def test_a_spec_that_does_not_fit_is_refused(channels: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Embedder(NetworkSpec("resnet18_x0_25", channels=tuple(channels.items())))


def test_a_file_whose_channels_do_not_fit_is_refused(tmp_path: Path) -> None:
    spec = NetworkSpec("resnet18_x0_25", channels=(("backbone.conv1", 40),))
    path = tmp_path / "w.safetensors"
    save_checkpoint(path, Embedder(NetworkSpec("resnet18_x0_25")), spec, EvaluationTransform(64, 32), (), (), {})
    with pytest.raises(WeightsError, match=r"backbone\.conv1"):
        load_checkpoint(path)


@pytest.mark.parametrize("rows", [[], [3, 1], [0, 0], [0, 99], [-1, 2]])
def test_channels_that_cannot_stay_are_refused(rows: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"layer1\.0\.conv1"):
        keep_channels(network_of(SPECS[4]), {"backbone.layer1.0.conv1": torch.tensor(rows)})


def test_the_parts_of_ibn_keep_their_proportion() -> None:
    network = network_of(NetworkSpec("resnet18_x0_25+ibn"))
    group = next(one for one in tied_channels(network) if one.first)
    assert (group.size, group.first, leading_channels(group, 6).tolist()) == (16, 8, [0, 1, 2, 8, 9, 10])
    with pytest.raises(ConfigError):
        keep_channels(network, {group.name: torch.arange(6)})


def test_transformers_have_no_channels_to_remove() -> None:
    with pytest.raises(ConfigError):
        tied_channels(Embedder(NetworkSpec("transreid_vit_base", neck="none")))


def test_multiply_adds_by_hand() -> None:
    """A ResNet-18 with a quarter of the channels for an image of 64 x 32: layer by layer as the paper defines it."""
    c, count = (16, 16, 32, 64, 128), 32 * 16 * 16 * 3 * 49
    h, w = 16, 8
    for stage in range(1, 5):
        before, now, stride = c[stage - 1], c[stage], 1 if stage in (1, 4) else 2
        h, w = h // stride, w // stride
        first = now * before * 9 + (now * before if stage > 1 else 0)
        count += h * w * (first + 3 * now * now * 9)
    network = network_of(NetworkSpec("resnet18_x0_25"))
    assert count_multiply_adds(network, 64, 32) == count
    cameras = convert_norm(network, camera_batchnorm(("a", "b")))
    assert count_multiply_adds(cameras, 64, 32) == count


def test_the_published_counts_of_osnet() -> None:
    """82.3 million for a quarter of the width of OSNet, and 978.9 for the whole, as its authors count."""
    assert round(count_multiply_adds(network_of(NetworkSpec("osnet_x0_25")), 256, 128), -5) == 82_200_000


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.backbone} {spec.neck}")
def test_the_predicted_share_is_that_of_the_smaller_network(spec: NetworkSpec) -> None:
    network = network_of(spec)
    groups = tied_channels(network)
    kept = drawn_channels(groups, seed=2)
    share = ShareOfMultiplyAdds(multiply_adds_of_layers(network, 64, 32), groups)
    small = keep_channels(network, kept)
    wanted = count_multiply_adds(small, 64, 32) / count_multiply_adds(network, 64, 32)
    assert share([len(kept[group.name]) for group in groups]) == pytest.approx(wanted, abs=1e-12)
