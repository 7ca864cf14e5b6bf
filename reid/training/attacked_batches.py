"""Attacked images in a training: which copies join a batch, and which branch of the norms they belong to.

An attack needs no classifier: it pushes an image away from its own embedding ("self"), in a ball of linf, l2 or l1 in
turn.  The network is in evaluation mode while it is attacked.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from reid.config import Defence
from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError
from reid.norm import Given
from reid.norm.calibrate import device_of
from reid.robustness.attack_methods import AttackPlan
from reid.robustness.attacked_network import VectorsBeforeScaling
from reid.robustness.attacks import attack_images
from reid.robustness.differentiable_resize import network_input
from reid.robustness.gate_alarm import BRANCHES, CLEAN
from reid.robustness.perturbation_ball import NORMS
from reid.training.batches import TrainingBatch

ATTACKS = tuple(name for name in BRANCHES if name != CLEAN)
STEPS = 3  # of an attack; more cost as many times the training


class NoAttacks:
    """A training without attacked images; the other classes change what they need."""

    def refuse_processes(self) -> None:
        """Refuse to train in several processes, where that is not possible."""

    def begin_epoch(self, generator: torch.Generator) -> None:
        """Forget what an earlier epoch left."""

    def extend(self, batch: TrainingBatch, pixels: Tensor) -> TrainingBatch:  # noqa: ARG002
        """Add attacked images to a batch.

        Args:
            batch: The clean batch.
            pixels: Its images (B, 3, H, W) float in 0..255, before they are normalised.
        """
        return batch

    def learn(self, batch: TrainingBatch) -> None:
        """Use the gradient that the update left at the images of the batch."""


class AttackedCopies(NoAttacks):
    """Adds an attacked copy of every image of a batch, in norms that take turns.

    Args:
        embedder: The network that is trained, which is attacked.
        transform: Prepares images.
        defence: The size of the balls and the method: "shared" normalizes clean and attacked
            images alike; "gated" gives each norm a branch; "anti_collapse" pulls every image towards one of another
            identity.
        seed: Decides random starts.
    """

    def __init__(self, embedder: VectorsBeforeScaling, transform: EvaluationTransform, defence: Defence, seed: int):
        self._network, self._given = embedder, Given(embedder)
        self._transform, self._defence, self._seed = transform, defence, seed

    def refuse_processes(self) -> None:
        """Refuse several processes: an attack needs all rows of its batch."""
        raise ConfigError(f'defence.method = "{self._defence.method}" trains in one process; train without torchrun')

    def extend(self, batch: TrainingBatch, pixels: Tensor) -> TrainingBatch:
        """Add the attacked copies."""
        clean = pixels.round().clamp(0, 255).byte().to(batch.images.device)
        pulled = self._defence.method == "anti_collapse"
        copies = clean.float()
        was_training = self._network.training
        self._network.eval()
        for number, norm in enumerate(ATTACKS):
            rows = torch.arange(number, len(clean), len(ATTACKS), device=clean.device)
            if len(rows):
                others = self._other_vectors(batch, clean, rows) if pulled else None
                copies[rows] = self._attack(batch, clean, rows, norm, others)
        self._network.train(was_training)
        return self._joined(batch, copies)

    def _attack(self, batch: TrainingBatch, clean: Tensor, rows: Tensor, norm: str, others: Tensor | None) -> Tensor:
        method = "self" if others is None else "pull"
        plan = AttackPlan(method, "pgd", norm, self._defence.epsilon, STEPS, self._seed)
        domain = None if batch.domain is None else batch.domain[rows]
        found = attack_images(lambda x: self._vectors(x, domain), clean[rows], plan, other=others)
        return found.images.float()

    def _vectors(self, pixels: Tensor, domain: Tensor | None) -> Tensor:
        vectors: Tensor = self._given(network_input(pixels, self._transform), domain)
        return vectors

    @torch.no_grad()
    def _other_vectors(self, batch: TrainingBatch, clean: Tensor, rows: Tensor) -> Tensor:
        """The clean vectors of images of other identities: for each row, the next such image of the batch."""
        targets = batch.targets
        shifts = torch.arange(1, len(targets), device=targets.device)
        ahead = (rows[:, None] + shifts) % len(targets)
        first = (targets[ahead] != targets[rows][:, None]).int().argmax(1)
        chosen = ahead.gather(1, first[:, None])[:, 0]
        return self._vectors(clean[chosen].float(), None if batch.domain is None else batch.domain[chosen])

    def _joined(self, batch: TrainingBatch, copies: Tensor) -> TrainingBatch:
        attacked = network_input(copies, self._transform)
        domain = None if batch.domain is None else torch.cat([batch.domain, batch.domain])
        if self._defence.method == "gated":
            turns = torch.arange(len(copies), device=copies.device) % len(ATTACKS)
            branches = torch.tensor([BRANCHES.index(name) for name in ATTACKS], device=copies.device)
            domain = torch.cat([torch.full_like(turns, BRANCHES.index(CLEAN)), branches[turns]])
        return replace(
            batch,
            images=torch.cat([batch.images, attacked]).contiguous(memory_format=torch.channels_last),
            targets=torch.cat([batch.targets, batch.targets]),
            modalities=torch.cat([batch.modalities, batch.modalities]),
            domain=domain,
            labelled=2 * batch.labelled,
            attacked=len(copies),
        )


class FreeNoise(NoAttacks):
    """Free adversarial training (Shafahi et al., NeurIPS 2019): the backward pass of the update also moves a noise.

    Every other image of a batch gets the noise, which all of them share, in a ball of linf.  It costs what a training
    without attacks costs.  Every epoch begins with a new random noise.

    Args:
        transform: Prepares images.
        defence: The size of the ball.
    """

    def __init__(self, transform: EvaluationTransform, defence: Defence) -> None:
        self._transform, self._epsilon = transform, defence.epsilon
        self._generator = torch.Generator()
        self._noise: Tensor | None = None

    def refuse_processes(self) -> None:
        """Refuse several processes, each of which would have a noise of its own."""
        raise ConfigError('defence.method = "free" trains in one process; train without torchrun')

    def begin_epoch(self, generator: torch.Generator) -> None:
        """Draw the noise anew with the next batch."""
        self._generator, self._noise = generator, None

    def extend(self, batch: TrainingBatch, pixels: Tensor) -> TrainingBatch:
        """Add the noise to every other image."""
        pixels = pixels.to(batch.images.device)
        if self._noise is None:
            drawn = torch.rand(pixels.shape[1:], generator=self._generator) * 2 - 1
            self._noise = (drawn * self._epsilon).to(pixels.device)
        noisy = pixels.clone()
        noisy[1::2] = (pixels[1::2] + self._noise).clamp(0, 255)
        images = network_input(noisy, self._transform).contiguous(memory_format=torch.channels_last)
        return replace(batch, images=images.detach().requires_grad_())

    def learn(self, batch: TrainingBatch) -> None:
        """Move the noise one step up the loss."""
        gradient = batch.images.grad
        if gradient is None or self._noise is None:
            return
        moved = self._noise + self._epsilon / 4 * gradient[1::2].sum(0).sign()
        self._noise = NORMS["linf"].project(moved[None], self._epsilon)[0]


def attacked_batches(
    learner: torch.nn.Module, transform: EvaluationTransform, defence: Defence | None, has_no_domains: bool, seed: int
) -> NoAttacks:
    """Make what adds attacked images to the batches of a training.

    Args:
        learner: The network that is trained, with its attribute ``embedder``.
        transform: Prepares images.
        defence: The defence; None for none.
        has_no_domains: Whether the images of the batches come without domains.
        seed: The seed of the training.

    Raises:
        ConfigError: Branches for attacks are asked for, and the images have domains.
    """
    if defence is None or defence.method == "none":
        return NoAttacks()
    if defence.method == "gated" and not has_no_domains:
        raise ConfigError('defence.method = "gated" has a domain for each attack: set norm.axis = "batch"')
    if defence.method == "free":
        return FreeNoise(transform, defence)
    embedder = VectorsBeforeScaling(learner.embedder)  # type: ignore[arg-type]
    return AttackedCopies(embedder.to(device_of(learner)), transform, defence, seed)
