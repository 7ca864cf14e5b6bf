"""Train a completion network on crops whose occluders are drawn, so that what is behind them is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.generation.completion_network import (
    BLOCKS,
    CHANNELS,
    CompletionNetwork,
    MaskGuesser,
    build_patch_discriminator,
    complete,
)
from reid.generation.occluders import draw_masks, occlude
from reid.generation.step_training import OnRound, StepPlan, StepRun, StepTrainer, trained_samples
from reid.generation.written_weights import with_prefix
from reid.records import Sample

METHOD = "completion"
NETWORK, GUESSER = "network.", "guesser."  # prefixes of the names of tensors
ADVERSARIAL_WEIGHT = 0.1  # of the non-saturating loss, as published
HIDDEN_SHARE = (0.05, 0.55)  # of a crop that is hidden in training
LEARNING_RATE = 5e-4


def hidden_error(completed: Tensor, images: Tensor, masks: Tensor) -> Tensor:
    """Compute the mean absolute error of hidden pixels.

    It is the published L1 between the image and the completed one, divided by the mean of the mask: visible pixels
    are kept, so they add nothing to the numerator.

    Args:
        completed: (B, 3, H, W).
        images: (B, 3, H, W).
        masks: (B, 1, H, W) bool, True where the crop is hidden.

    Returns:
        A scalar; 0 where nothing is hidden.

    Example:
        >>> images, masks = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.bool)
        >>> masks[..., :2] = True
        >>> hidden_error(torch.where(masks, 0.5, images), images, masks).item()
        0.5
    """
    error = ((completed - images).abs() * masks).mean()
    return error / masks.float().mean().clamp_min(torch.finfo(error.dtype).tiny)


class CompletionTrainer:
    """One update of the completion network, its discriminator and the guesser of masks.

    Args:
        plan: The learning rate and the number of steps.  In the first third of them the network learns from the error
            only; then the discriminator joins.
        channels: As in :class:`~reid.generation.completion_network.CompletionNetwork`.
        blocks: As there.
    """

    def __init__(self, plan: StepPlan, channels: tuple[int, int, int] = CHANNELS, blocks: int = BLOCKS) -> None:
        self.network, self.guesser = CompletionNetwork(channels, blocks), MaskGuesser(channels[0])
        self.discriminator = build_patch_discriminator(channels[0])
        self.adversary_from = plan.steps // 3
        rate = plan.learning_rate
        self._network_optimizer = torch.optim.Adam(self.network.parameters(), rate, betas=(0.5, 0.999))
        self._adversary_optimizer = torch.optim.Adam(self.discriminator.parameters(), rate, betas=(0.5, 0.999))
        self._guesser_optimizer = torch.optim.Adam(self.guesser.parameters(), 2 * rate)

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The networks by name."""
        return {"network": self.network, "discriminator": self.discriminator, "guesser": self.guesser}

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """The optimizers by name."""
        return {
            "network": self._network_optimizer,
            "discriminator": self._adversary_optimizer,
            "guesser": self._guesser_optimizer,
        }

    def step(self, number: int, crops: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Make one update on crops (B, 3, H, W) in -1..1; return the losses by name."""
        size = (crops.shape[2], crops.shape[3])
        masks = draw_masks(len(crops), size, HIDDEN_SHARE, generator)
        occluded = occlude(crops, masks, generator)
        losses = {"guess": self._learn_masks(occluded, masks)}
        completed = complete(self.network, occluded, masks)
        error = hidden_error(completed, crops, masks)
        loss, losses["hidden"] = error, error.item()
        if number >= self.adversary_from:
            losses["discriminator"] = self._learn_to_tell(crops, completed.detach())
            adversarial = functional.softplus(-self.discriminator(completed)).mean()
            loss, losses["adversarial"] = loss + ADVERSARIAL_WEIGHT * adversarial, adversarial.item()
        _update(self._network_optimizer, loss)
        return losses

    def observe(self) -> dict[str, float]:
        """Measure nothing more."""
        return {}

    def _learn_masks(self, occluded: Tensor, masks: Tensor) -> float:
        loss = functional.binary_cross_entropy_with_logits(self.guesser(occluded), masks.float())
        _update(self._guesser_optimizer, loss)
        return loss.item()

    def _learn_to_tell(self, crops: Tensor, completed: Tensor) -> float:
        recorded, written = self.discriminator(crops), self.discriminator(completed)
        loss = functional.softplus(-recorded).mean() + functional.softplus(written).mean()
        _update(self._adversary_optimizer, loss)
        return float(loss.item())


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def train_completion(
    samples: Sequence[Sample],
    out: Path,
    plan: StepPlan,
    *,
    channels: tuple[int, int, int] = CHANNELS,
    blocks: int = BLOCKS,
    resume: bool = True,
    progress: bool = False,
    on_round: OnRound | None = None,
) -> Path:
    """Train a completion network in a folder, or continue its training.

    Args:
        samples: Crops; those of split train that cameras recorded are learned from, and no label is read.
        out: The folder of the run.
        plan: How long, and with which random numbers.
        channels: The channels of the network at full, half and quarter size.
        blocks: Its residual blocks.
        resume: Whether an unfinished run continues; else it starts over.
        progress: Whether to draw a bar on stderr.
        on_round: Is called after each round was saved.

    Returns:
        The weights file.

    Raises:
        ConfigError: The folder holds another run, or the training diverged.
        DataError: There are too few crops, or one cannot be read.
    """
    rows = trained_samples(samples)
    settings = {"full": channels[0], "half": channels[1], "quarter": channels[2], "blocks": blocks}
    run = StepRun(out, plan, METHOD, settings, progress, on_round)

    def tensors(trainer: StepTrainer) -> dict[str, Tensor]:
        networks = trainer.networks
        return {**with_prefix(networks["network"], NETWORK), **with_prefix(networks["guesser"], GUESSER)}

    return run.run(rows, lambda: CompletionTrainer(plan, channels, blocks), tensors, resume)
