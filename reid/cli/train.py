"""``reid train``: train one experiment, or choose one for somebody's own data and train it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.cli.options import Backbone, stopped
from reid.errors import ConfigError

if TYPE_CHECKING:
    from reid.config import Experiment
    from reid.training.loop import EpochReport
    from reid.training.processes import Processes

commands = typer.Typer()

Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder in which decoded crops are kept and mapped into memory. Default: memory, or the folder of the run"
        " where they would take more than half of the free memory."
    ),
]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Also write the metrics for TensorBoard into the folder of the run.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the experiment. Can be repeated."),
]


@commands.command(
    epilog="Example: reid train scripts/experiments/street.toml --set train.epochs=3. With own data: reid train --data"
    " animals/manifest.csv --from weights/mobilenet_v2_imagenet.pth --backbone mobilenet_v2"
)
def train(
    experiment: Annotated[
        Path | None,
        typer.Argument(help="TOML file that describes the training, such as scripts/experiments/street.toml."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Manifest, or folder with manifest.csv, to choose an experiment for, in place of a TOML file. Can be"
            " repeated."
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help='With --data: the weights to start from, a file or a name of "reid weights list"; scratch starts from'
            " random numbers. Default: the shipped weights.",
        ),
    ] = None,
    backbone: Backbone = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. Default: runs/<name of the file, or of the data>.")
    ] = None,
    sets: Sets = None,
    cache: Cache = None,
    tensorboard: TensorBoard = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --data: print the chosen experiment and do not train.")
    ] = False,
) -> None:
    """Train an experiment, or continue it after an interruption, and print the path of the weights.

    With --data, an experiment is chosen from the data and shown.  Several processes started by torchrun share every
    batch.
    """
    _check_usage(experiment, data, start, dry_run)
    folder = out or Path("runs") / _name_of(experiment, data or [])
    if experiment is not None:
        from reid.config import load_config

        file = experiment
        given = load_config(file, sets or ()) if _is_alone() else None  # else an error is told once, when all joined
        train_in(folder, lambda _: given or load_config(file, sets or ()), cache, tensorboard)
        return
    from reid.cli.own_data import choose_for_data

    def choose(processes: Processes) -> Experiment:
        found = choose_for_data(data or [], start, backbone, sets or (), folder) if processes.is_writer else None
        agreed = processes.broadcast(found)
        if agreed is None:
            raise ConfigError("process 0 chose no experiment")
        return agreed

    if dry_run:
        from reid.config import to_toml

        typer.echo(to_toml(choose_for_data(data or [], start, backbone, sets or (), folder)), nl=False)
        return
    train_in(folder, choose, cache, tensorboard)


def train_in(
    folder: Path, choose: Callable[[Processes], Experiment], cache: Path | None, tensorboard: bool = False
) -> None:
    """Train in a folder, in all processes that torchrun started, and print the path of the weights once.

    Args:
        folder: The folder of the run.
        choose: Gives the experiment; it is called in every process.
        cache: Where decoded crops are kept.
        tensorboard: Whether metrics are also written for TensorBoard.
    """
    from reid.files import prepare_output_folder

    if _is_alone():
        prepare_output_folder(folder)
    from reid.training import train as run
    from reid.training.processes import SilentExit, joined_processes

    try:
        with joined_processes(f"the same command continues {folder} after its last complete epoch") as processes:
            log = _tensorboard(folder) if tensorboard and processes.is_writer else None
            weights = run(
                choose(processes),
                folder,
                progress=processes.is_writer,
                on_epoch=log,
                cache=cache,
                processes=processes,
                say=lambda note: typer.echo(note, err=True),
            )
    except SilentExit:
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo(f"interrupted; the same command continues {folder} after its last complete epoch", err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        raise ConfigError(stopped(folder, error)) from error
    if processes.is_writer:
        typer.echo(weights)


def _is_alone() -> bool:
    """Return whether torchrun started no other process, without importing PyTorch."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


def _check_usage(experiment: Path | None, data: list[str] | None, start: str | None, dry_run: bool) -> None:
    if experiment is None and not data:
        raise typer.BadParameter("expected 'experiment', a TOML file, or --data with a manifest to choose one for")
    if experiment is not None and (data or start or dry_run):
        raise typer.BadParameter("--data, --from and --dry-run choose an experiment, so no TOML file goes with them")


def _name_of(experiment: Path | None, data: list[str]) -> str:
    """Name the run after the experiment file, or after the first manifest or its folder."""
    if experiment is not None:
        return experiment.stem
    first = Path(data[0])
    return (first.resolve().parent.name if first.stem == "manifest" else first.stem) or "own"


def _tensorboard(folder: Path) -> Callable[[EpochReport], None]:
    from reid.training.tensorboard_log import tensorboard_log

    return tensorboard_log(folder / "tensorboard")
