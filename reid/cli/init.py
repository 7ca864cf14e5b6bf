"""``reid init``: write a manifest for a folder of crops."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from reid.data.folder_layouts import Layout

commands = typer.Typer()


@commands.command(epilog='Example: reid init crops --pattern "{camera}/{identity}_{time}.jpg"')
def init(
    folder: Annotated[Path, typer.Argument(help="Folder of crops, as camera/identity/*.jpg or identity/*.jpg.")],
    pattern: Annotated[
        str | None,
        typer.Option(
            help="How paths are built from {camera} {identity} {time} {modality} {category} {split}. * stands for"
            " anything."
        ),
    ] = None,
    category: Annotated[str, typer.Option(help="What the crops show: person, vehicle, ...")] = "person",
    infrared: Annotated[
        list[str] | None, typer.Option(help="Camera that records infrared light. Can be repeated. Default: none.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="The folder is a published data set: market1501, regdb:trial=3, ...")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a manifest that is there already.")] = False,
) -> None:
    """Write a manifest for a folder of crops or for a published data set, and print what was found.

    Without {split} in the pattern, every crop of a folder is in the gallery.  The first crop of each identity in each
    camera is also a query, if another camera shows the identity.
    """
    from reid.data.crop_folder import init_manifest, init_protocol

    if protocol and infrared:
        raise typer.BadParameter("a published data set says itself which cameras are infrared; leave --infrared out")
    if protocol and pattern:
        raise typer.BadParameter("a published data set is read by its protocol; leave --pattern out")
    if protocol:
        found = init_protocol(folder, protocol, overwrite=force)
    else:
        choose = ask_layout if sys.stdin.isatty() and sys.stdout.isatty() else None
        found = init_manifest(
            folder, pattern, category=category, overwrite=force, choose=choose, infrared=infrared or ()
        )
    for line in found.lines():
        typer.echo(line)


def ask_layout(layouts: Sequence[Layout]) -> Layout:
    """Ask in the terminal what the folders mean."""
    typer.echo("It is not clear what the folders mean:")
    for number, layout in enumerate(layouts, start=1):
        typer.echo(f"  {number}  {layout.meaning}")
    chosen = 0
    while not 1 <= chosen <= len(layouts):
        chosen = typer.prompt("Which is it", default=1, type=int)
    return layouts[chosen - 1]
