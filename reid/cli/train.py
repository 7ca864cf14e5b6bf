"""``reid train``: train one experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reid.cli.options import stopped
from reid.errors import ConfigError

commands = typer.Typer()


@commands.command(epilog="Example: reid train scripts/experiments/street.toml --set train.epochs=3")
def train(
    experiment: Annotated[
        Path, typer.Argument(help="TOML file that describes the training, such as scripts/experiments/street.toml.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/<name of the file>.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the experiment. Can be repeated."),
    ] = None,
) -> None:
    """Train an experiment, or continue it after an interruption, and print the path of the weights."""
    from reid.config import load_config
    from reid.files import prepare_output_folder

    chosen = load_config(experiment, sets or ())
    folder = prepare_output_folder(out or Path("runs") / experiment.stem)
    from reid.training import train as run

    try:
        typer.echo(run(chosen, folder, progress=True))
    except KeyboardInterrupt:
        typer.echo(f"interrupted; the same command continues {folder} after its last complete epoch", err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        raise ConfigError(stopped(folder, error)) from error
