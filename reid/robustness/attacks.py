"""Attack images: change their pixels inside a ball so that the embedding goes where the method wants it.

Every image that is judged has 8-bit values inside the ball, so a saved PNG file is exactly what was judged.  The best
image of all steps is kept, the clean one included.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reid.robustness.attack_methods import METHODS, OPTIMIZERS, Aim, AttackPlan
from reid.robustness.differentiable_resize import rounded
from reid.robustness.perturbation_ball import NORMS

Vectors = Callable[[Tensor], Tensor]
"""Called with images (B, 3, H, W) float in 0..255; returns vectors (B, D) with a gradient."""
ImageSize = tuple[int, int, bool]
START_LEVELS = 1.0  # size of the random start of a method that has no gradient at the clean image
LARGEST_CHANGE = 32.0  # grey levels by which a small step in l1 changes a value at most: networks are not linear


@dataclass(frozen=True, eq=False)
class AttackedImages:
    """What an attack found.

    Attributes:
        images: (B, 3, H, W) uint8, inside the ball.
        before: The success (B,) float32 of the clean images.
        after: The success (B,) float32 of the attacked images, never below ``before``.
    """

    images: Tensor
    before: Tensor
    after: Tensor


def attack_images(
    vectors: Vectors,
    images: Tensor,
    plan: AttackPlan,
    *,
    other: Tensor | None = None,
    is_grey: bool = False,
) -> AttackedImages:
    """Attack images of one size.

    Args:
        vectors: Computes the vectors of the images; it treats every image on its own.
        images: (B, 3, H, W) uint8.
        plan: How.
        other: (B, D) float, the mean vector of the crops that a method with a gallery goes to or from.
        is_grey: Whether the three channels of an image change alike, as those of infrared cameras must.

    Returns:
        The attacked images.

    Raises:
        ConfigError: The method needs crops of the gallery, and ``other`` is not given.

    Example:
        >>> pixels = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
        >>> found = attack_images(lambda x: torch.stack([x[:, 0].mean((1, 2)), x[:, 1].mean((1, 2))], 1), pixels,
        ...                       AttackPlan("pull", "fgsm", epsilon=4), other=torch.tensor([[1.0, 0.0]]))
        >>> found.images[0, :, 0, 0].tolist()
        [104, 96, 100]
    """
    with torch.no_grad():
        aim = Aim(vectors(images.float()).detach(), other)
    search = _Search(vectors, images.float(), plan, aim, is_grey)
    delta = search.room.start(images, plan)
    momentum = torch.zeros_like(delta)
    for number in range(plan.step_count):
        if OPTIMIZERS[plan.optimizer].uses_gradient:
            gradient, momentum = _direction(search.judge(delta), momentum, plan)
            delta = search.room.hold(delta + _step(search.room, delta, gradient, plan), plan)
        else:
            search.judge(delta)
            delta = search.room.start(images, plan, number + 1)
    search.judge(delta)
    return AttackedImages(search.images.byte(), search.before, search.best)


class Room:
    """How far the pixels of images can move: perturbations have three channels, or one that all channels share.

    Args:
        clean: (B, 3, H, W) float, whole numbers in 0..255.
        is_grey: Whether a perturbation has one channel.
    """

    def __init__(self, clean: Tensor, is_grey: bool) -> None:
        self.down = clean.amin(1, keepdim=True) if is_grey else clean
        self.up = 255 - (clean.amax(1, keepdim=True) if is_grey else clean)

    def hold(self, delta: Tensor, plan: AttackPlan) -> Tensor:
        """Move perturbations into the ball, and the images into 0..255, which only makes perturbations smaller."""
        inside = NORMS[plan.norm].project(delta, plan.epsilon)
        return torch.minimum(torch.maximum(inside, -self.down), self.up)

    def left(self, delta: Tensor, gradient: Tensor) -> Tensor:
        """Return how far each value can still move along the gradient."""
        return torch.where(gradient > 0, self.up - delta, self.down + delta)

    def start(self, images: Tensor, plan: AttackPlan, number: int = 0) -> Tensor:
        """Return where the steps begin: at 0, or at a random point that follows from the pixels, seed and number."""
        if not plan.begins_beside:
            return torch.zeros_like(self.up)
        channels = self.up.shape[1]
        drawn = [_draw(image[:channels], plan, number) for image in images.cpu().numpy()]
        delta = torch.from_numpy(np.stack(drawn)).to(images.device)
        if plan.norm != "linf":
            delta *= (_start_size(plan) / NORMS[plan.norm].measure(delta)).float().view(-1, 1, 1, 1)
        return self.hold(delta, plan)


class _Search:
    """The images that were visited: the best of each so far, the clean one at first."""

    def __init__(self, vectors: Vectors, clean: Tensor, plan: AttackPlan, aim: Aim, is_grey: bool) -> None:
        self._vectors, self._clean, self._plan, self._aim = vectors, clean, plan, aim
        self._method = METHODS[plan.method]
        self.room, self.images = Room(clean, is_grey), clean
        self.before = self.best = self._method.success(aim.own, aim)

    def judge(self, delta: Tensor) -> Tensor:
        """Keep the images that are better than before, and return the gradient of the loss by the perturbation."""
        whole = NORMS[self._plan.norm].quantize(delta, self._plan.epsilon).requires_grad_()
        with torch.enable_grad():
            pixels = self._clean + whole
            found = self._vectors(pixels)
            gradient: Tensor
            (gradient,) = torch.autograd.grad(self._method.loss(found, self._aim).sum(), whole)
        success = self._method.success(found.detach(), self._aim)
        better = success > self.best
        self.best = torch.where(better, success, self.best)
        self.images = torch.where(better.view(-1, 1, 1, 1), pixels.detach(), self.images)
        return gradient


def _direction(gradient: Tensor, momentum: Tensor, plan: AttackPlan) -> tuple[Tensor, Tensor]:
    """The direction of a step, and the momentum of the next one."""
    kept = OPTIMIZERS[plan.optimizer].momentum
    if not kept:
        return gradient, momentum
    mean = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-30)
    momentum = kept * momentum + gradient / mean
    return momentum, momentum


def _step(room: Room, delta: Tensor, gradient: Tensor, plan: AttackPlan) -> Tensor:
    left = room.left(delta, gradient)
    if not OPTIMIZERS[plan.optimizer].single:
        left = left.clamp_max(LARGEST_CHANGE)
    return NORMS[plan.norm].steepest(gradient, left, plan.step_size)


def _start_size(plan: AttackPlan) -> float:
    optimizer = OPTIMIZERS[plan.optimizer]
    everywhere = optimizer.random_start or not optimizer.uses_gradient
    return plan.epsilon if everywhere else min(START_LEVELS, plan.epsilon)


def _draw(image: np.typing.NDArray[np.uint8], plan: AttackPlan, number: int) -> np.typing.NDArray[np.float32]:
    """Draw a perturbation for an image (1 or 3, H, W): in the cube of linf, or any direction of another ball."""
    pixels, size = np.ascontiguousarray(image), _start_size(plan)
    random = np.random.default_rng([plan.seed, zlib.crc32(pixels.data), *pixels.shape, number])
    if plan.norm != "linf":
        return random.normal(size=pixels.shape).astype(np.float32)
    if OPTIMIZERS[plan.optimizer].uses_gradient:
        return random.uniform(-size, size, pixels.shape).round().astype(np.float32)
    return (size * random.choice([-1.0, 1.0], pixels.shape)).astype(np.float32)  # a corner of the cube


def start_noise(height: int, width: int, plan: AttackPlan) -> Tensor:
    """Return where universal noise begins, (3, height, width) float32: at 0, or beside it without a gradient there."""
    if not METHODS[plan.method].needs_start:
        return torch.zeros(3, height, width)
    grey = np.zeros((3, height, width), np.uint8)
    return torch.from_numpy(_draw(grey, plan, 0)).clamp(-plan.epsilon, plan.epsilon)


def perturb_all(
    vectors: Vectors, images: Tensor, noise: Tensor, plan: AttackPlan, aim: Aim, is_grey: bool = False
) -> Tensor:
    """Make one step of a universal noise over images of one size.

    Args:
        vectors: Computes the vectors of the images.
        images: (B, 3, H, W) float, whole numbers in 0..255.
        noise: (3, h, w) float, of any size.
        plan: How.
        aim: The clean vectors of the images, and those of the gallery.
        is_grey: Whether the channels of an image change alike.

    Returns:
        The noise after the step.
    """
    with torch.enable_grad():
        one = noise.clone().requires_grad_()
        shown = rounded(images + spread(one, images, is_grey))
        gradient: Tensor
        (gradient,) = torch.autograd.grad(METHODS[plan.method].loss(vectors(shown), aim).sum(), one)
    room = torch.full_like(noise, 255.0)[None]
    moved = noise[None] + NORMS[plan.norm].steepest(gradient[None], room, plan.step_size)
    return NORMS[plan.norm].project(moved, plan.epsilon)[0]


def spread(noise: Tensor, images: Tensor, is_grey: bool = False) -> Tensor:
    """Resize noise (3, h, w) to the images (B, 3, H, W), between neighbours, which makes no value larger.

    Returns:
        (B, 3, H, W), or (B, 1, H, W) where ``is_grey``: the mean of the channels.
    """
    size = (int(images.shape[2]), int(images.shape[3]))
    whole = noise[None].mean(1, keepdim=True) if is_grey else noise[None]
    if whole.shape[2:] != size:
        whole = torch.nn.functional.interpolate(whole, size, mode="bilinear", align_corners=False)
    return whole.expand(len(images), -1, -1, -1)


def apply_noise(images: Tensor, noise: Tensor, plan: AttackPlan, is_grey: bool = False) -> Tensor:
    """Add universal noise to images (B, 3, H, W) uint8; the result is uint8 inside the ball."""
    clean = images.float()
    delta = Room(clean, is_grey).hold(spread(noise.to(clean), clean, is_grey), plan)
    return (clean + NORMS[plan.norm].quantize(delta, plan.epsilon)).byte()


def same_size(sizes: Sequence[ImageSize], largest: Callable[[ImageSize], int]) -> list[list[int]]:
    """Divide images into batches of one size, with or without colour, in the order of their first image.

    Args:
        sizes: Height and width of each image, and whether it stays grey.
        largest: The largest batch of images of a size.

    Returns:
        The numbers of the images of each batch.

    Example:
        >>> small, large = (4, 2, False), (8, 4, False)
        >>> same_size([small, large, small, small], lambda size: 2)
        [[0, 2], [3], [1]]
    """
    groups: dict[ImageSize, list[int]] = {}
    for number, size in enumerate(sizes):
        groups.setdefault(size, []).append(number)
    return [
        rows[start : start + largest(size)]
        for size, rows in groups.items()
        for start in range(0, len(rows), largest(size))
    ]
