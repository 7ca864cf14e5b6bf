"""``reid index``: build a gallery, or erase a person from one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reid.cli.options import (
    Backbone,
    Data,
    Flip,
    ProfileFiles,
    Root,
    Size,
    Unseen,
    Weights,
    for_cameras_of,
    samples_of,
    unseen_policy,
)
from reid.errors import DataError
from reid.records import UnseenCameraPolicy

commands = typer.Typer()
index = typer.Typer(help="Build a gallery, or erase a person from one.", no_args_is_help=True)
commands.add_typer(index, name="index")


@index.command("build", epilog="Example: reid index build --data crops/manifest.csv --out galleries/crops")
def index_build(
    out: Annotated[Path | None, typer.Option(help="Folder of the gallery. Default: galleries/street.")] = None,
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    unseen: Unseen = None,
    flip: Flip = False,
) -> None:
    """Embed the crops of split gallery and save them as a gallery.

    Without --data, the gallery holds both sites of the synthetic street.
    """
    from reid.data.manifest import check_files
    from reid.data.selection import gallery_samples
    from reid.pipeline import DEFAULT_GALLERY, build_gallery, check_weights, load_checkpoint

    default = UnseenCameraPolicy.ERROR if data else UnseenCameraPolicy.CALIBRATE
    unseen_policy(unseen, default)
    check_weights(weights, profiles or ())
    samples = samples_of(data, root)
    check_files(gallery_samples(samples))
    checkpoint = load_checkpoint(weights, backbone, size, profiles or (), flip)
    checkpoint = for_cameras_of(samples, checkpoint, unseen, default)
    folder = out or DEFAULT_GALLERY
    gallery = build_gallery(checkpoint, samples, folder)
    identities = len({(sample.category, sample.identity) for sample in gallery.samples})
    cameras = len({sample.camera for sample in gallery.samples})
    typer.echo(f"{folder}\t{len(gallery)} images of {identities} identities in {cameras} cameras")


@index.command("erase", epilog="Example: reid index erase galleries/crops anna")
def index_erase(
    folder: Annotated[Path, typer.Argument(help="Folder of the gallery.")],
    identity: Annotated[str, typer.Argument(help="Identity whose crops are removed.")],
) -> None:
    """Remove the vectors and records of every crop of an identity from a gallery.

    The crops themselves, the manifest and other galleries stay as they are.
    """
    from reid.retrieval.storage import check_gallery

    check_gallery(folder)
    from reid.retrieval.gallery import Gallery

    erased = Gallery.open(folder).erase(identity)
    if not erased:
        raise DataError(f'{folder}: no row of identity "{identity}"')
    typer.echo(f"{folder}\terased {erased} rows of {identity}")
