"""Verbs of ``reid index`` that look after a gallery: ``tune``, ``compact`` and ``verify``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from reid.cli.gallery_options import Folder, Place
from reid.cli.index_milvus import milvus_uri
from reid.cli.options import AsJson

commands = typer.Typer()


@commands.command("tune", epilog="Example: reid index tune galleries/crops --index-kind auto --recall 0.99")
def index_tune(
    folder: Folder,
    index_kind: Annotated[
        str,
        typer.Option(
            help="Kind of index: flat (exact, none is needed), fp16, sq8, ivf-flat, ivf-pq, hnsw, or auto, which"
            " chooses by the number of rows."
        ),
    ] = "auto",
    recall: Annotated[
        float, typer.Option(help="Share of the nearest rows that searches shall find; the search settings follow it.")
    ] = 0.99,
    as_json: AsJson = False,
) -> None:
    """Build an approximate index, which makes searches of a large gallery fast, and show its measured recall.

    The recall is measured on rows of the gallery itself. Searches with a filter stay exact with every kind. Rows that
    are added later are compared one by one until the gallery is tuned again. Erasing an identity removes an index
    that holds it, and searches are exact from then on; compacting a gallery builds such an index again.
    """
    from reid.retrieval.stores.index_kinds import check_index_kind

    check_index_kind(index_kind)
    from reid.retrieval.storage import check_gallery

    check_gallery(folder)
    from reid.retrieval.gallery_index import index_gallery

    report = index_gallery(folder, index_kind, recall)
    typer.echo(json.dumps(asdict(report), indent=2) if as_json else f"{folder}\t{report.line}")


@commands.command("compact", epilog="Example: reid index compact galleries/crops")
def index_compact(folder: Place) -> None:
    """Write a gallery anew without removed rows, so that no file holds them any more.

    A gallery of an earlier version is converted, and an index that held removed rows is built again. Searches go on
    meanwhile.
    """
    from reid.retrieval.storage import check_gallery

    if (uri := milvus_uri(folder)) is not None:
        from reid.retrieval.gallery import Gallery

        Gallery.open(uri).compact()
        typer.echo(f"{uri}\tasked Milvus to write its files anew, which it does in its own time")
        return
    check_gallery(folder)
    from reid.retrieval.gallery import Gallery

    gallery = Gallery.open(folder)
    freed = gallery.compact()
    count = len(gallery.rows.segments)
    parts = "one segment" if count == 1 else f"{count} segments"
    typer.echo(f"{folder}\t{len(gallery)} rows in {parts}, {freed:,} bytes less")


@commands.command("verify", epilog="Example: reid index verify galleries/crops")
def index_verify(folder: Place) -> None:
    """Check every byte of a gallery; a damaged or missing file is named, and the exit code is 1."""
    from reid.retrieval.storage import check_gallery

    if (uri := milvus_uri(folder)) is not None:
        from reid.retrieval.gallery import Gallery

        Gallery.open(uri).verify()
        typer.echo(f"{uri}\tevery row can be read, and every vector has unit length")
        return
    check_gallery(folder)
    from reid.retrieval.upkeep import verify_gallery

    verify_gallery(folder)
    typer.echo(f"{folder}\tevery file is as it was written")
