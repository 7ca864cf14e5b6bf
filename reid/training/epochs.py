"""The epochs of a training: from the last checkpoint to the end, with measurements on held-out identities.

The state after each epoch is saved, so an interrupted training continues to the same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from reid.config import Train
from reid.errors import DataError, WeightsError
from reid.training.batches import BatchSampler
from reid.training.curves import curves_svg
from reid.training.held_out import MAP, HeldOutSet
from reid.training.loop import EpochReport, TrainingLoop
from reid.training.run_folder import RunFolder
from reid.training.training_data import TrainingRows

OnEpoch = Callable[[EpochReport], object]
History = list[dict[str, float]]

# Parts of the seed, so that no two uses draw the same numbers.
INIT, AUGMENT, LAYERS, CALIBRATE = range(4)


def run_epochs(
    loop: TrainingLoop,
    folder: RunFolder,
    rows: TrainingRows,
    progress: bool,
    on_epoch: OnEpoch | None,
    held_out: HeldOutSet | None = None,
) -> None:
    """Train from the last checkpoint, or from the beginning, to the last epoch; save after each epoch.

    Args:
        loop: The training; at the end its network is that of the epoch that the recipe keeps.
        folder: The folder of the run; only process 0 writes to it.
        rows: The rows of the training.
        progress: Whether to draw a bar on stderr.
        on_epoch: Is called after each epoch was saved.
        held_out: What epochs are measured on.
    """
    recipe = loop.recipe
    history, best = _restore(loop, folder, rows)
    sampler = BatchSampler(rows.samples, rows.unlabelled, recipe, loop.objective.views)
    with tqdm(
        desc="training",
        total=recipe.epochs * sampler.images,
        initial=len(history) * sampler.images,
        unit="img",
        unit_scale=True,
        disable=not progress,
        dynamic_ncols=True,
    ) as bar:
        while len(history) < recipe.epochs and not is_finished_early(history, recipe):
            epoch = len(history)
            torch.manual_seed(derive_seed(recipe.seed, LAYERS, epoch))  # for networks with dropout
            generator = torch.Generator().manual_seed(derive_seed(recipe.seed, AUGMENT, epoch))
            report = loop.train_epoch(epoch, sampler.epoch(epoch), generator, bar.update)
            report = _measure(loop, report, held_out)
            history.append(report.to_json())
            if is_best(history) and recipe.keep == "best":
                best = copy.deepcopy(loop.learner.state_dict())
            if loop.processes.is_writer:
                _save(loop, folder, rows, history, best)
            bar.set_postfix_str(f"epoch {epoch + 1}/{recipe.epochs}, {report.describe()}")
            if on_epoch is not None:
                on_epoch(report)
    if best is not None:
        loop.learner.load_state_dict(best)


def is_best(history: Sequence[dict[str, float]]) -> bool:
    """Return whether the last epoch was measured and has a better held-out mAP than all before it.

    Example:
        >>> is_best([{"held_out_mAP": 0.5}, {"loss": 1.0}, {"held_out_mAP": 0.6}])
        True
    """
    measured = [line[MAP] for line in history if MAP in line]
    return bool(measured) and MAP in history[-1] and all(measured[-1] > value for value in measured[:-1])


def is_finished_early(history: Sequence[dict[str, float]], recipe: Train) -> bool:
    """Return whether the held-out mAP did not rise in the last ``train.patience`` measurements.

    Example:
        >>> history = [{"held_out_mAP": value} for value in (0.5, 0.6, 0.6, 0.55)]
        >>> [is_finished_early(history, Train(patience=patience)) for patience in (0, 2, 3)]
        [False, True, False]
    """
    measured = [line[MAP] for line in history if MAP in line]
    if not recipe.patience or not measured:
        return False
    return len(measured) - 1 - measured.index(max(measured)) >= recipe.patience


def derive_seed(seed: int, *part: int) -> int:
    """Derive an independent 63-bit seed for each use of the experiment's one seed."""
    return int(np.random.SeedSequence([seed, *part]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _measure(loop: TrainingLoop, report: EpochReport, held_out: HeldOutSet | None) -> EpochReport:
    """Add the scores of held-out identities, where this epoch is one to measure; process 0 measures for all."""
    recipe = loop.recipe
    due = recipe.validate_every and (report.epoch % recipe.validate_every == 0 or report.epoch == recipe.epochs)
    if held_out is None or not due:
        return report
    scores = held_out.measure(loop.learner.embedder, loop.transform) if loop.processes.is_writer else {}
    return replace(report, held_out=loop.processes.broadcast(scores))


def _save(
    loop: TrainingLoop, folder: RunFolder, rows: TrainingRows, history: History, best: dict[str, Any] | None
) -> None:
    """Save the checkpoint first and the metrics after it, so that the metrics never describe an unsaved epoch."""
    state = {
        "samples": rows.digest,
        "learner": loop.learner.state_dict(),
        "optimizer": loop.optimizer.state_dict(),
        "scaler": loop.scaler.state_dict(),
        "history": history,
    }
    folder.save_state(state if best is None else {**state, "best": best})
    _save_history(folder, history)


def _save_history(folder: RunFolder, history: History) -> None:
    folder.save_metrics(history)
    folder.save_curves(curves_svg(history))


def _restore(loop: TrainingLoop, folder: RunFolder, rows: TrainingRows) -> tuple[History, dict[str, Any] | None]:
    """Load the last checkpoint into the loop, if there is one.

    Returns:
        The metrics of the epochs so far, and the network of the best one, where it is kept.
    """
    state = loop.processes.broadcast(folder.load_state() if loop.processes.is_writer else None)
    if state is None:
        return [], None
    if state["samples"] != rows.digest:
        raise DataError(
            f"{folder.path}: the training rows are not those this run began with;"
            " restore the data, or train into another folder"
        )
    try:
        loop.learner.load_state_dict(state["learner"])
        loop.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):  # empty unless the training is in float16
            loop.scaler.load_state_dict(state["scaler"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{folder.state}: the checkpoint does not fit the network of this version; delete it to start over"
        ) from error
    history: History = list(state["history"])
    if loop.processes.is_writer:  # the run may have ended between the checkpoint and these files
        _save_history(folder, history)
    return history, state.get("best")
