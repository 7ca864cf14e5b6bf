"""The alarm of networks with gates: its threshold, its probability, and where it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.small_checkpoints import IMAGES, SPEC, TRANSFORM, plain_network, randomize_norms
from reid.errors import ConfigError, WeightsError
from reid.models.checkpoint import load_checkpoint, save_checkpoint
from reid.norm import SYSTEMS, Given, convert_norm, extract
from reid.norm.assignment import DomainGate, gate_logits
from reid.norm.convert import norm_layers
from reid.norm.domain_policy import DomainPolicy
from reid.robustness.gate_alarm import (
    ALARM,
    BRANCHES,
    GateAlarm,
    alarm_of,
    attack_probability,
    knows_attacks,
    measure_on_crops,
    measure_threshold,
)


def gated_network() -> Any:
    torch.manual_seed(0)
    return randomize_norms(convert_norm(plain_network(), DomainPolicy("attack", BRANCHES, "domain", "gated_first")))


def save_gated(folder: Path, extra: dict[str, str]) -> Path:
    path = folder / "gated.safetensors"
    save_checkpoint(path, gated_network(), SPEC, TRANSFORM, (), BRANCHES, extra)
    return path


def test_the_threshold_keeps_the_stated_rate() -> None:
    random = np.random.default_rng(0)
    for rate, count in ((0.01, 100), (0.05, 37), (0.3, 1000), (0.001, 10)):
        values = random.random(count).astype(np.float32).round(3)
        alarm = measure_threshold(values, rate)
        assert (values > alarm.threshold + 1e-6).mean() <= rate
        smaller = max((value for value in values if value < alarm.threshold - 1e-6), default=None)
        assert smaller is None or (values > smaller + 1e-6).mean() > rate or count * rate >= count - 1


@pytest.mark.parametrize("rate", [0.0, 1.0, float("nan")])
def test_wrong_rates_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError):
        measure_threshold(np.zeros(3, np.float32), rate)
    with pytest.raises(ConfigError):
        measure_threshold(np.zeros(0, np.float32), 0.1)


def test_the_probability_is_that_of_the_gates() -> None:
    network = gated_network()
    with torch.no_grad(), gate_logits(network) as found:
        Given(network)(IMAGES)
    expected = [1 - np.mean([torch.softmax(one, 1)[row, 0] for one in found]) for row in range(len(IMAGES))]
    assert np.allclose(attack_probability(network, IMAGES).numpy(), expected, atol=1e-6)


def test_gates_stand_in_the_first_layers_and_the_others_have_no_domains() -> None:
    network = gated_network()
    gates = [module for module in network.modules() if isinstance(module, DomainGate)]
    layers = len([m for m in plain_network().modules() if isinstance(m, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d)])
    assert len(gates) == len(norm_layers(network)) == len(SYSTEMS["gated_first"].layers(layers))
    assert 0 < len(gates) < layers / 3


def test_a_branch_that_is_known_is_that_of_the_extracted_network() -> None:
    network = gated_network()
    for index, name in enumerate(BRANCHES):
        known = extract(network, name)
        assert torch.allclose(Given(known)(IMAGES), Given(network)(IMAGES, index), atol=1e-5)
    alone, among_others = Given(network)(IMAGES[:1]), Given(network)(IMAGES)[:1]
    assert bool((alone - among_others).abs().max() < 1e-5)


def test_the_gradient_passes_the_gates() -> None:
    """Without it an attack would take the gates for constants, and look weaker than it is."""
    network = gated_network()
    images = IMAGES.clone().requires_grad_()
    Given(network)(images)[:, 0].sum().backward()
    through = images.grad.clone()
    constant = IMAGES.clone().requires_grad_()
    handles = [
        module.register_forward_hook(lambda _module, _inputs, logits: logits.detach())
        for module in network.modules()
        if isinstance(module, DomainGate)
    ]
    Given(network)(constant)[:, 0].sum().backward()
    for handle in handles:
        handle.remove()
    assert not torch.allclose(through, constant.grad, rtol=1e-3)


def test_a_checkpoint_keeps_its_alarm(tmp_path: Path) -> None:
    alarm = GateAlarm(0.25, 0.01, 12)
    checkpoint = load_checkpoint(save_gated(tmp_path, {ALARM: alarm.text()}))
    assert alarm_of(checkpoint) == alarm
    assert checkpoint.domain_fields == ()
    assert alarm.is_raised(0.26)
    assert not alarm.is_raised(0.25)
    measured = measure_on_crops(checkpoint.network, torch.zeros(5, 3, 64, 32, dtype=torch.uint8), TRANSFORM)
    assert measured.images == 5


def test_networks_without_gates_have_no_alarm(tmp_path: Path) -> None:
    assert alarm_of(load_checkpoint(save_gated(tmp_path, {}))) is None
    assert not knows_attacks(plain_network())
    with pytest.raises(ConfigError):
        attack_probability(plain_network(), IMAGES)
    with pytest.raises(WeightsError):
        alarm_of(load_checkpoint(save_gated(tmp_path, {ALARM: "[1]"})))
