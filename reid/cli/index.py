"""``reid index``: build a gallery, erase a person from one, or lift an erasure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reid.cli.options import (
    Backbone,
    Data,
    Flip,
    Normalize,
    ProfileFiles,
    Root,
    Size,
    Unseen,
    Weights,
    for_cameras_of,
    normalization_request,
    normalized_for,
    samples_of,
    unseen_policy,
)
from reid.errors import DataError
from reid.records import UnseenCameraPolicy

commands = typer.Typer()
index = typer.Typer(help="Build a gallery, erase a person from one, or lift an erasure.", no_args_is_help=True)
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
    normalize: Normalize = None,
    unseen: Unseen = None,
    flip: Flip = False,
) -> None:
    """Embed the crops of split gallery and save them as a gallery.

    Without --data, the gallery holds both sites of the synthetic street. Crops of identities that were erased from the
    folder are left out until "reid index restore" lifts the erasure.
    """
    from reid.data.manifest import check_files
    from reid.data.selection import gallery_samples
    from reid.pipeline import DEFAULT_GALLERY, build_gallery, check_weights, load_checkpoint
    from reid.retrieval.tombstones import read_tombstones

    default = UnseenCameraPolicy.ERROR if data else UnseenCameraPolicy.CALIBRATE
    unseen_policy(unseen, default)
    normalization_request(normalize, profiles)
    check_weights(weights, profiles or ())
    samples = samples_of(data, root)
    rows, folder = gallery_samples(samples), out or DEFAULT_GALLERY
    check_files(rows)
    read_tombstones(folder)  # a damaged list is an error before the work begins
    checkpoint = load_checkpoint(weights, backbone, size, profiles or (), flip)
    checkpoint = normalized_for(samples, checkpoint, normalize, profiles)
    checkpoint = for_cameras_of(samples, checkpoint, unseen, default)
    gallery = build_gallery(checkpoint, samples, folder)
    if len(gallery) < len(rows):
        typer.echo(
            f"{folder}: left out {len(rows) - len(gallery)} rows of erased identities;"
            ' "reid index restore" lifts an erasure',
            err=True,
        )
    identities = {(sample.category, sample.identity) for sample in gallery.samples}
    labelled = any(name for _, name in identities)
    shown = f"of {len(identities)} identities" if labelled else "of unknown identity"
    cameras = len({sample.camera for sample in gallery.samples})
    typer.echo(f"{folder}\t{len(gallery)} images {shown} in {cameras} cameras")


@index.command("erase", epilog="Example: reid index erase galleries/crops anna")
def index_erase(
    folder: Annotated[Path, typer.Argument(help="Folder of the gallery.")],
    identity: Annotated[str, typer.Argument(help="Identity whose crops are removed.")],
    category: Annotated[
        str | None, typer.Option(help="Erase the identity in this category only: person, vehicle, ... Default: in all.")
    ] = None,
) -> None:
    """Remove every crop of an identity from a gallery and from all that the program derived from the same data.

    These are the vectors and records of the gallery, the embeddings of queries in the same folder, and the
    application's other galleries beside it. A salted hash of the name stays, so that the crops do not come back when
    the gallery is built again. The image files and the manifest stay as they are.
    """
    from reid.retrieval.storage import check_gallery

    check_gallery(folder)
    from reid.retrieval.erasure import erase_identity
    from reid.retrieval.tombstones import read_tombstones

    if not identity:
        raise DataError("erase: expected an identity; unlabelled crops belong to no identity")
    erased = erase_identity(folder, identity, category)
    remaining = [line for one in erased for line in one.remaining]
    if not remaining and not any(one.rows != 0 or one.finished for one in erased):
        where = "" if category is None else f" in category {category}"
        before = "; it was erased before" if read_tombstones(folder).holds(identity, category) else ""
        raise DataError(f'{folder}: no row of identity "{identity}"{where}{before}')
    for one in erased:
        done = "removed, it was damaged" if one.rows is None else f"erased {one.rows} rows of {identity}"
        typer.echo(f"{one.path}\t{'removed what an earlier erasure had left' if one.finished else done}")
    for line in remaining:
        typer.echo(
            f"warning: {line}; it still holds erased rows, which answer no search; mend that, then erase again",
            err=True,
        )
    if remaining:
        raise typer.Exit(1)


@index.command("restore", epilog="Example: reid index restore galleries/crops anna")
def index_restore(
    folder: Annotated[Path, typer.Argument(help="Folder of the gallery.")],
    identity: Annotated[str, typer.Argument(help="Identity that was erased.")],
    category: Annotated[
        str | None, typer.Option(help="Lift the erasure in this category only: person, vehicle, ... Default: in all.")
    ] = None,
) -> None:
    """Lift an erasure: the crops of the identity come back when the gallery is built again."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    from reid.files import remove_partial_files
    from reid.retrieval.erasure import lift_erasure
    from reid.retrieval.tombstones import read_tombstones

    remove_partial_files(folder)  # of a restoring that was killed
    lifted = lift_erasure(folder, identity, category)
    if not lifted:
        hint = "; it was erased in every category: leave --category out"
        whole = category is not None and read_tombstones(folder).holds(identity)
        raise DataError(f'{folder}: identity "{identity}" was not erased here{hint if whole else ""}')
    for one in lifted:
        typer.echo(f"{one}\tlifted the erasure of {identity}; the next build brings its rows back")
