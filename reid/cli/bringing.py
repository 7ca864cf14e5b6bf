"""Commands that bring others' data and weights: init, weights list, weights get."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()
weights = typer.Typer(help="Public weights by name: list them, fetch one.", no_args_is_help=True)
commands.add_typer(weights, name="weights")


@commands.command(epilog='Example: reid init crops --pattern "{camera}/{identity}_{time}.jpg"')
def init(
    folder: Annotated[Path, typer.Argument(help="folder of crops, as camera/identity/*.jpg or identity/*.jpg")],
    pattern: Annotated[
        str | None,
        typer.Option(help="how paths are made: {camera} {identity} {time} {modality} {domain} {split}, * is anything"),
    ] = None,
    domain: Annotated[str, typer.Option(help="what the crops show: person, vehicle, ...")] = "person",
    force: Annotated[bool, typer.Option("--force", help="write a manifest anew that is there already")] = False,
) -> None:
    """Write a manifest for a folder of crops and say what was found."""
    from reid.data.folder import init_manifest

    for line in init_manifest(folder, pattern, domain=domain, overwrite=force).lines():
        typer.echo(line)


@weights.command("list", epilog="Example: reid weights list")
def weights_list(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Public weights this program can load: name, backbone, training data, licence."""
    from reid.models.registry import public_weights

    if as_json:
        typer.echo(json.dumps([asdict(line) for line in public_weights()], indent=2))
        return
    for line in public_weights():
        way = "" if line.url else f"\tby hand from {line.page}"
        typer.echo(f"{line.name}\t{line.backbone}\t{line.trained_on}\t{line.licence}{way}")


@weights.command("get", epilog="Example: reid weights get osnet_x0_25_msmt17 --out weights")
def weights_get(
    name: Annotated[str, typer.Argument(help="a name that reid weights list prints")],
    out: Annotated[Path, typer.Option(help="folder for the file")] = Path("weights"),
) -> None:
    """Download public weights, check them, and say how to use them."""
    from tqdm import tqdm

    from reid.models.registry import fetch, find_weights

    line = find_weights(name)
    with tqdm(desc=name, unit="B", unit_scale=True, dynamic_ncols=True, file=sys.stderr, leave=False) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        fetched = fetch(line, out, progress=show)
    typer.echo(f"{fetched.path}\t{fetched.verdict}")
    size = f" --size {line.size[0]} {line.size[1]}" if line.size else ""
    typer.echo(f"use it with --weights {fetched.path} --backbone {line.backbone}{size}")
    typer.echo(f"trained on {line.trained_on}; licence {line.licence}; {line.page}")
