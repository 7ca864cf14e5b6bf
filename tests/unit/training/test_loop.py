"""One epoch of the training loop, on a few tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.training_loops import IDENTITIES, make_loop, train_epochs
from reid.errors import ConfigError
from reid.norm import DomainBatchNorm


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("cameras", [False, True])
def test_easy_identities_are_learnt(precision: str, cameras: bool) -> None:
    recipe = {"epochs": 10, "learning_rate": 5e-3, "triplet_start": 5, "triplet_ramp": 2}
    reports = train_epochs(make_loop(cameras=cameras, precision=precision, **recipe), 10)
    assert reports[0].losses["identity"] == pytest.approx(np.log(IDENTITIES), rel=0.3)
    assert reports[-1].losses["identity"] < 0.75 * reports[0].losses["identity"]
    assert reports[-1].accuracy > 0.9
    assert reports[-1].losses["triplet"] < 0.3 < reports[0].losses["triplet"]  # below the margin: not collapsed


def test_the_losses_of_a_report_add_up_to_its_loss() -> None:
    reports = train_epochs(make_loop(triplet_start=1, triplet_ramp=1, triplet_weight=0.5, final_learning_rate=0.0), 8)
    first, ramping, last = reports[0], reports[1], reports[-1]
    assert (first.epoch, last.epoch) == (1, 8)
    assert first.weights["triplet"] == 0.0
    assert first.loss == pytest.approx(first.losses["identity"])
    assert ramping.weights["triplet"] == pytest.approx(0.5 * 2 / 3)  # two thirds of the ramp at its last batch
    assert last.loss == pytest.approx(last.losses["identity"] + 0.5 * last.losses["triplet"])
    assert first.learning_rate == pytest.approx(1e-3)  # the warm-up is over
    assert last.learning_rate == pytest.approx(0.0)


def test_the_same_start_gives_the_same_bits() -> None:
    one, other = make_loop(cameras=True), make_loop(cameras=True)
    train_epochs(one, 2)
    train_epochs(other, 2)
    pairs = zip(one.learner.parameters(), other.learner.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_on_batch_gets_the_number_of_images_of_every_batch() -> None:
    loop, counts = make_loop(), list[int]()
    loop.train_epoch(0, [np.arange(12), np.arange(24)], torch.Generator(), counts.append)
    assert counts == [12, 24]


def test_weight_decay_is_for_convolutions_and_linear_layers_only() -> None:
    loop = make_loop(cameras=True, weight_decay=0.25)
    decayed, free = ({id(p) for p in group["params"]} for group in loop.optimizer.param_groups)
    assert [group["weight_decay"] for group in loop.optimizer.param_groups] == [0.25, 0.0]
    for module in loop.learner.modules():
        for name, parameter in module.named_parameters(recurse=False):
            wanted = isinstance(module, nn.Conv2d | nn.Linear) and name == "weight"
            assert (id(parameter) in decayed) is (wanted and parameter.requires_grad)
            assert (id(parameter) in free) is (not wanted and parameter.requires_grad)
    assert any(isinstance(module, DomainBatchNorm) for module in loop.learner.modules())


def test_the_frozen_shift_of_the_neck_stays_zero() -> None:
    loop = make_loop()
    train_epochs(loop, 1)
    bias = loop.learner.embedder.neck.bias
    assert torch.equal(bias, torch.zeros_like(bias))


def test_divergence_is_an_error_with_a_remedy() -> None:
    loop = make_loop()
    with torch.no_grad():
        loop.learner.classifier.weight.fill_(float("nan"))
    with pytest.raises(ConfigError) as caught:
        train_epochs(loop, 1)
    assert all(part in str(caught.value) for part in ("nan in epoch 1", "train.learning_rate"))


def test_the_gradient_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    clip = nn.utils.clip_grad_norm_

    def spy(parameters: Any, limit: float) -> Any:
        kept = list(parameters)
        before = clip(kept, limit)
        norms.append(float(torch.stack([p.grad.norm() for p in kept if p.grad is not None]).norm()))
        return before

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", spy)
    train_epochs(make_loop(gradient_clip=0.01), 1)
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)
    train_epochs(make_loop(gradient_clip=0.0), 1)
    assert len(norms) == 3
