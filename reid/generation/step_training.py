"""Train a network that writes crops, step by step, in the folder of a run.

The folder, its lock, its checkpoints, its metrics and the parts of the seed are those of :mod:`reid.training`.  What
differs is the step: such a network has no identities, and it may have an adversary with an optimizer of its own.  Every
round of steps draws from its own part of the seed, so an interrupted training continues to the same numbers.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from reid.data.selection import calibration_samples
from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError, DataError, WeightsError
from reid.files import require_regular_file
from reid.generation.written_weights import TrainingCard, load_weights, save_weights
from reid.records import Sample
from reid.structured_text import read_json
from reid.training.crop_cache import CropSource
from reid.training.epochs import AUGMENT, INIT, derive_seed
from reid.training.run_folder import RunFolder, replace_file, samples_digest
from reid.training.training_run import torch_settings

HEIGHT, WIDTH = 64, 32  # pixels of the crops that these networks read and write
SETTINGS = "settings.json"
MOST_STEPS = 10**6
OnRound = Callable[[dict[str, float]], object]
History = list[dict[str, float]]


@dataclass(frozen=True)
class StepPlan:
    """How long a network is trained, and with which random numbers.

    Args:
        steps: The number of updates.
        batch: Crops of an update.
        learning_rate: Of all optimizers of the training.
        seed: Drives the first weights, the batches and everything that is drawn.
        save_every: Updates of a round; after each one the state is saved.
        threads: Threads that compute.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> StepPlan(steps=500, save_every=200).rounds
        [200, 200, 100]
    """

    steps: int = 3000
    batch: int = 32
    learning_rate: float = 4e-4
    seed: int = 0
    save_every: int = 200
    threads: int = 1

    def __post_init__(self) -> None:
        for name, most in (("steps", MOST_STEPS), ("batch", 2**12), ("save_every", MOST_STEPS), ("threads", 256)):
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"{name}: expected a whole number of 1 to {most:,}, got {getattr(self, name)}")
        if not (math.isfinite(self.learning_rate) and 0 < self.learning_rate <= 1):
            raise ConfigError(f"learning rate: expected a number above 0 and up to 1, got {self.learning_rate}")
        if self.seed < 0:
            raise ConfigError(f"seed: expected 0 or more, got {self.seed}")

    @property
    def rounds(self) -> list[int]:
        """The number of updates of each round."""
        full, rest = divmod(self.steps, self.save_every)
        return [self.save_every] * full + ([rest] if rest else [])


class StepTrainer(Protocol):
    """What a training updates, and how it makes one update."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The networks by name; their states are saved."""

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """The optimizers by name; their states are saved."""

    def step(self, number: int, crops: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Make one update on crops (B, 3, H, W) in -1..1 and return its losses by name."""

    def observe(self) -> dict[str, float]:
        """Measure the networks after a round, such as the singular values of their layers."""


@dataclass(frozen=True, eq=False)
class StepRun:
    """One training in a folder.

    Args:
        folder: The folder of the run.
        plan: How long it trains.
        method: What is trained, such as "completion"; it stands in the card.
        settings: Everything else that decides the result, in values that JSON holds.
        progress: Whether to draw a bar on stderr.
        on_round: Is called after each round was saved.
    """

    folder: Path
    plan: StepPlan
    method: str
    settings: Mapping[str, object]
    progress: bool = False
    on_round: OnRound | None = None

    def run(
        self,
        samples: Sequence[Sample],
        build: Callable[[], StepTrainer],
        tensors: Callable[[StepTrainer], Mapping[str, Tensor]],
        resume: bool = True,
    ) -> Path:
        """Train, or continue a training, and write its weights.

        Args:
            samples: The crops to learn from.
            build: Builds the networks; the seed is set before.
            tensors: Returns the tensors to write.
            resume: Whether an unfinished run continues; else it starts over.

        Returns:
            The weights file; a finished run of the same settings is left as it is.

        Raises:
            ConfigError: The folder holds another run, or the training diverged.
            DataError: There are too few crops, or one cannot be read.
            WeightsError: The last checkpoint is damaged.
        """
        folder = RunFolder(self.folder)
        digest = samples_digest(samples)
        with folder.held():
            if not resume:
                clear(folder)
            self._open(folder, digest)
            if folder.weights.exists():
                load_weights(folder.weights, self.method)
                return folder.weights
            source = CropSource(EvaluationTransform(HEIGHT, WIDTH), self.plan.threads, self.progress)
            with torch_settings(self.plan.threads):
                crops = source.load(samples)
                torch.manual_seed(derive_seed(self.plan.seed, INIT))
                trainer = build()
                history = self._train(folder, trainer, crops)
                card = TrainingCard(
                    self.method, self.settings, digest, len(samples), self.plan.seed, len(history), history[-1]
                )
                save_weights(folder.weights, tensors(trainer), card)
        return folder.weights

    def _open(self, folder: RunFolder, digest: str) -> None:
        """Keep the settings in the folder, or compare them with those that it holds."""
        wanted = {**_plan_settings(self.plan), "method": self.method, **self.settings, "data": digest}
        file = folder.path / SETTINGS
        require_regular_file(file, "file of a run")
        try:
            known = read_json(file) if file.exists() else None
            if known is not None and not isinstance(known, dict):
                raise ValueError("expected names and values")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file}: damaged ({error}); delete it, or choose another folder") from error
        if known is None and (folder.has_results or folder.experiment.exists()):
            raise ConfigError(f"{folder.path}: holds another training; choose another folder with --out")
        if known is not None and known != wanted and folder.has_results:
            changed = next((name for name in (*wanted, *known) if known.get(name) != wanted.get(name)), "")
            found, asked = known.get(changed), wanted.get(changed)
            raise ConfigError(
                f"{folder.path} holds a run of other settings ({changed}: {found}, asked for {asked});"
                " choose another folder with --out, or delete this one"
            )
        if known != wanted:
            replace_file(file, lambda path: path.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8"))

    def _train(self, folder: RunFolder, trainer: StepTrainer, crops: Tensor) -> History:
        """Run the rounds that are missing."""
        history, done = _restore(folder, trainer), 0
        with tqdm(
            desc="training", total=self.plan.steps, unit="step", disable=not self.progress, file=sys.stderr,
            dynamic_ncols=True,
        ) as bar:  # fmt: skip
            for number, steps in enumerate(self.plan.rounds):
                if number >= len(history):
                    line = self._round(trainer, crops, number, done, steps, bar.update)
                    history.append(line)
                    _save(folder, trainer, history)
                    if self.on_round is not None:
                        self.on_round(line)
                else:
                    bar.update(steps)
                done += steps
                losses = {name: value for name, value in history[number].items() if name.endswith("_loss")}
                bar.set_postfix_str(", ".join(f"{name.removesuffix('_loss')} {v:.3f}" for name, v in losses.items()))
        folder.save_metrics(history)
        return history

    def _round(
        self, trainer: StepTrainer, crops: Tensor, number: int, done: int, steps: int, progress: Callable[[int], object]
    ) -> dict[str, float]:
        """Make the updates of one round and return its line of metrics: means of the losses, and measurements."""
        generator = torch.Generator().manual_seed(derive_seed(self.plan.seed, AUGMENT, number))
        torch.manual_seed(derive_seed(self.plan.seed, AUGMENT, number, 1))  # for layers that draw, such as noise
        started, sums = time.perf_counter(), dict[str, float]()
        for network in trainer.networks.values():
            network.train()
        for step in range(done, done + steps):
            rows = torch.randint(len(crops), (self.plan.batch,), generator=generator)
            losses = trainer.step(step, to_unit(flip_some(crops[rows], generator)), generator)
            for name, value in losses.items():
                if not math.isfinite(value):
                    raise ConfigError(
                        f"{name} became {value} in step {step + 1}: the training diverged; lower the learning rate"
                    )
                sums[f"{name}_loss"] = sums.get(f"{name}_loss", 0.0) + value
            progress(1)
        means = {name: total / steps for name, total in sums.items()}
        seconds = round(time.perf_counter() - started, 3)
        return {"step": done + steps, **means, **trainer.observe(), "seconds": seconds}


def _plan_settings(plan: StepPlan) -> dict[str, object]:
    """What decides the numbers of a plan; threads and the time between checkpoints have their part in them too."""
    return {name: getattr(plan, name) for name in ("steps", "batch", "learning_rate", "seed", "save_every", "threads")}


def clear(folder: RunFolder) -> None:
    """Remove the files that a run of steps writes, and no others."""
    for file in (folder.weights, folder.state, folder.metrics, folder.path / SETTINGS):
        file.unlink(missing_ok=True)


def _save(folder: RunFolder, trainer: StepTrainer, history: History) -> None:
    """Save the checkpoint first and the metrics after it."""
    networks = {name: network.state_dict() for name, network in trainer.networks.items()}
    optimizers = {name: optimizer.state_dict() for name, optimizer in trainer.optimizers.items()}
    folder.save_state({"networks": networks, "optimizers": optimizers, "history": history})
    folder.save_metrics(history)


def _restore(folder: RunFolder, trainer: StepTrainer) -> History:
    """Load the last checkpoint, if there is one, and return the metrics of its rounds."""
    state = folder.load_state()
    if state is None:
        return []
    try:
        for name, network in trainer.networks.items():
            network.load_state_dict(state["networks"][name])
        for name, optimizer in trainer.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        return list(state["history"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{folder.state}: the checkpoint does not fit the network of this version; delete it to start over"
        ) from error


def to_unit(crops: Tensor) -> Tensor:
    """Scale crops uint8 in 0..255 to float32 in -1..1."""
    return crops.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Scale images in -1..1 to uint8 in 0..255; what lies outside is clipped."""
    return ((images.detach().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def flip_some(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the crops (B, 3, H, W), drawn at random."""
    mirrored = torch.rand(len(crops), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], crops.flip(3), crops)


def trained_samples(samples: Sequence[Sample], least: int = 2) -> list[Sample]:
    """Return the crops that a network that writes crops learns from, each once.

    They are those that statistics of cameras are measured on: split train, or all recorded crops where it has none.

    Args:
        samples: The samples of a data set.
        least: The number of crops that is needed.

    Raises:
        DataError: There are fewer.
    """
    rows = list({sample.path: sample for sample in calibration_samples(samples)}.values())
    if len(rows) < least:
        raise DataError(f"{len(rows)} recorded crops to learn from; expected {least} or more of split train")
    return rows
