"""SNR's dual causality loss in the loop.

The wrong versions these tests catch: identities in another order than the layers' rows, equal or swapped weights
of the layers, a loss without gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.training_loops import COUNT, IDENTITIES, make_loop, run
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import DomainPolicy, Given, convert_norm
from reid.norm.specialised.generalization import SNR, Restitution, dual_causality_loss
from reid.training.causality import DualCausality
from reid.training.loop import Learner, Loop, make_optimizer


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def snr_loop(cameras: bool = False, **recipe: Any) -> Loop:
    loop = make_loop(cameras=cameras, **recipe)
    torch.manual_seed(0)
    names = ("a", "b") if cameras else ()
    embedder: Any = convert_norm(Embedder(NetworkSpec("osnet_x0_25")), DomainPolicy("camera", names, system="snr"))
    learner = Learner(embedder, IDENTITIES)
    return Loop(learner, make_optimizer(learner, loop.recipe), loop.data, loop.augment, loop.transform, loop.recipe)


def snr_layers(loop: Loop) -> list[SNR]:
    return [layer for layer in loop.learner.modules() if isinstance(layer, SNR)]


def test_the_loss_of_a_training_is_the_weighted_sum_over_its_layers() -> None:
    """With cameras the layers see rows sorted by camera; hooks of the test's own take the maps from each layer."""
    loop = snr_loop(cameras=True, learning_rate=1e-9, triplet_weight=0.0)
    domains, targets = loop.data.domains, torch.randint(0, IDENTITIES, (COUNT,))
    object.__setattr__(loop.data, "targets", targets)
    with torch.no_grad():  # a fresh layer's three maps hardly differ
        for layer in snr_layers(loop):
            for parameter in layer.parameters():
                parameter.normal_(std=2)
    seen: list[tuple[SNR, Tensor]] = []
    for layer in snr_layers(loop):
        layer.register_forward_hook(lambda module, inputs, _: seen.append((module, inputs[0].detach())))
    report = run(loop, 1)[0]
    assert len(seen) == 2 * 3  # layers, batches

    @torch.no_grad()
    def expected(weights: tuple[float, float], labels: Tensor) -> float:
        total = 0.0
        for number, (layer, x) in enumerate(seen):
            total += weights[number % 2] * float(dual_causality_loss(layer.restitute(x), labels)) / 3
        return total

    ordered = torch.cat([targets[domains == camera] for camera in (0, 1)])  # type: ignore[index]
    added = report.loss - report.identity_loss
    assert added == pytest.approx(expected((0.1, 0.5), ordered), abs=5e-6)
    assert abs(added - expected((0.5, 0.1), ordered)) > 3e-5
    assert abs(added - expected((0.1, 0.5), targets)) > 3e-5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_loss_falls(precision: str) -> None:
    loop = snr_loop(epochs=6, learning_rate=5e-3, precision=precision)
    losses = [
        report.loss - report.identity_loss - report.triplet_weight * report.triplet_loss for report in run(loop, 6)
    ]
    assert 0 < losses[-1] < losses[0] - 0.002


def test_its_gradient_reaches_the_gates_and_the_layers_before() -> None:
    loop = snr_loop()
    causality, images = DualCausality(loop.learner), torch.randn(8, 3, 32, 16)
    with causality.watching() as maps:
        Given(loop.learner.train())(images)
    causality.loss(maps, torch.arange(8) % 4).backward()
    first = next(layer for layer in loop.learner.modules() if isinstance(layer, nn.Conv2d))
    parameters = [first.weight, *(parameter for layer in snr_layers(loop) for parameter in layer.parameters())]
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in parameters)
    assert loop.learner.classifier.weight.grad is None


def test_the_layers_are_watched_only_inside_the_with() -> None:
    loop = snr_loop()
    causality = DualCausality(loop.learner)
    with causality.watching() as maps, torch.no_grad():
        loop.learner(torch.randn(4, 3, 32, 16))
    assert len(maps) == 2
    loop.learner(torch.randn(4, 3, 32, 16))
    assert len(maps) == 2


def test_a_restitution_that_confuses_costs_more() -> None:
    identities, even = torch.tensor([0, 0, 1, 1]), torch.ones(4, 2, 1, 1)
    apart = torch.eye(2)[identities][:, :, None, None]
    good = dual_causality_loss(Restitution(even, apart, even), identities)
    assert good < dual_causality_loss(Restitution(even, even, apart), identities)
