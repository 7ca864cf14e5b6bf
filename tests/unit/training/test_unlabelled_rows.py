"""Unlabelled rows in a training: how they enter a batch, which losses use them, and what they do not change.

Wrong variants that these tests refuse: a consensus of neighbouring rows instead of the two views of one image; identity
losses, accuracy or SNR's loss that count unlabelled rows; unlabelled rows that stay out of the statistics, or enter
those of another domain.
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
from reid.training.batches import BatchSampler, TrainingBatch
from reid.training.loop import EpochReport, Learner, TrainingLoop, make_optimizer
from reid.training.losses import consensus_loss
from reid.training.objective import TERMS, Outputs, target_losses
from reid.training.training_data import UNKNOWN, TrainingSet

LABELLED, UNLABELLED, IDENTITIES = 12, 12, 4
TARGET, SOURCE = 0, 1  # indices of the two domains


def entropy_oracle(logits: Tensor) -> float:
    probability = logits.double().exp() / logits.double().exp().sum(1, keepdim=True)
    return float(-(probability * probability.log()).sum(1).mean())


def consensus_oracle(logits: Tensor) -> float:
    """Compute the consensus; the second views stand behind all first ones."""
    probability, images = logits.double().softmax(1), len(logits) // 2
    agreed = [
        min(-float(probability[i, k].log() + probability[images + i, k].log()) / 2 for k in range(logits.shape[1]))
        for i in range(images)
    ]
    return sum(agreed) / images


def test_the_losses_on_unlabelled_rows_have_the_formulas_and_weights_of_their_papers() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * 3
    zeros = torch.zeros(6, dtype=torch.int64)
    batch = TrainingBatch(torch.zeros(6, 3, 1, 1), zeros - 1, zeros, None, 0, Train())
    assert target_losses() == ("entropy", "mec")
    entropy, mec = TERMS["entropy"], TERMS["mec"]
    assert float(entropy.loss(batch, Outputs(logits, logits, logits))) == pytest.approx(entropy_oracle(logits))
    assert float(mec.loss(batch, Outputs(logits, logits, logits))) == pytest.approx(consensus_oracle(logits))
    assert (entropy.weight, entropy.views, mec.weight, mec.views) == (0.1, 1, 0.1, 2)
    side_by_side = consensus_loss(logits[::2], logits[1::2])
    assert float(side_by_side) != pytest.approx(consensus_oracle(logits), rel=1e-2)


def labelled_rows() -> list[Sample]:
    return [Sample(Path(f"a{i}.png"), f"{i % 6}", f"a{i % 2}") for i in range(24)]


def unlabelled_samples() -> tuple[Sample, ...]:
    """Make 20 rows of two cameras; the first camera has three times as many as the second."""
    return tuple(Sample(Path(f"b{i}.png"), "", f"b{1 + (i % 4 == 3)}") for i in range(20))


@pytest.mark.parametrize("views", [1, 2])
def test_a_batch_holds_as_many_unlabelled_rows_behind_the_labelled_ones(views: int) -> None:
    recipe = Train(identities_per_batch=3, images_per_identity=2, visits=4)
    labelled, unlabelled = tuple(labelled_rows()), unlabelled_samples()
    batches = BatchSampler(labelled, unlabelled, recipe, views)
    labelled_only = BalancedBatches(labelled, 3, 2, recipe.seed, visits=4)
    for epoch in (0, 1):
        found = batches.epoch(epoch)
        assert sum(len(batch) for batch in found) == batches.images
        for batch, own in zip(found, labelled_only.epoch(epoch), strict=True):
            np.testing.assert_array_equal(batch[:6], own)
            drawn = batch[6:].reshape(views, 6) - len(labelled)
            assert (drawn == drawn[0]).all()
            assert len(set(drawn[0].tolist())) == 6
            assert sorted(unlabelled[i].camera for i in drawn[0]) == ["b1"] * 3 + ["b2"] * 3
    again = BatchSampler(labelled, unlabelled, recipe, views)
    assert all((a == b).all() for a, b in zip(again.epoch(1), batches.epoch(1), strict=True))
    assert not all((a == b).all() for a, b in zip(again.epoch(1), batches.epoch(0), strict=True))


def test_without_unlabelled_rows_the_batches_are_those_of_the_labelled_rows() -> None:
    recipe = Train(identities_per_batch=3, images_per_identity=2, visits=2)
    batches, once = BatchSampler(tuple(labelled_rows()), (), recipe, 1), BalancedBatches(labelled_rows(), 3, 2, 0)
    assert batches.images == 2 * len(once) * 6
    expected = BalancedBatches(labelled_rows(), 3, 2, 0, visits=2).epoch(3)
    assert all((a == b).all() for a, b in zip(batches.epoch(3), expected, strict=True))


def make_loop(system: str = "batch", *, own_domain: bool = True, loss: str = "", **recipe: Any) -> TrainingLoop:
    """Make a loop whose unlabelled rows, the last, have a domain of their own or share statistics."""
    torch.manual_seed(0)
    embedder: Any = Embedder(NetworkSpec("resnet18_x0_25"))
    if own_domain or system != "batch":
        names = ("person", "source/person") if own_domain else ()
        embedder = convert_norm(embedder, DomainPolicy("domain", names, system=system))
    learner = Learner(embedder, IDENTITIES).to(memory_format=torch.channels_last)
    torch.nn.init.normal_(
        learner.classifier.weight, std=0.1
    )  # predictions that are not even: their certainty has a gradient
    count, generator = LABELLED + UNLABELLED, torch.Generator().manual_seed(1)
    domains = torch.full((count,), TARGET)
    domains[:LABELLED] = SOURCE
    data = TrainingSet(
        crops=torch.randint(0, 255, (count, 3, 32, 16), generator=generator).to(torch.uint8),
        targets=torch.cat([torch.arange(LABELLED) % IDENTITIES, torch.full((UNLABELLED,), UNKNOWN)]),
        modalities=torch.zeros(count, dtype=torch.int64),
        domains=domains if own_domain else None,
    )
    still = TrainTransform(flip=0, pad=0, brightness=0, contrast=0, saturation=0, gain=0, grey=0, erase=0)
    settings = Train(**{"epochs": 8, "triplet_start": 0, "triplet_ramp": 0, "contrast_weight": 1.0, **recipe})
    transform = EvaluationTransform(32, 16)
    return TrainingLoop(learner, make_optimizer(learner, settings), data, still, transform, settings, loss)


def one_step(loop: TrainingLoop, count: int, views: int = 1) -> EpochReport:
    unlabelled = np.arange(LABELLED, count)
    batch = np.concatenate([np.arange(LABELLED), *[unlabelled] * views])
    return loop.train_epoch(0, [batch], torch.Generator().manual_seed(0))


@pytest.mark.parametrize("system", ["batch", "snr"])
def test_losses_and_accuracy_are_those_of_the_labelled_rows(system: str) -> None:
    """With separate statistics no loss on labelled rows depends on the unlabelled ones."""
    without, both = one_step(make_loop(system), LABELLED), one_step(make_loop(system), LABELLED + UNLABELLED)
    assert both.losses == pytest.approx(without.losses, rel=1e-5)
    assert both.loss == pytest.approx(without.loss, rel=1e-5)
    assert ("dual_causality" in both.losses) is (system == "snr")
    assert both.to_json()["target_loss"] == 0.0
    assert 0 < both.accuracy == pytest.approx(without.accuracy)  # counted over all rows it would be half of that


def test_unlabelled_rows_change_the_updates_only_through_a_loss_of_their_own() -> None:
    loops = [make_loop(), make_loop(), make_loop(loss="entropy")]
    for loop, count in zip(loops, (LABELLED, LABELLED + UNLABELLED, LABELLED + UNLABELLED), strict=True):
        one_step(loop, count)
    without, no_loss, with_loss = (loop.learner.classifier.weight for loop in loops)
    torch.testing.assert_close(no_loss, without, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(with_loss, without, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("loss", "views", "oracle"), [("entropy", 1, entropy_oracle), ("mec", 2, consensus_oracle)])
def test_the_target_loss_is_that_of_the_unlabelled_rows(loss: str, views: int, oracle: Any) -> None:
    loop, outputs_of_learner = make_loop(loss=loss), list[Tensor]()
    loop.learner.register_forward_hook(lambda _m, _i, outputs: outputs_of_learner.append(outputs[2].detach()))
    plain, report = one_step(make_loop(), LABELLED), one_step(loop, LABELLED + UNLABELLED, views)
    domains = torch.tensor([SOURCE] * LABELLED + [TARGET] * UNLABELLED * views)
    order = torch.argsort(domains, stable=True)
    logits = outputs_of_learner[0][torch.argsort(order)]
    assert report.losses["target"] == pytest.approx(oracle(logits[LABELLED:]), rel=1e-4)
    assert report.losses["target"] != pytest.approx(oracle(logits), rel=1e-6)
    assert report.loss == pytest.approx(plain.loss + 0.1 * report.losses["target"], rel=1e-5)


def test_unlabelled_rows_are_in_the_statistics_of_their_domain_only() -> None:
    loop = make_loop()
    layer = next(m for m in loop.learner.modules() if isinstance(m, DomainBatchNorm))
    before, inputs_of_layer = layer.running_mean.clone(), list[Tensor]()
    layer.register_forward_pre_hook(lambda _, inputs: inputs_of_layer.append(inputs[0].detach()))
    one_step(loop, LABELLED + UNLABELLED)
    target = inputs_of_layer[0][:UNLABELLED].mean((0, 2, 3))  # sorted by domain: the target's rows come first
    torch.testing.assert_close(layer.running_mean[TARGET], 0.9 * before[TARGET] + 0.1 * target)
    one, other = make_loop(), make_loop()
    one_step(one, LABELLED)
    one_step(other, LABELLED + UNLABELLED)
    rows_of = [next(m for m in each.learner.modules() if isinstance(m, DomainBatchNorm)) for each in (one, other)]
    assert torch.equal(rows_of[0].running_mean[SOURCE], rows_of[1].running_mean[SOURCE])
    assert torch.equal(rows_of[0].running_mean[TARGET], before[TARGET])


@pytest.mark.parametrize(("system", "own_domain"), [("batch", False), ("dial", True), ("transnorm", True)])
def test_where_statistics_are_shared_unlabelled_rows_change_the_losses(system: str, own_domain: bool) -> None:
    loops = [make_loop(system, own_domain=own_domain) for _ in range(2)]
    for loop in loops:
        for module in loop.learner.modules():
            if isinstance(alpha := getattr(module, "alpha", None), Tensor):
                alpha.data.fill_(0.6)
    without, both = one_step(loops[0], LABELLED), one_step(loops[1], LABELLED + UNLABELLED)
    assert abs(both.losses["contrastive"] - without.losses["contrastive"]) > 1e-4
