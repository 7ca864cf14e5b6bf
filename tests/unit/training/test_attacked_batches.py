"""Attacked images in a training: which rows join a batch, their branches, and what a training makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.training_loops import COUNT, IDENTITIES, make_loop, train_epochs
from reid.config import Defence, parse_config
from reid.errors import ConfigError
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import convert_norm, domains_of
from reid.norm.domain_policy import DomainPolicy
from reid.robustness.gate_alarm import BRANCHES, attack_probability, knows_attacks
from reid.robustness.perturbation_ball import NORMS
from reid.training.attacked_batches import ATTACKS, AttackedCopies, FreeNoise, attacked_batches
from reid.training.batches import TrainingBatch
from reid.training.loop import Learner, TrainingLoop, make_optimizer
from reid.training.losses import anti_collapse_triplet, batch_hard_triplet

DATA = {"manifests": ["m.csv"]}


def loop_with(method: str, *, gates: bool = False, cameras: bool = False, **recipe: Any) -> TrainingLoop:
    loop = make_loop(cameras=cameras, **recipe)
    learner = loop.learner
    if gates:
        torch.manual_seed(0)
        policy = DomainPolicy("attack", BRANCHES, "domain", "gated_first")
        embedder: Any = convert_norm(Embedder(NetworkSpec("osnet_x0_25")), policy)
        learner = Learner(embedder, IDENTITIES)
    optimizer, defence = make_optimizer(learner, loop.recipe), Defence(method=method)  # type: ignore[arg-type]
    return TrainingLoop(learner, optimizer, loop.data, loop.augment, loop.transform, loop.recipe, defence=defence)


def batch_of(loop: TrainingLoop) -> tuple[TrainingBatch, Tensor]:
    """A batch of all crops, and its pixels before the attack."""
    pixels = loop.data.crops.float()
    clean = TrainingBatch(
        loop.transform.normalise(pixels), loop.data.targets, loop.data.modalities, loop.data.domains, COUNT, loop.recipe
    )
    return loop.attacks.extend(clean, pixels), pixels


def pixels_of(loop: TrainingLoop, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(n).view(3, 1, 1) for n in (loop.transform.mean, loop.transform.std))
    return (images * std + mean) * 255


@pytest.mark.parametrize("method", ["shared", "anti_collapse", "gated"])
def test_every_image_gets_a_copy_inside_the_ball_of_its_turn(method: str) -> None:
    loop = loop_with(method, gates=method == "gated")
    loop.learner.train()
    batch, pixels = batch_of(loop)
    assert (len(batch.images), batch.labelled, batch.attacked) == (2 * COUNT, 2 * COUNT, COUNT)
    assert torch.equal(batch.images[:COUNT], loop.transform.normalise(pixels))
    assert torch.equal(batch.targets[:COUNT], batch.targets[COUNT:])
    change = pixels_of(loop, batch.images[COUNT:]) - pixels
    for number, norm in enumerate(ATTACKS):
        assert float(NORMS[norm].measure(change[number :: len(ATTACKS)]).max()) <= 4.0 + 1e-3
    assert bool((change.flatten(1).abs().amax(1) > 0.5).all())
    assert loop.learner.training
    assert loop.learner.embedder.backbone.training
    assert all(parameter.grad is None for parameter in loop.learner.parameters())


def test_gated_rows_know_their_branch() -> None:
    loop = loop_with("gated", gates=True)
    batch, _ = batch_of(loop)
    names = [BRANCHES[index] for index in batch.domain.tolist()]  # type: ignore[union-attr]
    assert names == ["clean"] * COUNT + [ATTACKS[row % len(ATTACKS)] for row in range(COUNT)]


def test_cameras_stay_with_the_copies() -> None:
    batch, _ = batch_of(loop_with("shared", cameras=True))
    assert torch.equal(batch.domain[:COUNT], batch.domain[COUNT:])  # type: ignore[index]


@pytest.mark.parametrize("method", ["free", "shared", "anti_collapse"])
def test_a_defended_training_learns_and_repeats_bit_for_bit(method: str) -> None:
    first = train_epochs(loop_with(method, learning_rate=3e-3), 4, times=1)
    second = train_epochs(loop_with(method, learning_rate=3e-3), 2, times=1)
    assert [report.losses for report in first[:2]] == [report.losses for report in second]
    assert first[-1].losses["identity"] < first[0].losses["identity"]
    assert ("anti_collapse" in first[0].losses) == (method == "anti_collapse")


def test_gates_learn_the_attacks() -> None:
    loop = loop_with("gated", gates=True, learning_rate=3e-3)
    reports = train_epochs(loop, 4, times=1)
    assert reports[-1].losses["gate"] < reports[0].losses["gate"]
    network = loop.learner.embedder.eval()
    assert knows_attacks(network)
    assert domains_of(network) == BRANCHES
    probability = attack_probability(network, loop.transform.normalise(loop.data.crops))
    assert probability.shape == (COUNT,)
    assert bool(((probability >= 0) & (probability <= 1)).all())


def test_free_noise_is_for_every_other_image_and_follows_the_gradient() -> None:
    loop = loop_with("free")
    assert isinstance(loop.attacks, FreeNoise)
    loop.attacks.begin_epoch(torch.Generator().manual_seed(0))
    batch, pixels = batch_of(loop)
    change = pixels_of(loop, batch.images.detach()) - pixels
    assert bool((change[::2].abs() < 1e-3).all())
    assert 0.5 < float(change[1::2].abs().max()) <= 4.0 + 1e-3
    (batch.images * 3).sum().backward()  # the loss grows with every pixel
    before = loop.attacks._noise.clone()  # type: ignore[union-attr]
    loop.attacks.learn(batch)
    after = loop.attacks._noise  # type: ignore[attr-defined]
    assert torch.equal(after, (before + 1.0).clamp(max=4.0))


def test_the_anti_collapse_triplet_is_a_triplet_where_nothing_was_attacked() -> None:
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    identities = torch.arange(12) % 3
    plain = batch_hard_triplet(features, identities, 0.3)
    assert torch.allclose(anti_collapse_triplet(features, features, identities, 0.3), plain, atol=1e-6)
    collapsed = features.mean(0).expand(12, 5)
    assert anti_collapse_triplet(features, collapsed, identities, 0.3).item() == pytest.approx(0.3, abs=1e-5)
    assert anti_collapse_triplet(features, features, torch.zeros(12), 0.3).item() == 0


@pytest.mark.parametrize(
    "table",
    [
        {"defence": {"method": "gated"}},
        {"defence": {"method": "gated"}, "norm": {"axis": "camera", "system": "gated"}},
        {"norm": {"system": "gated_first"}},
        {"defence": {"method": "shared"}, "data": {**DATA, "unlabelled": ["u.csv"]}},
        {"defence": {"method": "gates"}},
        {"defence": {"method": "shared", "epsilon": 0.03}},
        {"defence": {"method": "shared", "steps": 0}},
    ],
)
def test_wrong_experiments_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        parse_config({"data": DATA, **table}, str(Path("e.toml")))


@pytest.mark.parametrize("method", ["shared", "free"])
def test_several_processes_are_refused(method: str) -> None:
    with pytest.raises(ConfigError):
        loop_with(method).attacks.refuse_processes()


def test_branches_need_images_without_domains() -> None:
    loop = loop_with("shared")
    with pytest.raises(ConfigError):
        attacked_batches(loop.learner, loop.transform, Defence(method="gated"), False, 0)
    assert isinstance(
        attacked_batches(loop.learner, loop.transform, Defence(method="shared"), False, 0), AttackedCopies
    )
