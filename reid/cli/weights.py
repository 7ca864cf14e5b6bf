"""``reid weights``: list public weights and fetch one."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from reid.cli.options import AsJson

commands = typer.Typer()
weights = typer.Typer(help="List public weights, and fetch one by its name.", no_args_is_help=True)
commands.add_typer(weights, name="weights")


@weights.command("list", epilog="Example: reid weights list")
def weights_list(as_json: AsJson = False) -> None:
    """Print the public weights that this program can load: name, backbone, training data, licence, source and hash.

    Nothing is fetched.  The hash is the beginning of the SHA-256, where the publisher states it; the Hugging Face
    hub states that of a file when it is fetched.
    """
    from reid.models.weights.public_weights import public_weights

    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in public_weights()], indent=2))
        return
    for entry in public_weights():
        source = f"from {entry.page}" if entry.url else f"by hand from {entry.page}"
        stated = f"\tsha256 {entry.sha256}" if entry.sha256 else "\tsha256 stated by the hub" if entry.hub else ""
        typer.echo(f"{entry.name}\t{entry.backbone}\t{entry.trained_on}\t{entry.licence}\t{source}{stated}")


@weights.command("get", epilog="Example: reid weights get osnet_x0_25_msmt17 --out weights")
def weights_get(
    name: Annotated[str, typer.Argument(help='Name that "reid weights list" prints.')],
    out: Annotated[Path, typer.Option(help="Folder for the file.")] = Path("weights"),
) -> None:
    """Download public weights, check them, and print how to use them."""
    from tqdm import tqdm

    from reid.files import prepare_output_folder
    from reid.models.weights.public_weights import fetch, find_weights

    entry = find_weights(name)
    prepare_output_folder(out)
    with tqdm(desc=name, unit="B", unit_scale=True, dynamic_ncols=True, file=sys.stderr, leave=False) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        fetched = fetch(entry, out, progress=show)
    typer.echo(f"{fetched.path}\t{fetched.verdict}")
    size = f" --size {entry.size[0]} {entry.size[1]}" if entry.size else ""
    typer.echo(f"use it with --weights {fetched.path} --backbone {entry.backbone}{size}")
    typer.echo(f"trained on {entry.trained_on}; licence {entry.licence}; {entry.page}")
