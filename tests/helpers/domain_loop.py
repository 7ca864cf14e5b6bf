"""DomainBatchNorm by a slow oracle: a loop over plain BatchNorm layers, one for each domain."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from reid.norm import Condition, DomainBatchNorm, Given, given

CHANNELS = 5

NAMES = ("a", "b", "c")


def make_layer(**options) -> DomainBatchNorm:
    """Make a layer whose three domains and affine all differ."""
    torch.manual_seed(0)
    layer = DomainBatchNorm(CHANNELS, NAMES, **options)
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        if layer.weight is not None:
            layer.weight.uniform_(0.5, 2)
            layer.bias.normal_()
    return layer


def plain_of(layer: DomainBatchNorm, domain: int, kind: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """Make the layer of torch with the state of one domain."""
    plain = kind(CHANNELS, eps=layer.eps, momentum=layer.momentum)
    state = {}
    for key, value in layer.state_dict().items():
        if isinstance(value, Tensor):
            per_domain = key not in ("weight", "bias") or layer.affine == "domain"
            state[key] = value[domain] if per_domain else value
    plain.load_state_dict(state)
    return plain.train(layer.training)


def loop_oracle(layer: DomainBatchNorm, x: Tensor, domain: Tensor) -> tuple[Tensor, list[nn.Module]]:
    """Select the images of each domain and give them to a BatchNorm of their own."""
    plains = [plain_of(layer, g) for g in range(len(layer.domains))]
    out = torch.empty_like(x)
    for g, plain in enumerate(plains):
        if (domain == g).any():
            out[domain == g] = plain(x[domain == g])
    return out, plains


def vectorised(layer: DomainBatchNorm, x: Tensor, domain: Tensor) -> Tensor:
    with given(Condition(domain)):
        return layer(x)


def sorted_runs(layer: DomainBatchNorm, x: Tensor, domain: Tensor) -> Tensor:
    return Given(layer)(x, domain)


PATHS = pytest.mark.parametrize("path", [vectorised, sorted_runs])

MODES = pytest.mark.parametrize("training", [True, False])

AFFINE = pytest.mark.parametrize("affine", ["shared", "domain", None])


def check_a_mixed_batch(path, training: bool, affine: str | None, momentum: float | None) -> None:
    """Check outputs, buffers and gradients of an unsorted batch with 1 to 4 images in each domain."""
    layer = make_layer(affine=affine, momentum=momentum).train(training)
    if affine is None:
        layer_for_loop = make_layer(affine="shared", momentum=momentum).train(training)
        nn.init.ones_(layer_for_loop.weight)
        nn.init.zeros_(layer_for_loop.bias)
    else:
        layer_for_loop = copy.deepcopy(layer)
    domain = torch.tensor([2, 0, 1, 2, 2, 0, 2])
    x = (torch.randn(7, CHANNELS, 4, 3) * 3 + domain[:, None, None, None]).requires_grad_(True)
    twin = x.detach().clone().requires_grad_(True)
    expected, plains = loop_oracle(layer_for_loop, twin, domain)
    got = path(layer, x, domain)
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=1e-5)
    direction = torch.randn_like(got)
    (got * direction).sum().backward()
    (expected * direction).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-4, atol=1e-5)
    for g, plain in enumerate(plains):
        torch.testing.assert_close(layer.running_mean[g], plain.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.running_var[g], plain.running_var, rtol=1e-5, atol=1e-6)
        assert layer.num_batches_tracked[g] == plain.num_batches_tracked
    if affine == "domain":
        torch.testing.assert_close(
            layer.weight.grad, torch.stack([p.weight.grad for p in plains]), rtol=1e-4, atol=1e-4
        )
    elif affine == "shared":
        torch.testing.assert_close(layer.weight.grad, sum(p.weight.grad for p in plains), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.bias.grad, sum(p.bias.grad for p in plains), rtol=1e-4, atol=1e-4)


def check_absent_domains(path, training: bool) -> None:
    layer = make_layer().train(training)
    before = copy.deepcopy(layer.state_dict())
    path(layer, torch.randn(4, CHANNELS, 3, 3), torch.tensor([0, 2, 2, 0]))
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(layer.state_dict()[key][1], before[key][1])
        assert torch.equal(layer.state_dict()[key][0], before[key][0]) is not training
