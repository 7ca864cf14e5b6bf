"""A small trained completion network that several tests use."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.clothed_crops import samples_in, write_clothed
from reid.generation.completion_training import train_completion
from reid.generation.step_training import StepPlan

PEOPLE = 24
PLAN = StepPlan(steps=60, batch=6, learning_rate=4e-3, save_every=20)
CHANNELS = (6, 8, 12)


@pytest.fixture(scope="session")
def clothed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with crops of drawn people and their manifest."""
    folder = tmp_path_factory.mktemp("clothed")
    write_clothed(folder, PEOPLE)
    return folder


@pytest.fixture(scope="session")
def completion_run(tmp_path_factory: pytest.TempPathFactory, clothed: Path) -> Path:
    """The folder of a finished training of a very small completion network."""
    out = tmp_path_factory.mktemp("completion") / "run"
    train_completion(samples_in(clothed, PEOPLE), out, PLAN, channels=CHANNELS, blocks=1)
    return out
