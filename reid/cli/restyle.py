"""``reid restyle``: write crops of one camera in the style of another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reid.cli.options import Backbone, Data, ProfileFiles, Root, Weights, data_specs, samples_of

commands = typer.Typer()


@commands.command(
    epilog="Example: reid restyle --data crops/manifest.csv --from c1 --to c5 --out restyled --method moments"
)
def restyle(
    out: Annotated[Path, typer.Option(help="Folder to create or to complete: images and a manifest.")],
    to: Annotated[list[str], typer.Option(help="Camera that the crops shall look like. Can be repeated.")],
    source: Annotated[
        list[str] | None,
        typer.Option("--from", help="Camera whose crops are restyled. Can be repeated. Default: every other camera."),
    ] = None,
    data: Data = None,
    root: Root = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="moments|gram|adain|wct|conditional|dynamic",
            help="moments maps each colour channel so that the crops of the camera get the other camera's mean and"
            " deviation. gram optimizes the pixels of each crop, which is slow. The others change maps of a frozen"
            " network and decode them with a small network that is trained first.",
        ),
    ] = "moments",
    weights: Weights = None,
    backbone: Backbone = None,
    profiles: ProfileFiles = None,
    restyler: Annotated[
        Path | None, typer.Option(help="Trained restyler to use, restyler/weights.safetensors of an earlier folder.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, max=10_000, help="Epochs of the training of a restyler.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training of a restyler.")] = 0,
) -> None:
    """Write crops of some cameras in the style of another camera: those of split train, or all where there is none.

    A crop keeps the identity that it has for training, and gets the name of the other camera.  The manifest marks the
    crops as generated and of split train: they are for training only, and nothing lets them into a query, a gallery or
    the statistics of a camera.  No identity is read.  The same command continues after an interruption.
    """
    from reid.data.manifest import check_files
    from reid.generation.restyle_plan import RestylePlan, check_method
    from reid.pipeline import check_weights, shipped_weights

    check_method(method)
    check_weights(weights, profiles or ())
    samples = samples_of(data, root)
    plan = RestylePlan(tuple(dict.fromkeys(source or ())), tuple(dict.fromkeys(to)))
    check_files([sample for pair in plan.pairs(samples) for sample in pair])
    from reid.generation.restyling import RestyleRequest, restyle_crops

    request = RestyleRequest(
        method,
        weights=weights or shipped_weights(),
        backbone=backbone,
        restyler=restyler,
        profiles=tuple(profiles or ()),
        epochs=epochs,
        seed=seed,
        sources=tuple(data_specs(data)),
    )
    typer.echo(restyle_crops(samples, plan, request, out))
