"""One process of a training that several share, without a command: ``python training_worker.py EXPERIMENT OUT``.

It trains on the first batches of an experiment and saves the loss of every batch, and the gradients and buffers after
the first one.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from reid.config import Experiment, load_config
from reid.data.transforms import EvaluationTransform, TrainTransform
from reid.training.batches import BatchSampler
from reid.training.crop_cache import CropSource
from reid.training.epochs import derive_seed
from reid.training.loop import TrainingLoop, make_optimizer
from reid.training.processes import Processes, joined_processes
from reid.training.synchronized_norms import synchronized_norms
from reid.training.training_data import read_training_rows, read_training_set
from reid.training.training_run import build_learner


def first_batches(experiment: Experiment, processes: Processes, batches: int = 2) -> dict[str, Any]:
    """Train on some batches; return losses, and the gradients and buffers after the first batch."""
    experiment, rows = read_training_rows(experiment)
    learner = build_learner(experiment, rows)
    transform = EvaluationTransform(*experiment.data.size)
    data = read_training_set(rows, CropSource(transform, 1))
    found: dict[str, Any] = {"losses": []}
    with synchronized_norms(learner) if processes.count > 1 else nullcontext():
        optimizer = make_optimizer(learner, experiment.train)
        augment = TrainTransform(**experiment.augment.model_dump())
        target = experiment.norm.target_loss
        loop = TrainingLoop(learner, optimizer, data, augment, transform, experiment.train, target, processes)
        sampler = BatchSampler(rows.samples, rows.unlabelled, experiment.train, loop.objective.views)
        for number in range(batches):
            generator = torch.Generator().manual_seed(derive_seed(0, number))
            report = loop.train_epoch(number, sampler.epoch(number)[:1], generator)
            found["losses"].append(report.loss)
            if number == 0:
                found["gradients"] = {
                    key: value.grad.clone() for key, value in learner.named_parameters() if value.grad is not None
                }
                found["buffers"] = {key: value.clone() for key, value in learner.named_buffers()}
    return found


def main(experiment: str, out: str) -> None:
    torch.set_num_threads(1)
    with joined_processes("start again") as processes:
        found = first_batches(load_config(Path(experiment)), processes)
        torch.save(found, Path(out) / f"{processes.rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
