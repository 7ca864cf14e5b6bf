"""The verbs of ``reid index`` that exchange rows: merge, export, import and refresh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reid.cli.gallery_options import Folder, Where
from reid.cli.network_options import NetworkCommand
from reid.cli.options import Backbone, Flip, ProfileFiles, Size, Weights
from reid.errors import ConfigError, unknown_name

commands = typer.Typer()


@commands.command("merge", epilog="Example: reid index merge galleries/all galleries/north galleries/south")
def index_merge(
    folder: Folder,
    others: Annotated[list[Path], typer.Argument(help="Folders of galleries whose rows are added.")],
) -> None:
    """Add the rows of other galleries of the same network; rows that are there already are not added twice.

    The gallery is created where there is none. Rows that were erased from it stay out. Decisions about persons come
    with the rows; "reid identify" finds the persons again.
    """
    from reid.retrieval.storage import check_gallery

    for other in others:
        check_gallery(other)
    from reid.retrieval.exchange import merge_galleries

    for other, added in zip(others, merge_galleries(folder, others), strict=True):
        decisions = f"; {added.decisions} decisions about persons" if added.decisions else ""
        counts = f"added {added.added} rows; {added.known} were there already, {added.barred} stay out"
        typer.echo(f"{other}\t{counts}{decisions}")


@commands.command("export", epilog="Example: reid index export galleries/crops --out crops.parquet")
def index_export(
    folder: Folder,
    out: Annotated[
        Path, typer.Option(help="File to write: .parquet, .npz, .npy (with a .csv beside it) or .safetensors.")
    ],
    where: Where = None,
) -> None:
    """Write vectors and rows of a gallery to a file for other programs, with the column "person" where it has persons.

    "reid identify export" writes the decisions about persons.
    """
    from reid.retrieval.storage import check_gallery

    check_gallery(folder)
    from reid.retrieval.exchange import EXPORTS, export_rows

    if out.suffix.lower() not in EXPORTS:
        raise ConfigError(f"{out}: {unknown_name('suffix', out.suffix, EXPORTS)}")
    count = export_rows(folder, out, where)
    typer.echo(f"{out}\t{count} vectors")


@commands.command("import", epilog="Example: reid index import galleries/other --embeddings f.npy --data manifest.csv")
def index_import(
    folder: Folder,
    embeddings: Annotated[
        Path, typer.Option("--embeddings", help="File of vectors: .npy, .npz, .parquet, .safetensors or a FAISS index.")
    ],
    data: Annotated[
        Path | None, typer.Option("--data", help="Manifest of the vectors, one row for each, in the same order.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--model", help="Name of the model that computed the vectors, kept as fingerprint.")
    ] = None,
) -> None:
    """Add embeddings that another program computed; the gallery is created where there is none.

    Rows of split gallery are added, or all rows where none is of this split. All vectors of a gallery come from one
    model: give files that belong together the same --model. Without it, the fingerprint is a hash of the vectors.
    """
    from reid.retrieval.exchange import import_rows

    added, scaled = import_rows(folder, embeddings, data, name)
    notes = f"; {scaled} vectors were scaled to unit length" if scaled else ""
    typer.echo(f"{folder}\tadded {added.added} rows; {added.known} were there already, {added.barred} stay out{notes}")


@commands.command(
    "refresh", cls=NetworkCommand, epilog="Example: reid index refresh galleries/crops --profiles cameras.safetensors"
)
def index_refresh(
    folder: Folder,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    flip: Flip = False,
) -> None:
    """Give a gallery new profiles or weights, and embed again only the rows whose embeddings change.

    With --profiles, these are the rows of recalibrated cameras. With other --weights, all rows are embedded again.
    Searches go on with the old rows until the new ones are complete.
    """
    from reid.pipeline import check_weights
    from reid.retrieval.storage import check_gallery

    check_gallery(folder)
    if not weights and not profiles:
        raise ConfigError("reid index refresh: what has changed? give --profiles or --weights")
    check_weights(weights, profiles or ())
    from reid.cli.index import with_profiles
    from reid.pipeline import embed_samples, gallery_checkpoint, load_checkpoint
    from reid.retrieval.kept_site import network_files
    from reid.retrieval.query_file import save_queries
    from reid.retrieval.refresh import refresh_gallery, refresh_queries, with_kept_crops

    old = gallery_checkpoint(folder)
    new = load_checkpoint(weights, backbone, size, profiles or (), flip) if weights else with_profiles(old, profiles)
    if flip and not weights:
        raise ConfigError("--flip: belongs to --weights; the gallery's own network embeds as it was built")
    new = with_kept_crops(new, old)
    queries = refresh_queries(folder, old, new, lambda samples: embed_samples(new, samples, "refreshing queries"))
    again, kept = refresh_gallery(
        folder, old, new, lambda samples: embed_samples(new, samples, "refreshing"), network_files(new)
    )
    if queries is not None:
        save_queries(folder, queries)
    typer.echo(f"{folder}\tembedded {again} rows again, kept {kept}; fingerprint {new.fingerprint}")
