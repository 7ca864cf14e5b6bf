"""A training loop over a few tensors, and scores of a sweep, without files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from reid.config import Train
from reid.data.transforms import EvaluationTransform, TrainTransform
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import camera_batchnorm, convert_norm
from reid.training.loop import EpochReport, Learner, TrainingLoop, make_optimizer
from reid.training.score_tables import Score
from reid.training.training_data import TrainingSet

COUNT, IDENTITIES, CAMERAS = 24, 4, 2


def make_loop(*, cameras: bool = False, **recipe: Any) -> TrainingLoop:
    """Make a loop over crops of one colour for each identity; ``recipe`` are fields of ``Train``."""
    torch.manual_seed(0)
    embedder: Any = Embedder(NetworkSpec("osnet_x0_25"))
    if cameras:
        embedder = convert_norm(embedder, camera_batchnorm(["a", "b"]))
    learner = Learner(embedder, IDENTITIES).to(memory_format=torch.channels_last)
    numbers = torch.arange(COUNT)
    colours = torch.randint(0, 255, (IDENTITIES, 3, 1, 1), generator=torch.Generator().manual_seed(1))
    data = TrainingSet(
        crops=colours[numbers % IDENTITIES].expand(COUNT, 3, 32, 16).to(torch.uint8),
        targets=numbers % IDENTITIES,
        modalities=torch.zeros(COUNT, dtype=torch.int64),
        domains=(numbers // IDENTITIES) % CAMERAS if cameras else None,
    )
    settings = Train(**{"epochs": 8, "learning_rate": 1e-3, "warmup_epochs": 1, **recipe})
    plain = TrainTransform(brightness=0, contrast=0, saturation=0, gain=0, grey=0, erase=0, pad=1)
    optimizer = make_optimizer(learner, settings)
    return TrainingLoop(learner, optimizer, data, plain, EvaluationTransform(32, 16), settings)


def train_epochs(loop: TrainingLoop, epochs: int, times: int = 3) -> list[EpochReport]:
    """Train on all crops, several times in each epoch."""
    batches = [np.arange(COUNT, dtype=np.int64)] * times
    return [loop.train_epoch(e, batches, torch.Generator().manual_seed(e)) for e in range(epochs)]


def score(row: str, seed: int, rank1: float, direction: str = "visible->visible", category: str = "person") -> Score:
    """Make the score of one row and seed at the site "seen"."""
    return Score(row, "seen", category, direction, seed, rank1, rank1 / 2, 10, 20)
