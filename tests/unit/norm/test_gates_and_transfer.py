"""The factors of TransNorm and the gates of gated BN against their definitions.

The wrong variants that are shown to fail: a transferability with a gradient, a gate that a gradient does not pass.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from helpers.domain_layers import CHANNELS, LABELS, close, images, make_layer, run, running_statistics
from reid.norm import (
    Given,
)
from reid.norm.assignment import DomainGate, gate_logits, gate_loss
from reid.norm.statistics import Statistics, moments

# Colours and gates


def test_transfer_factors_sum_to_twice_the_channels_and_have_no_gradient() -> None:
    from reid.norm.domain_affine import Transfer

    layer, x = make_layer(transfer=Transfer()), images()
    stats = running_statistics(layer, torch.tensor([0, 1]))
    factors = layer.transfer(stats, layer.eps)
    position = stats.mean / (stats.var + layer.eps).sqrt()
    slow = torch.stack([1 / (1 + (position[0, c] - position[1, c]).abs()) for c in range(CHANNELS)])
    assert close(factors, 1 + CHANNELS * slow / slow.sum())
    assert factors.sum().item() == pytest.approx(2 * CHANNELS, rel=1e-5)
    assert close(run(layer, x, LABELS), run(make_layer(), x, LABELS) * factors.view(1, -1, 1, 1))
    leaf = stats.mean.clone().requires_grad_()
    assert not layer.transfer(Statistics(leaf, stats.var, stats.mass), layer.eps).requires_grad


def test_equal_domains_are_doubled_as_published() -> None:
    from reid.norm.domain_affine import Transfer

    layer, x = make_layer(transfer=Transfer()), images()
    with torch.no_grad():
        layer.running_mean[1], layer.running_var[1] = layer.running_mean[0], layer.running_var[0]
    assert close(run(layer, x, 0), 2 * (run(make_layer(), x, 0)))


def test_a_certain_gate_is_its_branch() -> None:
    layer, x = make_layer(gate=DomainGate(CHANNELS, 2)), images()
    with torch.no_grad():
        layer.gate.layers[-1].weight.zero_()
        layer.gate.layers[-1].bias.copy_(torch.tensor([200.0, 0.0]))
    assert close(run(layer, x, None), run(layer, x, 0))
    assert not close(run(layer, x, None), run(layer, x, 1), 1e-2)


def test_a_branch_with_gate_weight_zero_changes_nothing() -> None:
    """The gate gives the branch the probability 0."""
    layer, x = make_layer(gate=DomainGate(CHANNELS, 2)), images()
    with torch.no_grad():
        layer.gate.layers[-1].weight.zero_()
        layer.gate.layers[-1].bias.copy_(torch.tensor([300.0, 0.0]))
    before = run(layer, x, None)
    with torch.no_grad():
        layer.running_mean[1] += 7
        layer.weight[1] *= -3
    assert torch.equal(run(layer, x, None), before)


def test_the_gradient_passes_the_gate() -> None:
    """An attack differentiates through the gate too; without that part the gradient is not the slope."""
    layer, x = make_layer(gate=DomainGate(CHANNELS, 2)).double(), images(3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: run(layer, x, None), (x,))
    (whole,) = torch.autograd.grad(run(layer, x, None).square().sum(), x)
    weights = torch.softmax(layer.gate(*moments(x)), 1).detach()
    fixed = copy.deepcopy(layer)
    fixed.gate = None
    (masked,) = torch.autograd.grad(run(fixed, x, weights).square().sum(), x)
    assert not close(masked, whole, 1e-3)


def test_a_gate_over_equal_branches_changes_nothing_and_learns_from_labels() -> None:
    layer, x = make_layer(gate=DomainGate(CHANNELS, 2)), images()
    same = layer.take_rows(("d0", "d1"), [0, 0])
    assert close(run(same, x, None), run(same, x, 1))
    network = nn.Sequential(layer.train())
    with gate_logits(network) as logits:
        out = Given(network)(x, LABELS)
    assert [tuple(part.shape) for part in logits] == [(7, 2)]
    (out.sum() + gate_loss(logits, LABELS)).backward()
    assert layer.gate.layers[0].weight.grad.abs().sum() > 0
