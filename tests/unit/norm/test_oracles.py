"""Every system against its slow oracle, and each oracle against wrong systems, which the same comparison must refuse.

The mistakes are listed in ``WRONG``: statistics mixed where outputs should be and the other way round, variances mixed
without the variance between the means, biased and unbiased variances, halves and weights swapped, statistics of a
neighbour, pixels counted for images, a gate with the softmax over another axis.  Plain BatchNorm by domain is in
test_batchnorm_layer_oracle.py, whitening in test_domain_whitening.py, MixStyle and SNR in test_generalization.py.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.system_oracles import (
    CHANNELS,
    LABELS,
    SystemCase,
    blend,
    dial,
    dson,
    gated,
    ibn,
    images,
    latent,
    layer_with,
    nado,
    prior,
    transnorm,
)
from reid.norm.assignment import DomainGate
from reid.norm.domain_affine import Transfer
from reid.norm.statistics_source import Align, BatchStatistics, Blend, Optimized, Prior


def half_gate() -> Tensor:
    return (torch.arange(CHANNELS) >= CHANNELS // 2).float()


SYSTEMS = {
    "ibn": SystemCase(
        lambda: layer_with(source=Blend(half_gate(), learned=False)),
        ibn,
        (
            "halves swapped",
            "instance statistics of the batch",
            "every other channel",
            "unbiased instance variance",
        ),
    ),
    "bin": SystemCase(
        lambda: layer_with(source=Blend(torch.ones(CHANNELS), learned=True)),
        blend,
        ("statistics mixed", "gate turned round", "gate of the first channel", "affine only of the batch part"),
    ),
    "dson": SystemCase(
        lambda: layer_with(domain_affine=True, source=Optimized(2)),
        dson,
        (
            "outputs mixed",
            "weights turned round",
            "one weight for both",
            "weights of the first domain",
            "variance between the means added",
            "affine of the first domain",
        ),
    ),
    "dial": SystemCase(
        lambda: layer_with(source=Align(0.7)),
        dial,
        ("variances mixed", "alpha turned round", "by number of images"),
        modes=(True,),
    ),
    "transnorm": SystemCase(
        lambda: layer_with(transfer=Transfer()),
        transnorm,
        (
            "raw means",
            "far channels count more",
            "sums to one",
            "without the one",
            "the other domain's statistics",
            "shift not weighed",
        ),
    ),
    "wbn": SystemCase(
        layer_with,
        latent,
        ("statistics mixed", "only the likeliest", "weights of the first image"),
        asked="weights",
    ),
    "wbn, training": SystemCase(layer_with, latent, ("statistics of the likeliest",), asked="weights", modes=(True,)),
    "gated": SystemCase(
        lambda: layer_with(domain_affine=True, gate=DomainGate(CHANNELS, 2)),
        gated,
        (
            "a gate that sees the batch",
            "softmax over the batch",
            "the likeliest branch",
            "no gate",
            "affine of the first branch",
        ),
        asked="nothing",
        modes=(False,),
    ),
    "prior": SystemCase(
        lambda: layer_with(source=Prior(5)),
        prior,
        ("pixels counted", "turned round", "the other variance", "all images of the batch", "unbiased"),
        modes=(False,),
    ),
    "prior, mixture": SystemCase(
        lambda: layer_with(source=Prior(5, "mixture")), prior, ("the other variance",), modes=(False,)
    ),
    "nado": SystemCase(
        lambda: layer_with(source=BatchStatistics()),
        nado,
        ("unbiased", "domains mixed", "running statistics", "by image"),
        modes=(False,),
    ),
}

WRONG = [
    (name, training, wrong) for name, system in SYSTEMS.items() for training in system.modes for wrong in system.wrong
]


def compare(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=15, deadline=None)
@hypothesis_given(
    domain=st.lists(st.integers(0, 1), min_size=2, max_size=8).filter(lambda found: len(set(found)) == 2),
    size=st.tuples(st.integers(1, 4), st.integers(2, 4)),
    seed=st.integers(0, 999),
    name=st.sampled_from(sorted(SYSTEMS)),
)
def test_a_system_is_its_oracle(domain: list[int], size: tuple[int, int], seed: int, name: str) -> None:
    x = images(len(domain), seed, size)
    for training in SYSTEMS[name].modes:
        compare(SYSTEMS[name].found(x, domain, training), SYSTEMS[name].expected(x, domain, training))


@pytest.mark.parametrize(("name", "training", "wrong"), WRONG)
def test_an_oracle_refuses_wrong_systems(name: str, training: bool, wrong: str) -> None:
    system, x = SYSTEMS[name], images()
    compare(system.found(x, LABELS, training), system.expected(x, LABELS, training))
    with pytest.raises(AssertionError):
        compare(system.expected(x, LABELS, training, wrong), system.expected(x, LABELS, training))
