"""``reid synth``: draw the synthetic street."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command(epilog="Example: reid synth data/street --seed 0 --identities 120")
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to create or to complete.")],
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the random numbers. Another seed draws another street.")
    ] = 0,
    identities: Annotated[int, typer.Option(min=0, help="Number of people for testing at each site.")] = 120,
    train_identities: Annotated[
        int | None, typer.Option(min=0, help="Number of people of split train at each site.")
    ] = None,
    vehicles: Annotated[int | None, typer.Option(min=0, help="Number of vehicles for testing at each site.")] = None,
    train_vehicles: Annotated[
        int | None, typer.Option(min=0, help="Number of vehicles of split train at each site.")
    ] = None,
    crops: Annotated[int, typer.Option(min=2, help="Number of images of each identity in each camera.")] = 4,
    site: Annotated[
        list[str] | None, typer.Option(help="Site to draw: street-a or street-b. Can be repeated. Default: both.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Number of processes that draw. 0 takes one for each core.")] = 0,
) -> None:
    """Draw the synthetic street: people and vehicles in visible and infrared cameras at two sites."""
    from reid.data.street.generation import StreetPlan
    from reid.pipeline import make_street

    given = {"train_identities": train_identities, "vehicles": vehicles, "train_vehicles": train_vehicles}
    plan = StreetPlan.of(
        identities,
        seed=seed,
        crops=crops,
        **{name: number for name, number in given.items() if number is not None},
        **({"sites": tuple(site)} if site else {}),
    )
    for manifest in make_street(out, plan, workers):
        typer.echo(manifest)
