"""The table of losses: the terms of a training, their weights and their sum; and the recipe for a new loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers.training_loops import make_loop, train_epochs
from reid.config import Train
from reid.training.batches import TrainingBatch
from reid.training.objective import TERMS, Objective, Outputs, Term, total_loss


def length_of_features(batch: TrainingBatch, outputs: Outputs) -> Tensor:
    """The mean length of the features of the labelled images: a loss that somebody may add."""
    return outputs.features[: batch.labelled].norm(dim=1).mean()


def test_a_new_loss_is_a_function_and_a_row_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe "add a loss": with one function and one row the loop trains with it and the report carries it."""
    before = train_epochs(make_loop(), 1)[0]
    monkeypatch.setitem(TERMS, "length", Term(length_of_features, weight=lambda _recipe, epoch: 0.5 * epoch))
    loop = make_loop()
    report = train_epochs(loop, 2)[1]
    assert report.losses["length"] > 0
    assert report.weights["length"] == pytest.approx(0.5 * (1 + 2 / 3))  # the last of three batches of epoch 1
    assert report.to_json()["length_loss"] == report.losses["length"]
    assert before.losses.keys() == report.losses.keys() - {"length"}


def test_the_loss_is_the_sum_of_the_weighted_terms() -> None:
    objective = Objective(nn.Identity(), Train(triplet_weight=0.5, triplet_start=1, triplet_ramp=2, contrast_weight=2))
    assert objective.weights(2.0) == {"identity": 1.0, "triplet": 0.25, "contrastive": 2.0}
    generator = torch.Generator().manual_seed(0)
    outputs = Outputs(*(torch.randn(4, 4, generator=generator) for _ in range(3)))
    zeros = torch.zeros(4, dtype=torch.int64)
    batch = TrainingBatch(torch.zeros(4, 3, 1, 1), torch.tensor([0, 0, 1, 1]), zeros, None, 4, Train())
    terms = objective.terms(batch, outputs)
    identity, triplet, contrastive = (terms[name].item() for name in ("identity", "triplet", "contrastive"))
    total = total_loss(terms, objective.weights(2.0)).item()
    assert total == pytest.approx(identity + 0.25 * triplet + 2 * contrastive)


def test_a_loss_on_unlabelled_images_is_chosen_by_name() -> None:
    recipe = Train()
    assert "target" not in Objective(nn.Identity(), recipe).weights(0.0)
    for name, views in (("entropy", 1), ("mec", 2)):
        objective = Objective(nn.Identity(), recipe, name)
        assert objective.weights(0.0)["target"] == 0.1
        assert objective.views == views


def test_every_line_of_the_metrics_has_the_keys_of_version_0_1_0() -> None:
    line = train_epochs(make_loop(), 1)[0].to_json()
    assert list(line) == [
        "epoch", "loss", "identity_loss", "triplet_loss", "contrastive_loss", "target_loss", "triplet_weight",
        "accuracy", "learning_rate", "seconds", "images_per_second",
    ]  # fmt: skip
