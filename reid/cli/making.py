"""Commands that make data, networks and camera profiles: synth, train, calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reid.cli.options import (
    Backbone,
    Data,
    PriorSource,
    Root,
    Size,
    Weights,
    finite,
    parsed_domain_fields,
    prior_source,
    read_samples,
    stopped,
)
from reid.errors import ConfigError, unknown_name
from reid.records import Split

commands = typer.Typer()


@commands.command(epilog="Example: reid synth data/street --seed 0 --identities 120")
def synth(
    out: Annotated[Path, typer.Argument(help="folder to make, or to complete")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    identities: Annotated[int, typer.Option(min=0, help="test people at each site")] = 120,
    train_identities: Annotated[int | None, typer.Option(min=0, help="people of split train at each site")] = None,
    vehicles: Annotated[int | None, typer.Option(min=0, help="test vehicles at each site")] = None,
    train_vehicles: Annotated[int | None, typer.Option(min=0, help="vehicles of split train at each site")] = None,
    crops: Annotated[int, typer.Option(min=2, help="images of each identity in each camera")] = 4,
    site: Annotated[list[str] | None, typer.Option(help="street-a, street-b; repeatable; default: both")] = None,
    workers: Annotated[int, typer.Option(min=0, help="processes; 0: all cores")] = 0,
) -> None:
    """Make the synthetic street: people and vehicles seen by visible and infrared cameras."""
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


@commands.command(epilog="Example: reid train scripts/experiments/street.toml --set train.epochs=3")
def train(
    experiment: Annotated[Path, typer.Argument(help="a TOML file, see scripts/experiments/")],
    out: Annotated[Path | None, typer.Option(help="folder of the run; default: runs/<name of the file>")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override; repeatable")] = None,
) -> None:
    """Train an experiment, or continue it after an interruption; prints the weights file."""
    from reid.config import load_config
    from reid.pipeline import claim_folder
    from reid.training import train as run

    chosen = load_config(experiment, sets or ())
    folder = claim_folder(out or Path("runs") / experiment.stem)
    try:
        typer.echo(run(chosen, folder, progress=True))
    except KeyboardInterrupt:
        typer.echo(f"interrupted; the same command continues {folder} after its last complete epoch", err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        raise ConfigError(stopped(folder, error)) from error


@commands.command(epilog="Example: reid calibrate --data crops/manifest.csv --out profiles.safetensors")
def calibrate(
    out: Annotated[Path, typer.Option(help="profiles file to write")],
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    by: Annotated[
        str, typer.Option(help='fields that name a domain, such as "domain/camera"; default: the weights\' own')
    ] = "",
    split: Annotated[
        Split | None, typer.Option(help="rows to measure; default: train if there are any, else all")
    ] = None,
    min_images: Annotated[int, typer.Option(min=1, help="refuse a camera with fewer")] = 2,
    prior: Annotated[
        float,
        typer.Option(min=0, callback=finite, help="few images: count so many of elsewhere beside a camera's own"),
    ] = 0.0,
    prior_from: PriorSource = "cameras",
    only: Annotated[list[str] | None, typer.Option(help="measure this camera only; repeatable")] = None,
    sample_by: Annotated[
        str, typer.Option(help='"track": one crop of each, the middle one; needs the column track of "reid ingest"')
    ] = "",
    apart: Annotated[
        float,
        typer.Option(
            min=0, callback=finite, help="seconds between two crops of a camera: of a passing one stays; needs times"
        ),
    ] = 0.0,
) -> None:
    """Measure the statistics of every camera from unlabelled crops."""
    from reid.cli.cameras import measured_rows
    from reid.data.manifest import check_files
    from reid.data.selection import keep_min_gap, keep_one_of_each_track, select_domains
    from reid.models.calibration import calibrate_checkpoint
    from reid.pipeline import claim_output, load_checkpoint_for, progress_bar, workers

    if sample_by not in ("", "track"):
        raise ConfigError(unknown_name("--sample-by", sample_by, ("track",)))
    source = prior_source(prior, prior_from)
    claim_output(out, "reid-profiles-", data)
    rows = measured_rows(read_samples(data, root), split)
    check_files(rows)
    checkpoint = load_checkpoint_for(weights, backbone, size)
    fields = parsed_domain_fields(by) or checkpoint.domain_fields or ("camera",)
    rows = select_domains(rows, fields, only) if only else rows
    rows = keep_one_of_each_track(rows, fields) if sample_by else rows
    rows = keep_min_gap(rows, fields, apart) if apart else rows
    with progress_bar("calibrating", len(rows)) as progress:
        profiles = calibrate_checkpoint(
            checkpoint,
            rows,
            domain_fields=fields,
            minimum=min_images,
            prior=prior,
            prior_from=source,
            workers=workers(),
            progress=progress,
        )
    profiles.save(out)
    for name, images in zip(profiles.domains, profiles.images, strict=True):
        typer.echo(f"{name}\t{images} images")
