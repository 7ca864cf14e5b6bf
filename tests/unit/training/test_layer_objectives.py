"""Losses that are bound to layers: the entropy of latent domains, gates, ISW and SNR's dual causality.

Wrong variants that these tests refuse: identities or domains in another order than the rows of the layers; equal or
swapped weights of the layers; a loss without gradient; ISW on the layers of a network of system "ibn".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.training_loops import COUNT, IDENTITIES, make_loop, train_epochs
from reid.config import Train
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import DomainPolicy, Given, convert_norm
from reid.norm.specialised.generalization import SNR, Restitution, dual_causality_loss
from reid.training.batches import TrainingBatch
from reid.training.layer_objectives import DualCausality, GateCrossEntropy, LatentDomainEntropy, SelectiveWhitening
from reid.training.loop import Learner, TrainingLoop, make_optimizer
from reid.training.objective import TERMS, Objective


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def embedder_of(system: str, cameras: bool) -> Any:
    names = ("a", "b") if cameras else ()
    return convert_norm(Embedder(NetworkSpec("osnet_x0_25")), DomainPolicy("camera", names, system=system))


def loop_of(system: str, cameras: bool = False, **recipe: Any) -> TrainingLoop:
    loop = make_loop(cameras=cameras, **recipe)
    torch.manual_seed(0)
    learner = Learner(embedder_of(system, cameras), IDENTITIES)
    optimizer = make_optimizer(learner, loop.recipe)
    return TrainingLoop(learner, optimizer, loop.data, loop.augment, loop.transform, loop.recipe)


def batch_of(images: Tensor, targets: Tensor, domain: Tensor | None = None) -> TrainingBatch:
    return TrainingBatch(images, targets, torch.zeros_like(targets), domain, len(images), Train())


def snr_layers(loop: TrainingLoop) -> list[SNR]:
    return [layer for layer in loop.learner.modules() if isinstance(layer, SNR)]


@pytest.mark.parametrize(
    ("system", "cameras", "expected"),
    [
        ("batch", True, set()),
        ("ibn", True, set()),
        ("isw", False, {"isw"}),
        ("snr", True, {"dual_causality"}),
        ("gated", True, {"gate"}),
        ("wbn", False, {"latent_entropy"}),
    ],
)
def test_a_training_uses_the_losses_whose_layers_its_network_has(
    system: str, cameras: bool, expected: set[str]
) -> None:
    embedder = convert_norm(
        Embedder(NetworkSpec("osnet_x0_25")),
        DomainPolicy("camera", ("a", "b") if cameras else (), system=system)
        if system != "wbn"
        else DomainPolicy("batch", ("latent-0", "latent-1", "latent-2"), system=system),
    )
    assert set(Objective(embedder, Train()).weights(0.0)) == {"identity", "triplet", "contrastive", *expected}


def test_the_causality_of_a_training_is_the_weighted_sum_over_its_layers() -> None:
    """With cameras the layers see rows sorted by camera; hooks of the test take the maps from each layer."""
    loop = loop_of("snr", cameras=True, learning_rate=1e-9, triplet_weight=0.0)
    domains, targets = loop.data.domains, torch.randint(0, IDENTITIES, (COUNT,))
    object.__setattr__(loop.data, "targets", targets)
    with torch.no_grad():  # the three maps of a fresh layer hardly differ
        for layer in snr_layers(loop):
            for parameter in layer.parameters():
                parameter.normal_(std=2)
    inputs_of_layers: list[tuple[SNR, Tensor]] = []
    for layer in snr_layers(loop):
        layer.register_forward_hook(lambda module, inputs, _: inputs_of_layers.append((module, inputs[0].detach())))
    report = train_epochs(loop, 1)[0]
    assert len(inputs_of_layers) == 2 * 3  # layers, batches

    @torch.no_grad()
    def expected(weights: tuple[float, float], labels: Tensor) -> float:
        total = 0.0
        for number, (layer, x) in enumerate(inputs_of_layers):
            total += weights[number % 2] * float(dual_causality_loss(layer.restitute(x), labels)) / 3
        return total

    ordered = torch.cat([targets[domains == camera] for camera in (0, 1)])  # type: ignore[index]
    assert report.losses["dual_causality"] == pytest.approx(report.loss - report.losses["identity"], abs=5e-6)
    assert report.losses["dual_causality"] == pytest.approx(expected((0.1, 0.5), ordered), abs=5e-6)
    assert abs(report.losses["dual_causality"] - expected((0.5, 0.1), ordered)) > 3e-5
    assert abs(report.losses["dual_causality"] - expected((0.1, 0.5), targets)) > 3e-5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_causality_loss_falls_in_a_training_with_no_other_loss(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("identity", "triplet", "contrastive"):
        monkeypatch.delitem(TERMS, name)
    loop = loop_of("snr", epochs=6, learning_rate=5e-3, precision=precision)
    losses = [report.loss for report in train_epochs(loop, 6)]
    assert 0 < losses[-1] < losses[0] - 0.02


def test_the_gradient_of_the_causality_reaches_the_gates_and_the_layers_before() -> None:
    loop = loop_of("snr")
    causality, images = DualCausality(loop.learner), torch.randn(8, 3, 32, 16)
    with causality.observe() as maps:
        Given(loop.learner.train())(images)
    causality.loss(batch_of(images, torch.arange(8) % 4), maps).backward()
    first = next(layer for layer in loop.learner.modules() if isinstance(layer, nn.Conv2d))
    parameters = [first.weight, *(parameter for layer in snr_layers(loop) for parameter in layer.parameters())]
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in parameters)
    assert loop.learner.classifier.weight.grad is None


def test_layers_are_observed_only_inside_the_with_block() -> None:
    loop = loop_of("snr")
    causality = DualCausality(loop.learner)
    with causality.observe() as maps, torch.no_grad():
        loop.learner(torch.randn(4, 3, 32, 16))
    assert len(maps) == 2
    loop.learner(torch.randn(4, 3, 32, 16))
    assert len(maps) == 2


def test_a_restitution_that_confuses_identities_costs_more() -> None:
    identities, even = torch.tensor([0, 0, 1, 1]), torch.ones(4, 2, 1, 1)
    separated = torch.eye(2)[identities][:, :, None, None]
    good = dual_causality_loss(Restitution(even, separated, even), identities)
    assert good < dual_causality_loss(Restitution(even, even, separated), identities)


def test_observed_values_are_in_the_order_of_the_batch() -> None:
    """In evaluation mode an image has the same values in a batch of one, whose order cannot change."""
    network = embedder_of("gated", cameras=True).eval()
    images, domain = torch.randn(6, 3, 32, 16), torch.tensor([1, 0, 1, 1, 0, 0])
    objective = Objective(network, Train())
    with torch.no_grad(), objective.observe() as observed:
        Given(network)(images, domain)
    assert observed["gate"]
    for row in (0, 1):
        with torch.no_grad(), GateCrossEntropy(network).observe() as one:
            Given(network)(images[row : row + 1], domain[row : row + 1])
        for together, single in zip(observed["gate"], one, strict=True):
            torch.testing.assert_close(together[row : row + 1], single)


def test_the_gate_loss_is_the_cross_entropy_of_the_domains() -> None:
    loss = GateCrossEntropy(embedder_of("gated", cameras=True))
    domain, generator = torch.tensor([1, 0, 1]), torch.Generator().manual_seed(0)
    logits = [torch.randn(3, 2, generator=generator) for _ in range(2)]
    batch = batch_of(torch.zeros(3, 3, 4, 4), torch.zeros(3, dtype=torch.int64), domain)
    rows = [-float(gate.log_softmax(1)[row, domain[row]]) for gate in logits for row in range(3)]
    assert float(loss.loss(batch, logits)) == pytest.approx(sum(rows) / 6, rel=1e-5)


def test_the_entropy_of_latent_domains_is_that_of_the_weights() -> None:
    weights = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    batch = batch_of(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64))
    found = LatentDomainEntropy(nn.Identity()).loss(batch, [weights])
    assert float(found) == pytest.approx(torch.tensor(2.0).log().item() / 2, abs=1e-6)


def test_whitening_sees_the_channels_that_are_normalized_by_image() -> None:
    network = embedder_of("isw", cameras=False)
    loss = SelectiveWhitening(network)
    with torch.no_grad(), loss.observe() as maps:
        network(torch.randn(2, 3, 32, 16))
    assert len(maps) == 3
    first = next(iter(maps.values()))
    channels = next(m for m in network.modules() if isinstance(m, nn.Conv2d)).out_channels
    assert first.shape[:2] == (2, channels // 2)
