"""Which epoch is kept, when a training ends early, and that both survive an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.training_loops import make_loop
from reid.records import Sample
from reid.training import epochs
from reid.training.epochs import is_best, is_finished_early, run_epochs
from reid.training.held_out import MAP, RANK1
from reid.training.loop import TrainingLoop
from reid.training.run_folder import RunFolder
from reid.training.training_data import TrainingRows

ROWS = TrainingRows(tuple(Sample(Path(f"{row}.jpg"), str(row % 4)) for row in range(24)), ())
RECIPE = {"identities_per_batch": 4, "images_per_identity": 2, "visits": 1, "triplet_start": 0.0}


class Script:
    """Stands for held-out identities: it gives the mAP of a list, one after the other, and keeps what it measured."""

    def __init__(self, values: list[float]) -> None:
        self._values: Iterator[float] = iter(values)
        self.weights: list[torch.Tensor] = []

    def measure(self, network: Any, transform: Any) -> dict[str, float]:
        self.weights.append(next(iter(network.parameters())).detach().clone())
        return {MAP: next(self._values), RANK1: 0.5}


def loop_of(**recipe: Any) -> TrainingLoop:
    return make_loop(**{**RECIPE, "epochs": 6, "validate_every": 1, **recipe})


def first_weight(loop: TrainingLoop) -> torch.Tensor:
    return next(iter(loop.learner.embedder.parameters())).detach()


def run(loop: TrainingLoop, folder: Path, script: Script, on_epoch: Any = None) -> list[dict[str, float]]:
    folder.mkdir(exist_ok=True)
    run_epochs(loop, RunFolder(folder), ROWS, False, on_epoch, script)  # type: ignore[arg-type]
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_best_epoch_is_kept_and_a_training_without_progress_ends(tmp_path: Path) -> None:
    script, loop = Script([0.2, 0.6, 0.5, 0.6, 0.9]), loop_of(keep="best", patience=2)
    history = run(loop, tmp_path / "run", script)
    assert [line[MAP] for line in history] == [0.2, 0.6, 0.5, 0.6]
    assert torch.equal(first_weight(loop), script.weights[1])
    again, nothing = loop_of(keep="best", patience=2), Script([])
    assert run(again, tmp_path / "run", nothing) == history
    assert torch.equal(first_weight(again), script.weights[1])


def test_the_last_epoch_is_kept_by_default(tmp_path: Path) -> None:
    script, loop = Script([0.9, 0.1]), loop_of(epochs=2)
    run(loop, tmp_path / "run", script)
    assert torch.equal(first_weight(loop), script.weights[-1])


def test_an_interrupted_training_remembers_the_best_epoch(tmp_path: Path) -> None:
    def stop(report: Any) -> None:
        if report.epoch == 3:
            raise KeyboardInterrupt

    first, second = Script([0.2, 0.6, 0.5]), Script([0.4, 0.3, 0.2])
    with pytest.raises(KeyboardInterrupt):
        run(loop_of(keep="best"), tmp_path / "run", first, stop)
    loop = loop_of(keep="best")
    assert len(run(loop, tmp_path / "run", second)) == 6
    assert torch.equal(first_weight(loop), first.weights[1])


def test_epochs_are_measured_as_often_as_asked_and_at_the_end(tmp_path: Path) -> None:
    history = run(loop_of(epochs=5, validate_every=2), tmp_path / "run", Script([0.1, 0.2, 0.3]))
    assert [line["epoch"] for line in history if MAP in line] == [2, 4, 5]
    assert (tmp_path / "run" / "curves.svg").read_text().startswith("<svg")


def test_measuring_changes_no_weight(tmp_path: Path) -> None:
    measured, plain = loop_of(epochs=2), loop_of(epochs=2, validate_every=0)
    run(measured, tmp_path / "a", Script([0.1, 0.2]))
    (tmp_path / "b").mkdir()
    run_epochs(plain, RunFolder(tmp_path / "b"), ROWS, False, None)
    for one, other in zip(measured.learner.state_dict().values(), plain.learner.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_tie_is_no_progress() -> None:
    history = [{MAP: 0.5}, {MAP: 0.5}]
    assert not is_best(history)
    assert is_finished_early(history, loop_of(patience=1).recipe)
    assert not is_finished_early([], loop_of(patience=1).recipe)
    assert not is_best([{MAP: 0.5}, {"loss": 1.0}])


def test_seeds_of_different_uses_differ() -> None:
    parts = [epochs.derive_seed(0, use, epoch) for use in range(4) for epoch in range(3)]
    assert len(set(parts)) == 12
    assert replace(ROWS, samples=ROWS.samples[:8]).digest != ROWS.digest
