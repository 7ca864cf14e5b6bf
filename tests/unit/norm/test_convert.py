"""Converting a network changes nothing until its domains differ; its state has the names of plain BatchNorm."""

from __future__ import annotations

import copy
import re

import pytest
import timm
import torch
from timm.layers import EvoNorm2dB0, convert_sync_batchnorm
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18
from torchvision.ops import FrozenBatchNorm2d

from reid.errors import ConditionError, ConfigError
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import (
    DomainBatchNorm,
    Given,
    add_domain,
    camera_batchnorm,
    convert_norm,
    domain_batchnorm,
    domains_of,
    extract,
    modality_batchnorm,
)

CAMERAS = ("a", "b", "c")
NETWORKS = {
    "resnet18": lambda: resnet18(num_classes=6),
    "mobilenet_v2": lambda: mobilenet_v2(num_classes=6),
    "osnet with its own neck": lambda: Embedder(NetworkSpec("osnet_x0_25", "average", "fc")),
    "resnet with a BNNeck": lambda: Embedder(NetworkSpec("resnet18", "gem", "bnneck")),
    "timm, BatchNorm fused with activation": lambda: timm.create_model("efficientnet_b0", num_classes=6),
}


def warmed(name: str) -> nn.Module:
    """Make a network whose running statistics are not the initial ones."""
    torch.manual_seed(0)
    network = NETWORKS[name]().train()
    with torch.no_grad():
        for _ in range(2):
            network(torch.randn(4, 3, 64, 32) * 2 + 1)
    return network.eval()


def differing(network: nn.Module) -> nn.Module:
    """Give every domain of every layer statistics (and affine) of its own."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, DomainBatchNorm):
                for tensor in layer.state_dict().values():
                    if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dim() == 2:
                        tensor.mul_(1 + 0.2 * torch.rand(tensor.shape, generator=generator))
    return network


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("policy", [camera_batchnorm, modality_batchnorm, domain_batchnorm])
def test_a_converted_network_is_the_base_network(name: str, policy) -> None:
    """Equal weights and statistics in all domains give the base network exactly, neck included."""
    base = warmed(name)
    before = copy.deepcopy(base.state_dict())
    converted = convert_norm(base, policy(CAMERAS))
    images, domain = torch.randn(5, 3, 64, 32), torch.tensor([0, 2, 1, 1, 0])
    with torch.inference_mode():
        for index in range(3):
            assert torch.equal(Given(converted)(images, index), base(images))
        torch.testing.assert_close(Given(converted)(images, domain), base(images), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    assert domains_of(converted) == CAMERAS
    assert domains_of(base) == ()
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in converted.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plain_checkpoint_loads_by_broadcast(name: str) -> None:
    """The state of a plain BatchNorm loads strictly into a converted network."""
    base = warmed(name)
    converted = convert_norm(NETWORKS[name]().eval(), camera_batchnorm(CAMERAS))
    converted.load_state_dict(base.state_dict(), strict=True)
    images = torch.randn(3, 3, 64, 32)
    with torch.inference_mode():
        assert torch.equal(Given(converted)(images, 1), base(images))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("affine", ["shared", "domain"])
def test_extract_gives_a_plain_network_for_one_domain(name: str, affine: str) -> None:
    converted = differing(convert_norm(warmed(name), camera_batchnorm(CAMERAS, affine)))
    images = torch.randn(3, 3, 64, 32)
    with torch.inference_mode():
        answers = [Given(converted)(images, domain) for domain in range(3)]
        assert not torch.allclose(answers[0], answers[2], atol=1e-3)
        for domain, camera in enumerate(CAMERAS):
            plain = extract(converted, camera)
            assert not any(isinstance(m, DomainBatchNorm) for m in plain.modules())
            assert torch.equal(plain(images), answers[domain])


@pytest.mark.parametrize("affine", ["shared", "domain"])
def test_state_is_saved_and_loaded_by_name(affine: str, tmp_path) -> None:
    """The state is saved and loaded with weights_only into a network whose cameras have another order."""
    converted = differing(convert_norm(warmed("resnet18"), camera_batchnorm(CAMERAS, affine)))
    torch.save(converted.state_dict(), tmp_path / "state.pt")
    other = convert_norm(resnet18(num_classes=6).eval(), camera_batchnorm(("c", "a", "b"), affine))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    images = torch.randn(3, 3, 64, 32)
    with torch.inference_mode():
        for camera in CAMERAS:
            ours = Given(converted)(images, CAMERAS.index(camera))
            assert torch.equal(Given(other)(images, domains_of(other).index(camera)), ours)
    with pytest.raises(RuntimeError, match="'x', 'y', 'z'"):
        convert_norm(resnet18(num_classes=6), camera_batchnorm(("x", "y", "z"))).load_state_dict(converted.state_dict())


@pytest.mark.parametrize("affine", ["shared", "domain"])
def test_add_domain_leaves_the_others(affine: str) -> None:
    """The outputs of the old domains are bit-equal; those of the new one are those of the domain it was copied from."""
    converted = differing(convert_norm(warmed("resnet with a BNNeck"), camera_batchnorm(CAMERAS, affine)))
    grown = add_domain(converted, "new", like="b")
    mixed = add_domain(converted, "new")
    images = torch.randn(3, 3, 64, 32)
    with torch.inference_mode():
        for domain in range(3):
            expected = Given(converted)(images, domain)
            assert torch.equal(Given(grown)(images, domain), expected)
            assert torch.equal(Given(mixed)(images, domain), expected)
        assert torch.equal(Given(grown)(images, 3), Given(converted)(images, 1))
    layer, wider = converted.neck, mixed.neck
    mean = layer.running_mean.mean(0)
    torch.testing.assert_close(wider.running_mean[3], mean)
    within_and_between = layer.running_var.mean(0) + (layer.running_mean - mean).square().mean(0)
    torch.testing.assert_close(wider.running_var[3], within_and_between)
    assert domains_of(mixed) == (*CAMERAS, "new")
    with pytest.raises(ConfigError, match='"b"'):
        add_domain(converted, "b")
    with pytest.raises(ConditionError, match='"bb"'):
        add_domain(converted, "new", like="bb")
    with pytest.raises(ConditionError, match='"d"'):
        extract(converted, "d")


def test_one_domain_is_plain_batchnorm() -> None:
    base = warmed("resnet18")
    converted = convert_norm(base, camera_batchnorm(["only"]))
    images = torch.randn(2, 3, 64, 32)
    with torch.inference_mode():
        assert torch.equal(converted(images), base(images))
        assert torch.equal(add_domain(converted, "second").bn1.running_mean[1], base.bn1.running_mean)
    plain_keys = {key for key in converted.state_dict() if not key.endswith("_extra_state")}
    assert plain_keys == set(base.state_dict())
    assert all(converted.state_dict()[key].shape == base.state_dict()[key].shape for key in plain_keys)


def test_flags_hooks_dtype_and_sharing_carry_over() -> None:
    shared = nn.BatchNorm2d(3, eps=1e-3, momentum=None).double().eval()
    shared.bias.requires_grad_(False)
    calls: list[int] = []
    shared.register_forward_hook(lambda *_: calls.append(1))
    network = nn.Sequential(shared, nn.Sequential(shared), nn.BatchNorm2d(3, affine=False).double())
    converted = convert_norm(network, camera_batchnorm(CAMERAS))
    assert converted[0] is converted[1][0]
    assert isinstance(converted[0], DomainBatchNorm)
    assert (converted[0].eps, converted[0].momentum, converted[0].training) == (1e-3, None, False)
    assert converted[0].weight.requires_grad
    assert not converted[0].bias.requires_grad
    assert converted[0].running_mean.dtype == torch.float64
    assert converted[2].weight is None
    assert converted[2].training
    Given(converted)(torch.randn(4, 3, 2, 2, dtype=torch.float64), 0)
    assert len(calls) == 2


def test_a_synchronized_batchnorm_stays_synchronized() -> None:
    converted = convert_norm(nn.Sequential(nn.SyncBatchNorm(3)), camera_batchnorm(CAMERAS))
    assert converted[0].sync
    assert add_domain(converted, "new")[0].sync
    assert type(extract(converted, CAMERAS[0])[0]) is nn.BatchNorm2d


def test_a_fused_norm_stays_fused_when_synchronized() -> None:
    """The conversion of timm keeps the activations; that of torch drops them."""
    base = warmed("timm, BatchNorm fused with activation")
    converted = convert_norm(convert_sync_batchnorm(copy.deepcopy(base)), camera_batchnorm(CAMERAS))
    without = convert_norm(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(base)), camera_batchnorm(CAMERAS))
    assert all(layer.sync for layer in converted.modules() if isinstance(layer, DomainBatchNorm))
    images = torch.randn(3, 3, 64, 32)
    with torch.inference_mode():
        assert torch.equal(Given(converted)(images, 1), base(images))
        assert torch.equal(extract(converted, "b")(images), base(images))
        assert not torch.allclose(Given(without)(images, 1), base(images), atol=1e-3)


def test_what_cannot_be_converted_is_named() -> None:
    with pytest.raises(ConfigError, match=r"1\.0: .*FrozenBatchNorm2d"):
        convert_norm(nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(FrozenBatchNorm2d(3))), camera_batchnorm(CAMERAS))
    for unknown in (nn.BatchNorm3d(3), EvoNorm2dB0(3), nn.InstanceNorm2d(3, track_running_stats=True)):
        with pytest.raises(ConfigError, match=rf"1\.0: .*{type(unknown).__name__}"):
            convert_norm(nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(unknown)), camera_batchnorm(CAMERAS))
    with pytest.raises(ConfigError, match=r"^0: .*BatchNorm"):
        convert_norm(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), camera_batchnorm(CAMERAS))
    with pytest.raises(ConfigError, match="BatchNorm"):
        convert_norm(nn.Sequential(nn.Conv2d(3, 3, 1), nn.LayerNorm(3)), camera_batchnorm(CAMERAS))
    with pytest.raises(ConfigError, match=r"^0: .*a, b, c"):
        convert_norm(
            convert_norm(nn.Sequential(nn.BatchNorm2d(3)), camera_batchnorm(CAMERAS)), camera_batchnorm(["x", "y"])
        )


@pytest.mark.parametrize("names", ["door", 3, None])
def test_names_must_be_a_list(names: object) -> None:
    with pytest.raises(ConfigError, match=f"camera names, got {names!r}"):
        camera_batchnorm(names)


def test_arguments_of_another_kind_are_one_line() -> None:
    for network, policy in ((None, camera_batchnorm(CAMERAS)), (nn.BatchNorm2d(3), "camera")):
        with pytest.raises(ConfigError, match=type(network).__name__):
            convert_norm(network, policy)


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_names_must_be_distinct(names: list[str]) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(names))):
        camera_batchnorm(names)
    with pytest.raises(ConfigError, match='"own"'):
        camera_batchnorm(["a"], affine="own")
