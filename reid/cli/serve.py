"""``reid serve``: serve the application."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reid.cli.network_options import NetworkCommand
from reid.cli.options import Backbone, ProfileFiles

commands = typer.Typer()

UsersFile = Annotated[
    Path | None,
    typer.Option(help='Users file of "reid users add". Without one, only this machine is served, without a login.'),
]
HostNames = Annotated[
    list[str] | None,
    typer.Option(
        help="Host name under which the page is opened, as behind a proxy. Can be repeated. Default: those of"
        " this machine."
    ),
]
StateFolder = Annotated[
    Path | None,
    typer.Option(help="Folder for jobs, the log of searches and crops that are sent. Default: GALLERY-state."),
]
ImportFolders = Annotated[
    list[Path] | None, typer.Option(help="Folder below which jobs may read data. Can be repeated. Default: none.")
]
Purposes = Annotated[
    list[str] | None,
    typer.Option(help="Purpose that a search has to name, one of these. Can be repeated. Default: none is asked for."),
]
WebhookAddress = Annotated[
    str | None, typer.Option(help="Address that is told which person a camera has seen. Default: none.")
]
AnswersClients = Annotated[
    bool,
    typer.Option("--gradio-client", help="Answer programs that use gradio_client as well, under /client."),
]


@commands.command(cls=NetworkCommand, epilog="Example: reid serve --gallery galleries/crops --port 7860")
def serve(
    port: Annotated[int, typer.Option(help="Port to serve on. 0 takes any free port.")] = 7860,
    host: Annotated[str, typer.Option(help="Address to serve on. Default: this machine only.")] = "127.0.0.1",
    gallery: Annotated[
        Path | None,
        typer.Option(
            help='Folder of a gallery that is shown as it is; "reid index build" and "reid index create" make one.'
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Manifest, or folder that holds manifest.csv or whose subfolders do. In a folder without any files,"
            " the synthetic street is drawn. Default: data/street."
        ),
    ] = None,
    galleries: Annotated[
        Path | None, typer.Option(help="Folder for the computed galleries. Default: galleries.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights file of the network to show. Default: the shipped weights.")
    ] = None,
    backbone: Backbone = None,
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
    users: UsersFile = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate file (PEM), for https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="File of the certificate's key (PEM).")] = None,
    allow_host: HostNames = None,
    state: StateFolder = None,
    import_folder: ImportFolders = None,
    purpose: Purposes = None,
    gradio_client: AnswersClients = False,
    webhook: WebhookAddress = None,
) -> None:
    """Serve the application on a page for this machine's browser: a gallery, or the synthetic street without any.

    Beside it, /api answers other programs. Elsewhere than on this machine (--host), a users file is needed. Crops that
    other programs add to the gallery or remove from it are noticed at once.
    """
    from reid.app.application import main

    given = {
        "--port": port, "--host": host, "--gallery": gallery, "--data": data, "--galleries": galleries,
        "--weights": weights, "--backbone": backbone, "--plain": plain, "--identities": identities,
        "--users": users, "--tls-cert": tls_cert, "--tls-key": tls_key, "--state": state, "--webhook": webhook,
    }  # fmt: skip
    repeated = {
        "--profiles": profiles, "--allow-host": allow_host, "--import-folder": import_folder, "--purpose": purpose,
    }  # fmt: skip
    arguments = [f"{name}={value}" for name, value in given.items() if value is not None]
    arguments += [f"{name}={value}" for name, values in repeated.items() for value in values or ()]
    arguments += ["--gradio-client"] * gradio_client
    raise typer.Exit(main(arguments))
