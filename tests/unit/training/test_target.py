"""Unlabelled rows in a training: which stand in a batch, what their losses are, and what does not feel them.

Wrong variants caught: a consensus of images that stand side by side instead of the two views of one; identity losses,
accuracy or SNR's loss that count unlabelled rows; unlabelled rows that stay out of the statistics, or enter those of
another domain.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reid.config import Train
from reid.data.sampling import BalancedBatches
from reid.data.transforms import EvaluationTransform, TrainTransform
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import DomainBatchNorm, DomainPolicy, convert_norm
from reid.records import Sample
from reid.training.alignment import consensus_loss
from reid.training.loop import Learner, Loop, make_optimizer
from reid.training.target import TARGET_LOSSES, TrainingBatches
from reid.training.training_data import UNKNOWN, TrainingSet

LABELLED, STRANGERS, IDENTITIES = 12, 12, 4
TARGET, SOURCE = 0, 1  # rows of the two domains


def entropy_oracle(logits: Tensor) -> float:
    probability = logits.double().exp() / logits.double().exp().sum(1, keepdim=True)
    return float(-(probability * probability.log()).sum(1).mean())


def consensus_oracle(logits: Tensor) -> float:
    """The second views stand behind all first ones."""
    probability, images = logits.double().softmax(1), len(logits) // 2
    agreed = [
        min(-float(probability[i, k].log() + probability[images + i, k].log()) / 2 for k in range(logits.shape[1]))
        for i in range(images)
    ]
    return sum(agreed) / images


def test_the_losses_are_those_of_their_papers_with_their_weights() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * 3
    entropy, mec = TARGET_LOSSES["entropy"], TARGET_LOSSES["mec"]
    assert float(entropy.of(logits)) == pytest.approx(entropy_oracle(logits), rel=1e-5)
    assert float(mec.of(logits)) == pytest.approx(consensus_oracle(logits), rel=1e-5)
    assert (entropy.weight, entropy.views, mec.weight, mec.views) == (0.1, 1, 0.1, 2)
    side_by_side = consensus_loss(logits[::2], logits[1::2])
    assert float(side_by_side) != pytest.approx(consensus_oracle(logits), rel=1e-2)


def labelled_rows() -> list[Sample]:
    return [Sample(Path(f"a{i}.png"), f"{i % 6}", f"a{i % 2}") for i in range(24)]


def strangers() -> tuple[Sample, ...]:
    """20 crops of two cameras; of the first there are three times as many."""
    return tuple(Sample(Path(f"b{i}.png"), "", f"b{1 + (i % 4 == 3)}") for i in range(20))


@pytest.mark.parametrize("views", [1, 2])
def test_a_batch_holds_as_many_unlabelled_rows_behind_the_labelled_ones(views: int) -> None:
    recipe = Train(identities_per_batch=3, images_per_identity=2, visits=4)
    labelled, unlabelled = tuple(labelled_rows()), strangers()
    batches = TrainingBatches(labelled, unlabelled, recipe, views)
    alone = BalancedBatches(labelled, 3, 2, recipe.seed, visits=4)
    for epoch in (0, 1):
        made = batches.epoch(epoch)
        assert sum(len(batch) for batch in made) == batches.images
        for batch, own in zip(made, alone.epoch(epoch), strict=True):
            np.testing.assert_array_equal(batch[:6], own)
            drawn = batch[6:].reshape(views, 6) - len(labelled)
            assert (drawn == drawn[0]).all()
            assert len(set(drawn[0].tolist())) == 6
            assert sorted(unlabelled[i].camera for i in drawn[0]) == ["b1"] * 3 + ["b2"] * 3
    again = TrainingBatches(labelled, unlabelled, recipe, views)
    assert all((a == b).all() for a, b in zip(again.epoch(1), batches.epoch(1), strict=True))
    assert not all((a == b).all() for a, b in zip(again.epoch(1), batches.epoch(0), strict=True))


def test_without_unlabelled_rows_the_batches_are_what_they_were() -> None:
    recipe = Train(identities_per_batch=3, images_per_identity=2, visits=2)
    batches, alone = TrainingBatches(tuple(labelled_rows()), (), recipe, 1), BalancedBatches(labelled_rows(), 3, 2, 0)
    assert batches.images == 2 * len(alone) * 6
    expected = BalancedBatches(labelled_rows(), 3, 2, 0, visits=2).epoch(3)
    assert all((a == b).all() for a, b in zip(batches.epoch(3), expected, strict=True))


def make_loop(system: str = "batch", *, apart: bool = True, loss: str = "", **recipe: Any) -> Loop:
    """A loop whose unlabelled rows, the last, are a domain of their own or, not ``apart``, share statistics."""
    torch.manual_seed(0)
    embedder: Any = Embedder(NetworkSpec("resnet18_x0_25"))
    if apart or system != "batch":
        names = ("person", "source/person") if apart else ()
        embedder = convert_norm(embedder, DomainPolicy("domain", names, system=system))
    learner = Learner(embedder, IDENTITIES).to(memory_format=torch.channels_last)
    torch.nn.init.normal_(learner.classifier.weight, std=0.1)  # sure of something: certainty has a gradient
    count, generator = LABELLED + STRANGERS, torch.Generator().manual_seed(1)
    domains = torch.full((count,), TARGET)
    domains[:LABELLED] = SOURCE
    data = TrainingSet(
        crops=torch.randint(0, 255, (count, 3, 32, 16), generator=generator).to(torch.uint8),
        targets=torch.cat([torch.arange(LABELLED) % IDENTITIES, torch.full((STRANGERS,), UNKNOWN)]),
        modalities=torch.zeros(count, dtype=torch.int64),
        domains=domains if apart else None,
    )
    still = TrainTransform(flip=0, pad=0, brightness=0, contrast=0, saturation=0, gain=0, grey=0, erase=0)
    settings = Train(**{"epochs": 8, "triplet_start": 0, "triplet_ramp": 0, "contrast_weight": 1.0, **recipe})
    transform, target = EvaluationTransform(32, 16), TARGET_LOSSES.get(loss)
    return Loop(learner, make_optimizer(learner, settings), data, still, transform, settings, target)


def one_step(loop: Loop, count: int, views: int = 1) -> Any:
    strangers = np.arange(LABELLED, count)
    batch = np.concatenate([np.arange(LABELLED), *[strangers] * views])
    return loop.run(0, [batch], torch.Generator().manual_seed(0))


LOSSES = ("loss", "identity_loss", "triplet_loss", "contrastive_loss", "accuracy")


@pytest.mark.parametrize("system", ["batch", "snr"])
def test_the_losses_and_the_accuracy_are_of_labelled_rows(system: str) -> None:
    """With statistics apart nothing that is told of the labelled rows feels the others."""
    alone, both = one_step(make_loop(system), LABELLED), one_step(make_loop(system), LABELLED + STRANGERS)
    for name in LOSSES:
        assert getattr(both, name) == pytest.approx(getattr(alone, name), rel=1e-5), name
    assert both.target_loss == 0.0
    assert 0 < both.accuracy == pytest.approx(alone.accuracy)  # counted over all rows it would be half of that


def test_unlabelled_rows_leave_the_updates_alone_unless_they_have_a_loss() -> None:
    loops = [make_loop(), make_loop(), make_loop(loss="entropy")]
    for loop, count in zip(loops, (LABELLED, LABELLED + STRANGERS, LABELLED + STRANGERS), strict=True):
        one_step(loop, count)
    alone, quiet, asked = (loop.learner.classifier.weight for loop in loops)
    torch.testing.assert_close(quiet, alone, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(asked, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("loss", "views", "oracle"), [("entropy", 1, entropy_oracle), ("mec", 2, consensus_oracle)])
def test_the_target_loss_is_of_the_unlabelled_rows(loss: str, views: int, oracle: Any) -> None:
    loop, seen = make_loop(loss=loss), list[Tensor]()
    loop.learner.register_forward_hook(lambda _m, _i, outputs: seen.append(outputs[2].detach()))
    plain, report = one_step(make_loop(), LABELLED), one_step(loop, LABELLED + STRANGERS, views)
    domains = torch.tensor([SOURCE] * LABELLED + [TARGET] * STRANGERS * views)
    order = torch.argsort(domains, stable=True)
    logits = seen[0][torch.argsort(order)]
    assert report.target_loss == pytest.approx(oracle(logits[LABELLED:]), rel=1e-4)
    assert report.target_loss != pytest.approx(oracle(logits), rel=1e-6)
    assert report.loss == pytest.approx(plain.loss + 0.1 * report.target_loss, rel=1e-5)


def test_unlabelled_rows_are_in_the_statistics_of_their_domain_only() -> None:
    loop = make_loop()
    layer = next(m for m in loop.learner.modules() if isinstance(m, DomainBatchNorm))
    before, seen = layer.running_mean.clone(), list[Tensor]()
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    one_step(loop, LABELLED + STRANGERS)
    target = seen[0][:STRANGERS].mean((0, 2, 3))  # sorted by domain: the target's rows come first
    torch.testing.assert_close(layer.running_mean[TARGET], 0.9 * before[TARGET] + 0.1 * target)
    one, other = make_loop(), make_loop()
    one_step(one, LABELLED)
    one_step(other, LABELLED + STRANGERS)
    rows_of = [next(m for m in each.learner.modules() if isinstance(m, DomainBatchNorm)) for each in (one, other)]
    assert torch.equal(rows_of[0].running_mean[SOURCE], rows_of[1].running_mean[SOURCE])
    assert torch.equal(rows_of[0].running_mean[TARGET], before[TARGET])


@pytest.mark.parametrize(("system", "apart"), [("batch", False), ("dial", True), ("transnorm", True)])
def test_where_statistics_are_shared_the_labelled_rows_feel_the_others(system: str, apart: bool) -> None:
    loops = [make_loop(system, apart=apart) for _ in range(2)]
    for loop in loops:
        for module in loop.learner.modules():
            if isinstance(alpha := getattr(module, "alpha", None), Tensor):
                alpha.data.fill_(0.6)
    alone, both = one_step(loops[0], LABELLED), one_step(loops[1], LABELLED + STRANGERS)
    assert abs(both.contrastive_loss - alone.contrastive_loss) > 1e-4
