"""The slow oracle of DomainBatchNorm refuses wrong layers, and running statistics have their closed form.

The wrong layers: statistics mixed between domains, the variance between images lost, biased and unbiased variance
swapped, the domain of the first row used for the whole batch, an affine that is not shared, or that of the first
domain for all, momentum taken for decay, statistics without gradient, running statistics of absent domains changed, a
domain of one value normalized to zero.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.domain_loop import (
    CHANNELS,
    check_a_mixed_batch,
    check_absent_domains,
    make_layer,
    plain_of,
    sorted_runs,
    vectorised,
)
from reid.norm import DomainBatchNorm

# The oracle refuses wrong layers.


class Loop:
    """A layer written out as a loop over its domains with one mistake; it is called like the functions of ``PATHS``."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, layer: DomainBatchNorm, x: Tensor, domain: Tensor) -> Tensor:
        if self.wrong == "the first row's label":
            domain = domain[:1].expand_as(domain)
        rows = [self._row(layer, x, domain, index) for index in range(len(layer.domains))]
        self._update_absent(layer, domain)
        scale, shift = (torch.stack(values)[domain][:, :, None, None] for values in zip(*rows, strict=True))
        return x * scale + shift

    def _row(self, layer: DomainBatchNorm, x: Tensor, domain: Tensor, index: int) -> tuple[Tensor, Tensor]:
        own = x if self.wrong == "domains mixed" else x[domain == index]
        mean, var = layer.running_mean[index].clone(), layer.running_var[index].clone()
        if layer.training and (domain == index).any():
            mean = own.mean((0, 2, 3))
            if self.wrong == "the running mean subtracted":
                mean = layer.running_mean[index].clone()
            axes, correction = (0, 2, 3), int(self.wrong == "unbiased variance normalizes")
            var = own.var(axes, correction=correction)
            if self.wrong == "variance between images lost":
                var = own.var((2, 3), correction=0).mean(0)
            self._update(layer, index, own)
        if self.wrong == "statistics detached":
            mean, var = mean.detach(), var.detach()
        affine = 0 if self.wrong == "affine of the first domain" else index
        weight, bias = (p[affine] if p.dim() == 2 else p for p in (layer.weight, layer.bias))
        if self.wrong == "affine of each domain":
            weight = weight * (1 + 0.1 * index)
        eps = 1e-3 if self.wrong == "another eps" else layer.eps
        scale = weight / (var + eps).sqrt()
        return scale, bias - mean * scale

    @torch.no_grad()
    def _update(self, layer: DomainBatchNorm, domain: int, own: Tensor) -> None:
        layer.num_batches_tracked[domain] += 1
        rate = 1.0 if self.wrong == "only the last batch" else layer.momentum
        rate = 1 - rate if self.wrong == "momentum as decay" else rate
        correct = own[:, 0].numel() > 1 and self.wrong != "biased running variance"
        var = own.var((0, 2, 3), correction=int(correct))
        layer.running_mean[domain] += rate * (own.mean((0, 2, 3)) - layer.running_mean[domain])
        layer.running_var[domain] += rate * (var - layer.running_var[domain])

    @torch.no_grad()
    def _update_absent(self, layer: DomainBatchNorm, domain: Tensor) -> None:
        if self.wrong == "absent domains touched" and layer.training:
            absent = torch.bincount(domain, minlength=3) == 0
            layer.running_mean[absent] *= 1 - layer.momentum


IN_TRAINING = (
    "domains mixed",
    "the first row's label",
    "variance between images lost",
    "unbiased variance normalizes",
    "biased running variance",
    "momentum as decay",
    "only the last batch",
    "the running mean subtracted",
    "statistics detached",
    "affine of each domain",
    "another eps",
)


@pytest.mark.parametrize("wrong", IN_TRAINING)
def test_the_loop_refuses_wrong_layers_in_training(wrong: str) -> None:
    check_a_mixed_batch(Loop(""), True, "shared", 0.1)  # else the refusal would say nothing
    with pytest.raises(AssertionError):
        check_a_mixed_batch(Loop(wrong), True, "shared", 0.1)


@pytest.mark.parametrize("affine", ["shared", "domain"])
@pytest.mark.parametrize("wrong", ["the first row's label", "affine of the first domain", "another eps"])
def test_the_loop_refuses_wrong_layers_in_evaluation(wrong: str, affine: str) -> None:
    check_a_mixed_batch(Loop(""), False, affine, 0.1)
    if wrong == "affine of the first domain" and affine == "shared":
        check_a_mixed_batch(Loop(wrong), False, affine, 0.1)  # no mistake where there is only one
        return
    with pytest.raises(AssertionError):
        check_a_mixed_batch(Loop(wrong), False, affine, 0.1)


def check_a_single_value(path) -> None:
    layer = make_layer()
    x = torch.randn(4, CHANNELS)
    y = path(layer, x[:, :, None, None], torch.tensor([0, 1, 0, 0])).flatten(1)
    torch.testing.assert_close(y[1:2], plain_of(make_layer().eval(), 1, nn.BatchNorm1d)(x[1:2]))
    assert torch.equal(layer.running_mean[1], make_layer().running_mean[1])


def test_touched_absent_domains_and_erased_single_images_are_refused() -> None:
    check_absent_domains(vectorised, True)
    check_absent_domains(Loop(""), True)
    with pytest.raises(AssertionError):
        check_absent_domains(Loop("absent domains touched"), True)
    check_a_single_value(vectorised)
    with pytest.raises(AssertionError):  # a loop over BatchNorm's formula knows no single values: they become 0
        check_a_single_value(Loop(""))


# Running statistics in closed form (EagleEye's recalibration, Li et al. 2020).


@settings(max_examples=30, deadline=None)
@hypothesis_given(
    rate=st.sampled_from([0.01, 0.1, 0.5, 1.0]), count=st.integers(1, 12), mixed=st.booleans(), seed=st.integers(0, 99)
)
def test_running_statistics_have_their_closed_form(rate: float, count: int, mixed: bool, seed: int) -> None:
    """u_T = (1 - r)^T u_0 + r sum_k (1 - r)^(T - k) u_k in every domain present; at r = 1 it is the last batch."""
    generator = torch.Generator().manual_seed(seed)
    layer = make_layer(momentum=rate).double().train()
    before = copy.deepcopy(layer)
    batches = [torch.randn(6, CHANNELS, 3, 2, generator=generator).double() * 2 + k for k in range(count)]
    domain = torch.tensor([0, 2, 0, 2, 0, 2]) if mixed else torch.zeros(6, dtype=torch.int64)
    for x in batches:
        (sorted_runs if mixed else vectorised)(layer, x, domain)
    for index in domain.unique().tolist():
        for key, batch in (
            ("running_mean", lambda x: x.mean((0, 2, 3))),
            ("running_var", lambda x: x.var((0, 2, 3), correction=1)),
        ):
            expected = (1 - rate) ** count * getattr(before, key)[index]
            for k, x in enumerate(batches, 1):
                expected = expected + rate * (1 - rate) ** (count - k) * batch(x[domain == index])
            torch.testing.assert_close(getattr(layer, key)[index], expected)
    assert torch.equal(layer.running_mean[1], before.running_mean[1])
    assert torch.equal(layer.weight, before.weight)
