"""``reid recipe``: train the recipe of a published result on its data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.cli.train import Cache, Sets, TensorBoard, train_in

if TYPE_CHECKING:
    from reid.config import Experiment

commands = typer.Typer()
SECONDS = 20.0  # to measure the time of an epoch


@commands.command(epilog="Example: reid recipe market1501-cbn --root data/market1501")
def recipe(
    name: Annotated[str, typer.Argument(help="Name of the recipe, such as market1501-cbn; list prints all.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the published data set.")] = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="Initial weights. Default: where the recipe expects them.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/<name>.")] = None,
    sets: Sets = None,
    cache: Cache = None,
    tensorboard: TensorBoard = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="State what is expected and do not train.")] = False,
) -> None:
    """Train the recipe of a published result, or continue it, and print the path of the weights.

    Before it starts, the command states the published figure, what was never run here, the memory that the training
    needs, and the time of an epoch, which it measures on this machine.
    """
    if root is None and name != "list":
        raise typer.BadParameter("expected --root, the folder of the data set", param_hint="--root")
    from reid.training.published_recipes import read_recipe, recipe_names

    if root is None or name == "list":
        for known in recipe_names():
            typer.echo(f"{known}\t{read_recipe(known).target}")
        return
    found = read_recipe(name)
    from reid.config import apply_sets
    from reid.training.processes import rank_and_count
    from reid.training.published_recipes import with_root, write_manifest

    is_first = rank_and_count()[0] == 0
    if is_first:
        write_manifest(found, root)
    experiment = apply_sets(with_root(found, root, start), sets or ())
    if is_first:
        for line in (found.target, *found.remarks, *_measured(experiment)):
            typer.echo(line, err=not dry_run)
    if not dry_run:
        train_in(out or Path("runs") / name, lambda _: experiment, cache, tensorboard)


def _measured(experiment: Experiment) -> tuple[str, ...]:
    """Say what the training needs on this machine."""
    from reid.training.forecast import forecast
    from reid.training.initial_weights import load_initial_weights
    from reid.training.row_choice import choose_rows
    from reid.training.training_data import read_training_rows

    resolved, rows = read_training_rows(experiment)
    rows, _, _ = choose_rows(rows, resolved)
    return forecast(resolved, rows, load_initial_weights(resolved.network), SECONDS).lines()
