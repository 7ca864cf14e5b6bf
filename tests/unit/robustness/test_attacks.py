"""Attacks against a linear network, whose strongest perturbation is known, and what must hold for every attack."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from reid.errors import ConfigError
from reid.robustness.attack_methods import METHODS, OPTIMIZERS, Aim, AttackPlan
from reid.robustness.attacks import apply_noise, attack_images, perturb_all, same_size, start_noise
from reid.robustness.perturbation_ball import NORMS, change_of

norms = pytest.mark.parametrize("norm", NORMS)
methods = pytest.mark.parametrize("method", METHODS)
optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS)
SIZE = (3, 8, 4)
WEIGHTS = torch.randn(5, 96, generator=torch.Generator().manual_seed(0)).float()
BENT = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).float()


def pictures(seed: int = 0, low: int = 60, high: int = 196) -> Tensor:
    drawn = np.random.default_rng(seed).integers(low, high, (4, *SIZE), dtype=np.uint8)
    return torch.from_numpy(drawn)


def network(pixels: Tensor) -> Tensor:
    """A small network that is not linear."""
    return torch.tanh((pixels - 128).flatten(1) / 255 @ WEIGHTS.T) @ BENT.T


def other(seed: int = 5) -> Tensor:
    return torch.randn(4, 7, generator=torch.Generator().manual_seed(seed))


def strength(images: Tensor, method: str, start: Tensor) -> Tensor:
    aim = Aim(network(start.float()), other())
    return METHODS[method].success(network(images.float()), aim)


def linear(direction: Tensor) -> object:
    """A network of two numbers, (w x, a constant): its cosine with (1, 0) grows with w x alone."""

    def vectors(pixels: Tensor) -> Tensor:
        value = pixels.flatten(1) @ direction
        return torch.stack([value, torch.full_like(value, 50.0)], 1)

    return vectors


@norms
@pytest.mark.parametrize("optimizer", ["fgsm", "ifgsm", "mifgsm", "pgd"])
def test_a_linear_network_is_attacked_as_well_as_it_can_be(norm: str, optimizer: str) -> None:
    """The optimum of a linear function in a ball is known: sign, direction, or the largest weights first."""
    direction = torch.randn(96, generator=torch.Generator().manual_seed(2))
    images, epsilon = pictures(), 8.0
    plan = AttackPlan("pull", optimizer, norm, epsilon, None if optimizer == "fgsm" else 40)
    wanted = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    found = attack_images(linear(direction), images, plan, other=wanted)
    gained = ((found.images.double() - images.double()).flatten(1) @ direction.double()).tolist()
    weights = direction.double().abs().numpy()
    for image, gain in zip(images.double().flatten(1).numpy(), gained, strict=True):
        if norm == "linf":
            best = epsilon * weights.sum()
        elif norm == "l2":
            best = epsilon * np.sqrt(len(weights)) * np.linalg.norm(weights)
        else:
            room = np.where(direction.numpy() > 0, 255 - image, image)
            best, budget = 0.0, epsilon * len(weights)
            for value in np.argsort(-weights):
                used = min(room[value], budget)
                best, budget = best + used * weights[value], budget - used
        assert gain <= best * (1 + 1e-6)
        assert gain >= (0.9999 if norm == "linf" else 0.95) * best


def test_the_wrong_sign_makes_the_linear_network_worse() -> None:
    direction = torch.randn(96, generator=torch.Generator().manual_seed(2))
    images = pictures()
    plan = AttackPlan("push", "ifgsm", "linf", 8.0)
    found = attack_images(linear(direction), images, plan, other=torch.tensor([[1.0, 0.0]]).expand(4, 2))
    gained = (found.images.float() - images.float()).flatten(1) @ direction
    assert torch.allclose(gained, -8 * direction.abs().sum().expand(4), rtol=1e-5)


def test_epsilon_in_the_unit_of_the_network_is_another_attack() -> None:
    """The wrong variant: 8 / 255 of normalised pixels is 8 * 0.225 grey levels, and gains a quarter of the optimum."""
    direction = torch.randn(96, generator=torch.Generator().manual_seed(2))
    wrong = 8 * 0.225 * direction.abs().sum()
    found = attack_images(
        linear(direction), pictures(), AttackPlan("pull", epsilon=8), other=torch.tensor([[1.0, 0.0]]).expand(4, 2)
    )
    gained = (found.images.float() - pictures().float()).flatten(1) @ direction
    assert bool((gained > 4 * wrong).all())


@norms
@methods
@optimizers
def test_the_ball_is_never_left_bit_for_bit_in_a_png(norm: str, method: str, optimizer: str) -> None:
    images = pictures(3, 0, 256)
    plan = AttackPlan(method, optimizer, norm, 4.5, 3 if optimizer != "fgsm" else None)
    found = attack_images(network, images, plan, other=other())
    for clean, attacked in zip(images, found.images, strict=True):
        file = io.BytesIO()
        Image.fromarray(attacked.permute(1, 2, 0).numpy()).save(file, "PNG")
        saved = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        assert torch.equal(saved, attacked)
        assert change_of(clean[None], saved[None], norm).item() <= 4.5
    assert torch.allclose(strength(found.images, method, images), found.after, atol=1e-5)
    assert bool((found.after >= found.before).all())


@norms
@methods
@pytest.mark.parametrize("optimizer", ["ifgsm", "mifgsm", "pgd", "random"])
def test_more_steps_are_never_weaker(norm: str, method: str, optimizer: str) -> None:
    images, before = pictures(4), None
    for steps in (1, 3, 9):
        found = attack_images(network, images, AttackPlan(method, optimizer, norm, 6, steps), other=other())
        assert before is None or bool((found.after >= before).all())
        before = found.after


@norms
@methods
def test_the_gradient_beats_random_directions(norm: str, method: str) -> None:
    """Gradient masking would show as random changes of the same size that are as strong."""
    images = pictures(5)
    attacked = attack_images(network, images, AttackPlan(method, "pgd", norm, 8, 12), other=other())
    drawn = attack_images(network, images, AttackPlan(method, "random", norm, 8, 25), other=other())
    assert bool((attacked.after > drawn.after).all())


@methods
def test_a_transferred_attack_is_not_stronger_than_a_white_box(method: str) -> None:
    generator = torch.Generator().manual_seed(9)
    changed = WEIGHTS + 0.5 * torch.randn(WEIGHTS.shape, generator=generator)

    def like_it(pixels: Tensor) -> Tensor:
        return torch.tanh((pixels - 128).flatten(1) / 255 @ changed.T) @ BENT.T

    images, plan = pictures(6), AttackPlan(method, "pgd", epsilon=8, steps=20)
    white = attack_images(network, images, plan, other=other()).images
    black = attack_images(like_it, images, plan, other=other()).images
    gained = strength(white, method, images) - strength(images, method, images)
    transferred = strength(black, method, images) - strength(images, method, images)
    assert gained.mean() > transferred.mean() > 0


@methods
def test_an_image_is_attacked_the_same_alone_and_among_others(method: str) -> None:
    images, plan = pictures(7), AttackPlan(method, "pgd", epsilon=8)
    together = attack_images(network, images, plan, other=other())
    alone = attack_images(network, images[1:2], plan, other=other()[1:2])
    assert (together.images[1] == alone.images[0]).float().mean() > 0.99
    assert torch.equal(attack_images(network, images, plan, other=other()).images, together.images)


@methods
@norms
def test_infrared_images_stay_without_colour(method: str, norm: str) -> None:
    images = pictures(8)[:, :1].repeat(1, 3, 1, 1)
    for is_grey in (True, False):
        plan = AttackPlan(method, "pgd", norm, 8, 3)
        found = attack_images(network, images, plan, other=other(), is_grey=is_grey)
        assert bool((found.images == found.images[:, :1]).flatten(1).all()) is is_grey
        assert bool((found.after > found.before).all())
        assert float(change_of(images, found.images, norm).max()) <= 8


def test_without_gallery_vectors_the_metric_attack_is_refused() -> None:
    with pytest.raises(ConfigError, match="gallery"):
        attack_images(network, pictures(), AttackPlan("push"))


@pytest.mark.parametrize("method", ["odfa", "self"])
@norms
def test_universal_noise_moves_images_it_was_not_made_on(method: str, norm: str) -> None:
    plan = AttackPlan(method, "ifgsm", norm, 12, 8, universal=True)
    noise = start_noise(8, 4, plan)
    images = pictures(10)
    for _ in range(plan.step_count):
        noise = perturb_all(network, images.float(), noise, plan, Aim(network(images.float())))
        assert NORMS[norm].measure(noise[None]).item() <= 12 * (1 + 1e-5)
    fresh = pictures(11)
    changed = apply_noise(fresh, noise, plan)
    assert float(change_of(fresh, changed, norm).max()) <= 12
    moved = functional.cosine_similarity(network(changed.float()), network(fresh.float()))
    drawn = attack_images(network, fresh, AttackPlan(method, "random", norm, 12, 1)).images
    by_chance = functional.cosine_similarity(network(drawn.float()), network(fresh.float()))
    assert moved.mean() < by_chance.mean()


def test_universal_noise_fits_images_of_every_size() -> None:
    plan = AttackPlan(epsilon=8, universal=True)
    noise = torch.randn(3, 8, 4).sign() * 8
    for size in ((8, 4), (33, 17), (3, 2)):
        images = torch.full((2, 3, *size), 250, dtype=torch.uint8)
        assert float(change_of(images, apply_noise(images, noise, plan), "linf").max()) <= 8


def test_batches_hold_images_of_one_size() -> None:
    sizes = [(4, 2, False), (8, 4, False), (4, 2, True), (8, 4, False), (8, 4, False)]
    batches = same_size(sizes, lambda size: 2)
    assert sorted(row for batch in batches for row in batch) == [0, 1, 2, 3, 4]
    assert all(len({sizes[row] for row in batch}) == 1 and len(batch) <= 2 for batch in batches)


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "odfo"},
        {"optimizer": "adam"},
        {"norm": "l0"},
        {"epsilon": 0},
        {"epsilon": float("nan")},
        {"epsilon": 300},
        {"epsilon": 8 / 255},
        {"steps": 0},
        {"seed": -1},
        {"optimizer": "fgsm", "steps": 5},
        {"universal": True, "optimizer": "pgd"},
        {"universal": True, "method": "push"},
    ],
)
def test_wrong_plans_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        AttackPlan(**wrong)  # type: ignore[arg-type]


def test_steps_of_the_papers() -> None:
    assert [AttackPlan(epsilon=epsilon).step_count for epsilon in (2, 4, 8, 16)] == [3, 5, 10, 20]
