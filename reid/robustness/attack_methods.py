"""Attacks by name: where an attack wants the embedding of a query, and by which steps it changes the pixels.

A method (:data:`METHODS`) says what is to become large.  An optimizer (:data:`OPTIMIZERS`) says how often and how far
the pixels move.  An :class:`AttackPlan` names both, with the ball that is never left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from reid.errors import ConfigError, unknown_name
from reid.robustness.perturbation_ball import NORMS

MAX_EPSILON = 255.0  # grey levels


@dataclass(frozen=True)
class Aim:
    """What an attack compares vectors with, (B, D) float each.

    Attributes:
        own: The vectors of the clean images, of any length.
        other: Vectors of gallery crops that are to become near or far; None where there are none.
    """

    own: Tensor
    other: Tensor | None = None


Value = Callable[[Tensor, Aim], Tensor]


@dataclass(frozen=True)
class Method:
    """Where an attack wants the vectors of the attacked images.

    Attributes:
        loss: What the steps raise: vectors (B, D) of any length and the aim -> (B,).
        success: What decides which of the visited images is kept, in the same form: a cosine in -1..1, or its negative.
        needs_start: Whether the loss has no gradient at the clean image, so that the steps begin beside it.
        needs_gallery: Whether the aim needs crops of the gallery.
    """

    loss: Value
    success: Value
    needs_start: bool = False
    needs_gallery: bool = False


def _away_from_own(vectors: Tensor, aim: Aim) -> Tensor:
    return -functional.cosine_similarity(vectors, aim.own)


def _u_turn(vectors: Tensor, aim: Aim) -> Tensor:
    """Minus the squared distance to the opposite vector, in lengths of the clean one."""
    length = aim.own.norm(dim=1, keepdim=True).clamp_min(1e-12)
    value: Tensor = -((vectors + aim.own) / length).square().sum(1)
    return value


def _towards_other(vectors: Tensor, aim: Aim) -> Tensor:
    if aim.other is None:
        raise ConfigError("attack: this method needs crops of the gallery")
    return functional.cosine_similarity(vectors, aim.other)


def _away_from_other(vectors: Tensor, aim: Aim) -> Tensor:
    return -_towards_other(vectors, aim)


METHODS: dict[str, Method] = {
    # ODFA, "U-turn" (Zheng et al., arXiv 1809.02681): towards -f, which needs neither labels nor a gallery
    "odfa": Method(_u_turn, _away_from_own),
    # self metric attack (Bouniot et al., CVPRW 2020): away from f, from a random start
    "self": Method(_away_from_own, _away_from_own, needs_start=True),
    # metric attack (Bai et al., arXiv 1901.10650): away from crops of the same identity, or towards those of another
    "push": Method(_away_from_other, _away_from_other, needs_gallery=True),
    "pull": Method(_towards_other, _towards_other, needs_gallery=True),
}


@dataclass(frozen=True)
class Optimizer:
    """How the pixels move.

    Attributes:
        single: Whether there is one step, as large as the ball.
        momentum: The part of the previous direction that a step keeps, over the mean absolute gradient.
        random_start: Whether the steps begin at a random point of the ball.
        uses_gradient: Whether steps follow the gradient; otherwise each draws a new random point of the ball.
    """

    single: bool = False
    momentum: float = 0.0
    random_start: bool = False
    uses_gradient: bool = True


OPTIMIZERS: dict[str, Optimizer] = {
    "fgsm": Optimizer(single=True),  # Goodfellow et al. 2015
    "ifgsm": Optimizer(),  # Kurakin et al. 2017
    "mifgsm": Optimizer(momentum=1.0),  # Dong et al. 2018
    "pgd": Optimizer(random_start=True),  # Madry et al. 2018
    "random": Optimizer(uses_gradient=False),  # no attack: what it gains, a gradient must gain too
}
UNIVERSAL_OPTIMIZERS = ("ifgsm", "mifgsm")


@dataclass(frozen=True)
class AttackPlan:
    """How images are attacked.

    Args:
        method: A key of :data:`METHODS`.
        optimizer: A key of :data:`OPTIMIZERS`.
        norm: A key of :data:`~reid.robustness.perturbation_ball.NORMS`.
        epsilon: The size of the ball in grey levels, above 0 and at most 255.
        steps: How many steps; None takes those of the papers: min(epsilon + 4, 1.25 epsilon) rounded up, or 10 for l2
            and l1.  It does not change how large a step is, so more steps are never weaker.
        seed: Decides random starts, targets and the images of universal noise.
        universal: Whether all images get the same perturbation.

    Raises:
        ConfigError: A name is unknown, a number is out of range, or two of them do not go together.

    Example:
        >>> plan = AttackPlan(epsilon=8)
        >>> plan.step_count, plan.step_size
        (10, 1.0)
        >>> AttackPlan("odfo")
        Traceback (most recent call last):
        reid.errors.ConfigError: unknown attack "odfo"; did you mean "odfa"? known: odfa, self, push, pull
    """

    method: str = "odfa"
    optimizer: str = "ifgsm"
    norm: str = "linf"
    epsilon: float = 8.0
    steps: int | None = None
    seed: int = 0
    universal: bool = False

    def __post_init__(self) -> None:
        known = (
            ("attack", self.method, METHODS),
            ("optimizer of an attack", self.optimizer, OPTIMIZERS),
            ("norm of an attack", self.norm, NORMS),
        )
        for what, name, names in known:
            if name not in names:
                raise ConfigError(unknown_name(what, name, names))
        if not 0 < self.epsilon <= MAX_EPSILON:  # also refuses nan
            raise ConfigError(f"attack: expected an epsilon above 0 and at most 255 grey levels, got {self.epsilon:g}")
        if self.norm == "linf" and self.epsilon < 1:
            raise ConfigError(
                f"attack: linf of {self.epsilon:g} grey levels changes no 8-bit value; epsilon is in"
                " 0..255, not in 0..1"
            )
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"attack: expected at least 1 step, got {self.steps}")
        if self.steps not in (None, 1) and OPTIMIZERS[self.optimizer].single:
            raise ConfigError(f"attack: {self.optimizer} has one step, not {self.steps}; take ifgsm, mifgsm or pgd")
        if self.seed < 0:
            raise ConfigError(f"attack: expected a seed of 0 or more, got {self.seed}")
        if self.universal and self.optimizer not in UNIVERSAL_OPTIMIZERS:
            raise ConfigError(
                f"attack: universal noise is made by {' or '.join(UNIVERSAL_OPTIMIZERS)}, not by {self.optimizer}"
            )

        if self.universal and METHODS[self.method].needs_gallery:
            raise ConfigError(f"attack: universal noise needs odfa or self, not {self.method}, which differs by query")

    @property
    def step_count(self) -> int:
        """How many steps there are."""
        if OPTIMIZERS[self.optimizer].single:
            return 1
        if self.steps is not None:
            return self.steps
        return math.ceil(min(self.epsilon + 4, 1.25 * self.epsilon)) if self.norm == "linf" else 10

    @property
    def step_size(self) -> float:
        """The size of a step in grey levels: 1 for linf, a quarter of the ball for l2 and l1, all of it for fgsm."""
        if OPTIMIZERS[self.optimizer].single:
            return self.epsilon
        return 1.0 if self.norm == "linf" else self.epsilon / 4

    @property
    def begins_beside(self) -> bool:
        """Whether the steps begin at a random point, and not at the clean image."""
        optimizer = OPTIMIZERS[self.optimizer]
        return optimizer.random_start or not optimizer.uses_gradient or METHODS[self.method].needs_start

    def text(self) -> str:
        """Describe the plan in a line, as in "odfa by ifgsm, linf 8, 10 steps, seed 0"."""
        universal = "universal noise of " if self.universal else ""
        return (
            f"{universal}{self.method} by {self.optimizer}, {self.norm} {self.epsilon:g}, {self.step_count} steps,"
            f" seed {self.seed}"
        )
