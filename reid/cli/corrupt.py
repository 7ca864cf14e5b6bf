"""``reid corrupt``: write corrupted images of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reid.cli.corruption_options import CorruptionNames, Severity
from reid.cli.options import Data, Root, samples_of
from reid.errors import ConfigError

commands = typer.Typer()


@commands.command(
    epilog="Example: reid corrupt --data crops/manifest.csv --out dirty --corruption spatter --severity 4 --camera c3"
)
def corrupt(
    out: Annotated[Path, typer.Option(help="Folder to create or to complete: images and a manifest.")],
    data: Data = None,
    root: Root = None,
    corruption: CorruptionNames = None,
    severity: Severity = None,
    camera: Annotated[
        list[str] | None,
        typer.Option(help="Camera whose images are corrupted. Can be repeated. Default: all cameras."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")] = 0,
) -> None:
    """Write corrupted images of a data set: noise, blur, weather, digital faults and colour.

    They are the twenty corruptions of the re-identification benchmark (CIL, NeurIPS 2021), applied before any resizing.
    What happens to an image follows from its pixels and the seed.  Infrared images stay grey, and get no change of
    colours.  The same command continues after an interruption.
    """
    from reid.data.corruptions.corrupted_folder import count_corrupted, write_corrupted
    from reid.data.corruptions.corruption_types import CorruptionPlan
    from reid.data.manifest import check_files
    from reid.pipeline import progress_bar, workers

    if not data:
        raise ConfigError("corrupt: name the images to corrupt with --data")
    plan, cameras = CorruptionPlan(tuple(corruption or ()), severity, seed), camera or []
    samples = samples_of(data, root)
    check_files(samples)
    with progress_bar("corrupting", count_corrupted(samples, cameras)) as progress:
        manifest = write_corrupted(samples, out, plan, cameras=cameras, workers=workers(), progress=progress)
    typer.echo(manifest)
