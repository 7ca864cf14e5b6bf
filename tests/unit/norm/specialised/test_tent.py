"""Tent on a small classifier under a shift (T17): what may change, what falls, what comes back.

The wrong adaptations these tests catch: one that also trains convolutions, one that moves running statistics, one
that normalizes by the kept statistics, one that steps uphill, one that works on the network that was given.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConfigError, DataError
from reid.norm import Given, calibrate, camera_batchnorm, convert_norm, install
from reid.norm.domain_policy import DomainPolicy
from reid.norm.specialised.tent import adapt, batch_norms
from reid.norm.statistics_source import BatchStatistics
from reid.norm.unseen_domains import with_source
from reid.training.losses import entropy_loss

CLASSES, STEPS, RATE = 5, 20, 3e-3
Adaptation = Callable[[nn.Module, list[tuple[Tensor, None]], float], nn.Module]


def scene(shift: float = 0.0, count: int = 60, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Noisy images of five patterns, darkened by ``shift``, and their classes."""
    patterns = torch.randn(CLASSES, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % CLASSES
    noise = 1.2 * torch.randn(count, 3, 8, 6, generator=generator)
    return (patterns[classes] + noise) * (1 - 0.5 * shift) + 2 * shift, classes


def untrained() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(16 * 12, 16), nn.BatchNorm1d(16), nn.Linear(16, CLASSES),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A classifier of unshifted images; its neck's shift is frozen, as in a BNNeck."""
    network = untrained().train()
    network[10].bias.requires_grad_(False)
    images, classes = scene()
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        functional.cross_entropy(network(images), classes).backward()
        optimizer.step()
    return network.eval()


def shifted(steps: int = STEPS) -> list[tuple[Tensor, None]]:
    """The same batch of a darker site again and again: each step must lessen its entropy."""
    return [(scene(1.0, seed=2)[0], None)] * steps


def tent(network: nn.Module, batches: list[tuple[Tensor, None]], learning_rate: float = RATE) -> nn.Module:
    return adapt(network, batches, entropy_loss, learning_rate)


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items() if isinstance(value, Tensor)}


def changed(network: nn.Module, other: nn.Module) -> set[str]:
    ours, theirs = state_of(network), state_of(other)
    return {key for key, value in ours.items() if not torch.equal(value, theirs[key])}


def batch_entropy(network: nn.Module, images: Tensor) -> float:
    """Of the class probabilities when the batch normalizes."""
    converted = convert_norm(network, camera_batchnorm(["site"])).eval()
    return entropy_loss(with_source(converted, BatchStatistics())(images)).item()


def check_tent(adaptation: Adaptation, network: nn.Module) -> None:
    """T17: only scales and shifts of the copy change, and the entropy of the batch falls."""
    before, batches = state_of(network), shifted()
    adapted = adaptation(network, batches, RATE)
    after = network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    norms = {"1.weight", "1.bias", "5.weight", "5.bias", "10.weight"}  # without the frozen shift of the neck
    assert changed(adapted, network) == norms
    entropies = [batch_entropy(adaptation(network, batches[:n], RATE), batches[0][0]) for n in (0, 1, 5, 10, STEPS)]
    assert entropies == sorted(entropies, reverse=True)
    assert entropies[-1] < 0.9 * entropies[0]
    compare_steps(adapted, network)


def slow_tent(network: nn.Module, batches: list[tuple[Tensor, None]], rate: float, wrong: str = "") -> nn.Module:
    """Tent on plain torch layers, with one mistake."""
    copied = network if wrong == "in place" else copy.deepcopy(network)
    norms = [copied[1], copied[5], copied[10]]
    copied.requires_grad_(False)
    opened = [p for norm in norms for p in (norm.weight, norm.bias)][:-1]
    opened += [copied[0].weight] if wrong == "convolutions" else []
    optimizer = torch.optim.Adam([p.requires_grad_(True) for p in opened], rate)
    for norm in norms:
        norm.train(wrong != "kept statistics")
        norm.momentum = 0.1 if wrong == "running statistics" else 0.0
    for images, _ in batches:
        optimizer.zero_grad()
        loss = entropy_loss(copied(images))
        (-loss if wrong == "uphill" else loss).backward()
        optimizer.step()
    for norm in norms:
        norm.eval()
        if wrong != "running statistics":
            norm.num_batches_tracked.zero_().add_(network.state_dict()["1.num_batches_tracked"])
    return copied


def compare_steps(found: nn.Module, network: nn.Module) -> None:
    """The learnt values, step by step those of plain torch layers."""
    expected = slow_tent(network, shifted(), RATE)
    for key in changed(expected, network):
        torch.testing.assert_close(found.state_dict()[key], expected.state_dict()[key], rtol=1e-3, atol=1e-3)


def test_only_scales_and_shifts_change_and_the_entropy_falls(trained: nn.Module) -> None:
    """T17."""
    check_tent(tent, trained)
    check_tent(slow_tent, copy.deepcopy(trained))  # otherwise the refusals below would prove nothing


@pytest.mark.parametrize("wrong", ["convolutions", "running statistics", "kept statistics", "uphill", "in place"])
def test_wrong_adaptations_are_refused(wrong: str, trained: nn.Module) -> None:
    def adaptation(network: nn.Module, batches: list[tuple[Tensor, None]], rate: float) -> nn.Module:
        return slow_tent(network, batches, rate, wrong)

    with pytest.raises(AssertionError):
        check_tent(adaptation, copy.deepcopy(trained))


def test_the_steps_are_those_of_plain_torch(trained: nn.Module) -> None:
    """For a plain network and for a converted one, whose domain is given."""
    compare_steps(tent(trained, shifted()), trained)
    cameras = convert_norm(trained, camera_batchnorm(["a", "b"]))
    compare_steps(adapt(cameras, [(images, 1) for images, _ in shifted()], entropy_loss, RATE), trained)


def test_the_first_batch_is_normalized_as_prediction_time_batchnorm(trained: nn.Module) -> None:
    """With learning rate 0 it is Nado et al.: the objective gets the outputs of the batch's own statistics."""
    outputs: list[Tensor] = []
    images = shifted(1)[0][0]
    same = adapt(trained, [(images, None)], lambda logits: outputs.append(logits.detach()) or entropy_loss(logits), 0.0)
    converted = convert_norm(trained, camera_batchnorm(["site"]))
    torch.testing.assert_close(outputs[0], with_source(converted, BatchStatistics())(images), rtol=1e-4, atol=1e-4)
    assert not changed(same, trained)
    assert not torch.allclose(outputs[0], trained(images), atol=0.1)


def test_the_original_network_is_the_reset(trained: nn.Module) -> None:
    """T17: its outputs stay bit for bit, and adapting it again gives the same bits."""
    images = scene(1.0, seed=3)[0]
    before = trained(images)
    once, again = tent(trained, shifted()), tent(trained, shifted())
    assert torch.equal(trained(images), before)
    assert not changed(once, again)
    assert not torch.equal(once(images), before)


def test_adapted_and_calibrated_it_serves_the_shifted_site_better(trained: nn.Module) -> None:
    """Statistics of the site do most of it; the entropy must not undo it."""
    images, classes = scene(1.0, count=200, seed=4)
    indices = torch.zeros(200, dtype=torch.int64)

    def accuracy(network: nn.Module, domain: int | None) -> float:
        with torch.inference_mode():
            return float((Given(network)(images, domain).argmax(1) == classes).float().mean())

    adapted = tent(trained, shifted())
    site = install(adapted, calibrate(adapted, [(images, indices)], ["site"]))
    assert accuracy(site, 0) > accuracy(trained, None) + 0.2
    calibrated = install(trained, calibrate(trained, [(images, indices)], ["site"]))
    assert accuracy(site, 0) >= accuracy(calibrated, 0) - 0.02


def test_any_objective_on_any_member_of_the_family() -> None:
    """A re-ID entropy: of the similarities to images of the site, not of training identities."""
    network = untrained()[:11]
    converted = convert_norm(network, DomainPolicy("camera", ("a", "b"), system="dial"))
    site = functional.normalize(torch.randn(12, 16, generator=torch.Generator().manual_seed(5)))
    indices = torch.arange(60) % 2
    images = scene(1.0)[0]

    def unsure(vectors: Tensor) -> Tensor:
        return entropy_loss(functional.normalize(vectors) @ site.T / 0.1)

    adapted = adapt(converted, [(images, indices)] * 8, unsure)
    found = [unsure(Given(net.train())(images, indices)).item() for net in map(copy.deepcopy, (converted, adapted))]
    assert found[1] < found[0]
    assert {key.rpartition(".")[2] for key in changed(adapted, converted)} == {"weight", "bias"}
    assert set(batch_norms(converted)) == {"1", "5", "10"}


def test_mistakes_are_named(trained: nn.Module) -> None:
    images = scene()[0]
    with pytest.raises(ConfigError, match="no BatchNorm"):
        tent(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)), [(images, None)])
    with pytest.raises(ConfigError, match="a scalar"):
        adapt(trained, [(images, None)], lambda logits: logits)
    with pytest.raises(DataError, match="batch 2 has 1 "):
        tent(trained, [(images, None), (images[:1], None)])
    with pytest.raises(DataError, match="nan on batch 1"):
        adapt(trained, [(images, None)], lambda logits: logits.sum() * torch.nan)
