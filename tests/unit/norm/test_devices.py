"""Everything in reid.norm runs on an accelerator, without a host synchronisation for each layer and with equal numbers.

Two kinds of tests.  The first needs no accelerator: PyTorch computes only shapes, types and devices of tensors that
pretend to lie on a GPU, raises an error where one of them meets a tensor of the CPU, and raises another where the host
asks for a value, which on a real GPU would wait for all work before it.  A backward pass needs a real one.  The second
kind compares numbers with those of the CPU on whatever accelerator is there, and is skipped where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from reid.norm import SYSTEMS, Given, calibrate, camera_batchnorm, convert_norm, extract, install
from reid.norm.batchnorm_layer import DomainBatchNorm
from reid.norm.condition import Condition
from reid.norm.convert import norm_layers
from reid.norm.domain_policy import DomainPolicy
from reid.norm.unseen_domains import answer, domain_distances, mixture

IMAGES = 8
CASES = [name for name in SYSTEMS if name != "batch"]


def accelerator() -> str | None:
    """The best accelerator of this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


on_an_accelerator = pytest.mark.skipif(
    accelerator() is None, reason="no accelerator: needs a GPU of NVIDIA or AMD (cuda) or of Apple (mps)"
)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8),
    )  # fmt: skip


def converted(system: str) -> nn.Module:
    if system == "batch":
        return convert_norm(network(), camera_batchnorm(["a", "b"]))
    latent = SYSTEMS[system].latent
    names = tuple(f"latent-{i}" for i in range(latent)) if latent else ("a", "b") if SYSTEMS[system].min_domains else ()
    return convert_norm(network(), DomainPolicy("test", names, system=system))


def domain_for(system: str) -> Tensor | None:
    needs_one = system == "batch" or (SYSTEMS[system].min_domains and not SYSTEMS[system].latent)
    return torch.arange(IMAGES) % 2 if needs_one else None


def pixels(seed: int = 4) -> Tensor:
    return torch.randn(IMAGES, 3, 16, 8, generator=torch.Generator().manual_seed(seed))


# On tensors that pretend to lie on a GPU


@pytest.fixture
def pretended() -> Iterator[FakeTensorMode]:
    with FakeTensorMode() as mode:
        yield mode


def on_pretended_gpu(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """The same network with parameters and buffers that pretend to lie on a GPU."""
    for part in module.modules():
        for key, value in part._parameters.items():
            if value is not None:
                fake = torch.empty_like(mode.from_tensor(value.detach()), device="cuda")
                part._parameters[key] = nn.Parameter(fake, requires_grad=value.requires_grad)
        for key, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[key] = torch.empty_like(mode.from_tensor(buffer), device="cuda")
    return module


def pretended_batch() -> tuple[Tensor, Tensor]:
    images = torch.empty(IMAGES, 3, 16, 8, device="cuda")
    return images, torch.empty(IMAGES, dtype=torch.int64, device="cuda")


@pytest.mark.parametrize("system", ["batch", *CASES])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_no_system_leaves_the_device_or_waits_for_it(system: str, training: bool) -> None:
    model = converted(system).train(training)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        images, domain = pretended_batch()
        given_domain = None if domain_for(system) is None else domain
        output = Given(on_pretended_gpu(model, mode))(images, given_domain)
        assert output.device.type == "cuda"
        assert output.shape == (IMAGES, 8)


class Waiting(DomainBatchNorm):
    """A wrong layer, which asks for the domains on the host."""

    def _normalize(self, x: Tensor, condition: Condition) -> Tensor:
        if isinstance(condition.domain, Tensor) and condition.domain.tolist():
            return super()._normalize(x, condition)
        return x


class Leaving(DomainBatchNorm):
    """A wrong layer, which keeps a table on the CPU."""

    def _normalize(self, x: Tensor, condition: Condition) -> Tensor:
        return super()._normalize(x, condition) + torch.ones(1, 1, x.shape[2], 1)


def test_a_layer_that_waits_is_found(pretended: FakeTensorMode) -> None:
    images, domain = pretended_batch()
    layer = on_pretended_gpu(Waiting(3, ["a", "b"]).eval(), pretended)
    with pytest.raises(DataDependentOutputException):
        Given(layer)(images, domain)


def test_a_layer_that_leaves_the_device_is_found(pretended: FakeTensorMode) -> None:
    images, domain = pretended_batch()
    layer = on_pretended_gpu(Leaving(3, ["a", "b"]).eval(), pretended)
    with pytest.raises(Exception, match="device"):
        Given(layer)(images, domain)


@pytest.mark.parametrize("weights", [False, True], ids=["indices", "weights"])
def test_weights_and_indices_of_a_mixed_batch(weights: bool) -> None:
    model = converted("batch").eval()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        images, domain = pretended_batch()
        shares = torch.empty(IMAGES, 2, device="cuda")
        assert Given(on_pretended_gpu(model, mode))(images, shares if weights else domain).device.type == "cuda"


# On a real accelerator


@on_an_accelerator
@pytest.mark.parametrize("system", ["batch", *CASES])
def test_every_system_computes_what_the_cpu_computes(system: str) -> None:
    device = str(accelerator())
    here, there = converted(system).train(), converted(system).train().to(device)
    there.load_state_dict(here.state_dict())
    x, domain = pixels(), domain_for(system)
    for training in (True, False):
        expected = Given(here.train(training))(x, domain)
        found = Given(there.train(training))(x.to(device), None if domain is None else domain.to(device))
        assert torch.allclose(found.cpu(), expected, atol=1e-4), training
    for name, layer in norm_layers(there).items():
        mine = norm_layers(here)[name]
        assert torch.allclose(layer.running_mean.cpu(), mine.running_mean, atol=1e-4)


@on_an_accelerator
def test_calibration_and_unseen_domains_compute_what_the_cpu_computes() -> None:
    device = str(accelerator())
    plain, domain = network().eval(), torch.arange(IMAGES) % 2
    here = calibrate(plain, [(pixels(), domain), (pixels(5), domain)], ["a", "b"])
    there = calibrate(plain.to(device), [(pixels(), domain), (pixels(5), domain)], ["a", "b"])
    assert all(torch.allclose(there.mean[name], here.mean[name], atol=1e-4) for name in here.mean)
    assert all(torch.allclose(there.var[name], here.var[name], atol=1e-4) for name in here.var)
    cpu, moved = install(network().eval(), here).eval(), install(plain, there).eval()
    x = pixels()
    assert torch.allclose(domain_distances(moved, x.to(device)).cpu(), domain_distances(cpu, x), rtol=1e-3)
    assert torch.allclose(mixture(moved, x.to(device)).cpu(), mixture(cpu, x), atol=1e-4)
    mixed = torch.tensor([0, 1, -1, 0, 1, -1, 0, 1])
    found = answer(moved, x.to(device), mixed.to(device), "nearest")
    assert torch.allclose(found.cpu(), answer(cpu, x, mixed, "nearest"), atol=1e-4)
    assert torch.allclose(extract(moved, "b")(x.to(device)).cpu(), extract(cpu, "b")(x), atol=1e-4)
