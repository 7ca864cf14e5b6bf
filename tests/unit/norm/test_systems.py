"""Networks of every system: converted, trained, saved, loaded, extended and extracted, and what each system refuses.

Wrong variants of every system are refused in test_oracles.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers.domain_layers import CHANNELS, close, images
from reid.errors import ConditionError, ConfigError
from reid.norm import (
    SYSTEMS,
    Given,
    add_domain,
    calibrate,
    convert_norm,
    domains_of,
    extract,
    install,
    mixes_domains,
    system_of,
)
from reid.norm.convert import norm_layers, take_rows
from reid.norm.domain_policy import DomainPolicy
from reid.norm.statistics_source import Prior
from reid.norm.systems import first_layers, layers_at
from reid.norm.unseen_domains import mixture, with_source

# Networks


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8),
    )  # fmt: skip


def names_for(system: str) -> tuple[str, ...]:
    latent = SYSTEMS[system].latent
    return tuple(f"latent-{i}" for i in range(latent)) if latent else ("a", "b") if SYSTEMS[system].min_domains else ()


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "batch"])
def test_every_system_trains_saves_and_loads(system: str) -> None:
    policy = DomainPolicy("test", names_for(system), system=system)
    x = torch.randn(8, 3, 32, 16, generator=torch.Generator().manual_seed(4))
    domain = torch.arange(8) % 2 if SYSTEMS[system].min_domains and not SYSTEMS[system].latent else None
    converted = convert_norm(network(), policy).train()
    Given(converted)(x, domain).square().sum().backward()
    missing = [name for name, p in converted.named_parameters() if p.grad is None and "gate" not in name]
    assert not missing
    converted.eval()
    again = convert_norm(network(), policy).eval()
    again.load_state_dict(converted.state_dict())
    assert torch.equal(Given(again)(x, domain), Given(converted)(x, domain))
    assert system_of(converted) == system
    assert domains_of(converted) == names_for(system)
    assert Given(converted)(x[:1], None if domain is None else domain[:1]).isfinite().all()


@pytest.mark.parametrize("system", ["dson", "dial", "transnorm", "gated", "dwt"])
def test_one_domain_can_be_taken_out(system: str) -> None:
    converted = convert_norm(network(), DomainPolicy("test", ("a", "b"), system=system)).train()
    x = torch.randn(8, 3, 32, 16, generator=torch.Generator().manual_seed(4))
    for _ in range(2):
        Given(converted)(x * 2, torch.arange(8) % 2)
    converted.eval()
    for index, name in enumerate(("a", "b")):
        extracted = extract(converted, name)
        assert close(extracted(x), Given(converted)(x, index))


def test_a_system_names_the_domains_that_it_needs() -> None:
    with pytest.raises(ConfigError, match=r'"transnorm" .*2 .*3 '):
        convert_norm(network(), DomainPolicy("camera", ("a", "b", "c"), system="transnorm"))
    with pytest.raises(ConfigError, match=r'"dial" .*2 .*0 '):
        convert_norm(network(), DomainPolicy("camera", (), system="dial"))
    with pytest.raises(ConfigError, match='"dail"'):
        DomainPolicy("camera", ("a", "b"), system="dail")
    once = convert_norm(network(), DomainPolicy("none", (), system="ibn"))
    with pytest.raises(ConfigError, match='"ibn"'):
        convert_norm(once, DomainPolicy("camera", ("a", "b"), system="dial"))


def test_an_ibn_network_can_have_cameras() -> None:
    once = convert_norm(network(), DomainPolicy("none", (), system="ibn")).eval()
    cameras = convert_norm(once, DomainPolicy("camera", ("a", "b"))).eval()
    x = torch.randn(4, 3, 32, 16)
    assert system_of(cameras) == "ibn"
    assert domains_of(cameras) == ("a", "b")
    assert torch.equal(Given(cameras)(x, torch.tensor([0, 1, 1, 0])), once(x))


def test_layers_are_chosen_by_share_and_by_position() -> None:
    assert list(first_layers(0.25)(8)) == [0, 1]
    assert list(first_layers(0.01)(8)) == [0]
    assert list(layers_at(0.0, 0.5, 1.0)(9)) == [0, 4, 8]
    assert list(layers_at(0.1, 0.1)(2)) == [0]


# What a second reader found


def converted(system: str, affine: str = "shared", plain: nn.Module | None = None) -> nn.Module:
    return convert_norm(plain or network(), DomainPolicy("test", names_for(system), affine, system))


def test_calibrating_aligned_domains_keeps_them_aligned() -> None:
    net = converted("dial").train()
    for layer in norm_layers(net).values():
        layer.source.alpha.data.fill_(0.5)
    x = torch.randn(32, 3, 32, 16, generator=torch.Generator().manual_seed(5))
    domain = torch.arange(32) % 2
    x[domain == 1] += 2.0
    assert mixes_domains(net)
    assert not mixes_domains(converted("dson"))
    calibrated = install(net.eval(), calibrate(net, [(x, domain)], ("a", "b")))
    for layer in norm_layers(calibrated).values():
        assert close(layer.running_mean[0], layer.running_mean[1])
        assert close(layer.running_var[0], layer.running_var[1])
    first = calibrated[1]
    assert close(first.running_mean[0], net[0](x).mean((0, 2, 3)), 1e-4)  # both halves count the same


@pytest.mark.parametrize("system", ["dson", "gated"])
def test_a_state_with_its_domains_in_another_order_loads_by_name(system: str) -> None:
    net = converted(system, "domain").eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(0.1, 1.0)
    other = convert_norm(network(), DomainPolicy("test", ("b", "a"), "domain", system)).eval()
    other.load_state_dict(net.state_dict())
    x = torch.randn(4, 3, 32, 16)
    assert close(Given(net)(x, 0), Given(other)(x, 1))
    turned = take_rows(net, ("b", "a"), [1, 0])
    assert close(Given(net)(x, 1), Given(turned)(x, 0))
    if system == "gated":
        assert close(Given(net)(x), Given(other)(x))
        assert close(Given(net)(x), Given(turned)(x))


@pytest.mark.parametrize("system", ["batch", "dial", "dson", "transnorm", "gated", "dwt"])
@pytest.mark.parametrize(
    ("domain", "wrong"), [(-1, -1), (2, 2), (torch.tensor([0, 1, 2, 0]), 2), (torch.tensor([-1, 0, 1, 1]), -1)]
)
def test_domains_out_of_range_are_refused_by_all(system: str, domain: int | Tensor, wrong: int) -> None:
    net = convert_norm(network(), DomainPolicy("test", ("a", "b"), system=system)).eval()
    with pytest.raises(ConditionError, match=rf"domain {wrong} .* 2$"):
        Given(net)(torch.randn(4, 3, 32, 16), domain)


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "batch"])
def test_training_flags_and_dtype_carry_over(system: str) -> None:
    net = converted(system, plain=network().double().eval())
    assert not any(part.training for part in net.modules())
    assert all(p.dtype == torch.float64 for p in net.parameters())
    x = torch.randn(4, 3, 32, 16, dtype=torch.float64)
    domain = torch.tensor([0, 1, 1, 0]) if SYSTEMS[system].min_domains and not SYSTEMS[system].latent else None
    assert Given(net)(x, domain).dtype == torch.float64


def test_one_domain_of_transnorm_without_affine_keeps_its_factors() -> None:
    net = converted("transnorm", plain=nn.Sequential(nn.BatchNorm2d(CHANNELS, affine=False))).eval()
    net[0].running_mean.normal_()
    x = images()
    assert close(extract(net, "b")(x), Given(net)(x, 1))


def test_what_a_system_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="convert_norm"):
        add_domain(network(), "x")
    with pytest.raises(ConfigError, match='"ibn"'):
        with_source(converted("ibn"), Prior(4))
    with pytest.raises(ConfigError, match='"dwt"'):
        with_source(converted("dwt"), Prior(4))
    with pytest.raises(ConfigError, match=r'"dwt".*"shared"'):
        converted("dwt", "domain")
    with pytest.raises(ConfigError, match=r"\(a, b\)"):
        convert_norm(converted("dial"), DomainPolicy("camera", ("c",)))
    with pytest.raises(ConditionError, match=r"network\.eval\(\)"):
        mixture(converted("dson").train(), torch.randn(2, 3, 32, 16))
    assert system_of(extract(converted("dial"), "a")) == "batch"
