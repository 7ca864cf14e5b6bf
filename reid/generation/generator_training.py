"""Train a generator against a discriminator, and watch what normalization promises: bounded weights and no collapse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConfigError
from reid.generation.generator_networks import (
    CHANNELS,
    DISCRIMINATOR_CHANNELS,
    LATENT,
    Channels,
    StyleGenerator,
    build_discriminator,
    build_generator,
    draw,
    singular_values,
)
from reid.generation.step_training import OnRound, StepPlan, StepRun, StepTrainer, trained_samples
from reid.generation.written_weights import with_prefix
from reid.records import Sample

METHOD = "generator"
NETWORK = "generator."  # prefix of the names of tensors
MIXED = 0.9  # of the images that StyleGAN draws in training, with styles of two latent vectors
COLLAPSED = 0.25  # of the distance between recorded crops, below which generated ones are all alike
LEARNING_RATE = 2e-4


@dataclass(frozen=True)
class Stage:
    """A generator and a discriminator, by the names of their normalization and by their channels.

    Args:
        generator: A key of :data:`~reid.generation.generator_networks.GENERATORS`.
        discriminator: A key of :data:`~reid.generation.generator_networks.DISCRIMINATORS`.
        channels: Of the generator at the four sizes.
        discriminator_channels: Of the discriminator.
    """

    generator: str = "style"
    discriminator: str = "spectral"
    channels: Channels = CHANNELS
    discriminator_channels: Channels = DISCRIMINATOR_CHANNELS

    def __post_init__(self) -> None:
        for name in ("channels", "discriminator_channels"):
            if not all(1 <= width <= 1024 for width in getattr(self, name)):
                raise ConfigError(f"{name}: expected numbers of 1 to 1024, got {getattr(self, name)}")

    def settings(self) -> dict[str, object]:
        """Return the settings in values that JSON holds."""
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            **{f"channels {number}": width for number, width in enumerate(self.channels)},
            **{f"discriminator channels {number}": width for number, width in enumerate(self.discriminator_channels)},
        }


def mean_distance(images: Tensor) -> float:
    """Return the mean absolute difference between each image (B, 3, H, W) and the next one of the batch.

    Example:
        >>> mean_distance(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4))
        1.0
    """
    return (images - images.roll(1, 0)).abs().mean().item()


class GeneratorTrainer:
    """One update of the discriminator and one of the generator, with the non-saturating loss.

    Args:
        plan: The learning rate.
        stage: The networks.
    """

    def __init__(self, plan: StepPlan, stage: Stage) -> None:
        self.generator = build_generator(stage.generator, stage.channels)
        self.discriminator = build_discriminator(stage.discriminator, stage.discriminator_channels)
        rate, betas = plan.learning_rate, (0.5, 0.999)
        self._generator_optimizer = torch.optim.Adam(self.generator.parameters(), rate, betas=betas)
        self._discriminator_optimizer = torch.optim.Adam(self.discriminator.parameters(), rate, betas=betas)
        self._distances: list[tuple[float, float]] = []

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The networks by name."""
        return {"generator": self.generator, "discriminator": self.discriminator}

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """The optimizers by name."""
        return {"generator": self._generator_optimizer, "discriminator": self._discriminator_optimizer}

    def step(self, number: int, crops: Tensor, generator: torch.Generator) -> dict[str, float]:  # noqa: ARG002
        """Make one update on crops (B, 3, 64, 32) in -1..1; return the losses by name."""
        images = self._draw(len(crops), generator)
        recorded, written = self.discriminator(crops), self.discriminator(images.detach())
        telling = functional.softplus(-recorded).mean() + functional.softplus(written).mean()
        _update(self._discriminator_optimizer, telling)
        images = self._draw(len(crops), generator)
        loss = functional.softplus(-self.discriminator(images)).mean()
        _update(self._generator_optimizer, loss)
        self._distances.append((mean_distance(images.detach()), mean_distance(crops)))
        return {"discriminator": telling.item(), "generator": loss.item()}

    def observe(self) -> dict[str, float]:
        """Return the diversity of the round, and the singular values of the layers of the discriminator.

        Diversity is the distance between generated images, divided by that between recorded ones.
        """
        written, recorded = (sum(values) for values in zip(*self._distances, strict=True))
        self._distances = []
        found = {"diversity": written / max(recorded, 1e-9)}
        for number, (largest, smallest) in enumerate(singular_values(self.discriminator)):
            found[f"layer_{number}_largest"], found[f"layer_{number}_smallest"] = largest, smallest
        return found

    def _draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw images (B, 3, 64, 32); with StyleGAN, most of them with styles of two latent vectors."""
        latents = torch.randn((count, LATENT), generator=generator)
        if not isinstance(self.generator, StyleGenerator):
            return draw(self.generator, latents)
        others = torch.randn((count, LATENT), generator=generator)
        is_mixed = torch.rand(1, generator=generator).item() < MIXED
        crossover = int(torch.randint(1, self.generator.layers, (1,), generator=generator))
        return self.generator.mix(latents, others, crossover if is_mixed else self.generator.layers)


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def is_collapsed(history: Sequence[Mapping[str, float]]) -> bool:
    """Return whether the images of the last round are all alike: their diversity is below a quarter of the crops'.

    Example:
        >>> is_collapsed([{"diversity": 0.9}, {"diversity": 0.1}])
        True
    """
    return history[-1]["diversity"] < COLLAPSED


def train_generator(
    samples: Sequence[Sample],
    out: Path,
    plan: StepPlan,
    stage: Stage | None = None,
    *,
    resume: bool = True,
    progress: bool = False,
    on_round: OnRound | None = None,
) -> Path:
    """Train a generator in a folder, or continue its training.

    Args:
        samples: Crops; those of split train that cameras recorded are learned from, and no label is read.
        out: The folder of the run.
        plan: How long, and with which random numbers.
        stage: The networks; by default a generator of styles against a spectral norm.
        resume: Whether an unfinished run continues; else it starts over.
        progress: Whether to draw a bar on stderr.
        on_round: Is called after each round was saved.

    Returns:
        The weights file.

    Raises:
        ConfigError: The folder holds another run, a name is not known, or the training diverged.
        DataError: There are too few crops, or one cannot be read.
    """
    stage = stage or Stage()
    build_generator(stage.generator, (1, 1, 1, 1))
    build_discriminator(stage.discriminator, (1, 1, 1, 1))  # an unknown name is told before the crops are read
    run = StepRun(out, plan, METHOD, stage.settings(), progress, on_round)

    def tensors(trainer: StepTrainer) -> dict[str, Tensor]:
        return with_prefix(trainer.networks["generator"], NETWORK)

    return run.run(trained_samples(samples), lambda: GeneratorTrainer(plan, stage), tensors, resume)
