"""The options of the commands that train a network which writes crops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from reid.cli.options import finite, stopped
from reid.errors import ConfigError

_T = TypeVar("_T")

TrainFlag = Annotated[
    bool,
    typer.Option("--train", help="Train the network on the crops of split train, into the folder --out."),
]
Steps = Annotated[int, typer.Option(min=1, max=10**6, help="Updates of the training.")]
StepSeed = Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")]
LearningRate = Annotated[float, typer.Option(min=1e-7, max=1.0, callback=finite, help="Learning rate of the training.")]
BatchSize = Annotated[int, typer.Option(min=2, max=4096, help="Crops of an update of the training.")]


def run_or_stop(out: Path, run: Callable[[], _T]) -> _T:
    """Run what trains or writes crops, and say how an interrupted command is continued.

    Args:
        out: The folder that it writes to.
        run: Does the work and returns the result.
    """
    try:
        return run()
    except KeyboardInterrupt:
        typer.echo(f"interrupted; the same command continues {out}", err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        raise ConfigError(stopped(out, error)) from error
