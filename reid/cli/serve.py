"""``reid serve``: serve the application."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reid.cli.network_options import NetworkCommand
from reid.cli.options import ProfileFiles

commands = typer.Typer()


@commands.command(cls=NetworkCommand, epilog="Example: reid serve --port 7860")
def serve(
    port: Annotated[int, typer.Option(help="Port to serve on. 0 takes any free port.")] = 7860,
    host: Annotated[str, typer.Option(help="Address to serve on. Default: this machine only.")] = "127.0.0.1",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder whose subfolders hold manifest.csv. In a folder without any, the synthetic street is drawn."
            " Default: data/street."
        ),
    ] = None,
    galleries: Annotated[
        Path | None, typer.Option(help="Folder for the computed galleries. Default: galleries.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights file of the network to show. Default: the shipped weights.")
    ] = None,
    profiles: ProfileFiles = None,
    plain: Annotated[
        Path | None,
        typer.Option(
            help="Weights file of a plain-BN network to compare with. Default: the two small networks that come with"
            " the program, one with camera BN and one with plain BN."
        ),
    ] = None,
    identities: Annotated[
        int | None, typer.Option(min=1, help="People for testing at each site of a street that is drawn.")
    ] = None,
) -> None:
    """Serve the application: search, scores and cameras on a page for this machine's browser."""
    from reid.app.application import main

    given = {
        "--port": port, "--host": host, "--data": data, "--galleries": galleries, "--weights": weights,
        "--plain": plain, "--identities": identities,
    }  # fmt: skip
    arguments = [f"{name}={value}" for name, value in given.items() if value is not None]
    raise typer.Exit(main([*arguments, *(f"--profiles={path}" for path in profiles or ())]))
