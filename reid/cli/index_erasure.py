"""The verbs of ``reid index`` that remove rows: erase, remove, retain, and restore, which lifts an erasure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.cli.gallery_options import Folder, Place, Where
from reid.cli.index_milvus import erase_in_milvus, milvus_uri, refuse_options, remove_in_milvus
from reid.errors import ConfigError, DataError

if TYPE_CHECKING:
    from reid.retrieval.erasure import ErasedRows
    from reid.retrieval.filters import Filter

commands = typer.Typer()


@commands.command("erase", epilog="Example: reid index erase galleries/crops anna")
def index_erase(
    folder: Place,
    identity: Annotated[str, typer.Argument(help="Identity whose crops are removed.")],
    category: Annotated[str | None, typer.Option(help="Only in this category: person, vehicle, ...")] = None,
) -> None:
    """Remove every crop of an identity from a gallery and from all that the program derived from the same data.

    These are the vectors and records of the gallery, the embeddings of queries in the same folder, and the
    application's other galleries beside it. A salted hash of the name stays, so that the crops do not come back when
    the gallery is built again. The image files and the manifest stay as they are.
    """
    if not identity:
        raise DataError("erase: expected an identity; unlabelled crops belong to no identity")
    if (uri := milvus_uri(folder)) is not None:
        erase_in_milvus(uri, identity, category)
        return
    from reid.retrieval.storage import check_gallery

    check_gallery(folder)
    from reid.retrieval.erasure import erase_identity
    from reid.retrieval.tombstones import read_tombstones

    index_kind = index_kind_of(folder)
    erased = erase_identity(folder, identity, category)
    remaining = [line for one in erased for line in one.remaining]
    if not remaining and not any(one.rows != 0 or one.finished for one in erased):
        where = "" if category is None else f" in category {category}"
        before = "; it was erased before" if read_tombstones(folder).holds(identity, category) else ""
        raise DataError(f'{folder}: no row of identity "{identity}"{where}{before}')
    for one in erased:
        done = "removed, it was damaged" if one.rows is None else f"erased {one.rows} rows of {identity}"
        typer.echo(f"{one.path}\t{'removed what an earlier erasure had left' if one.finished else done}")
    if index_kind != index_kind_of(folder):
        typer.echo(
            f'{folder}: its index "{index_kind}" held these rows and is gone; searches are exact until "reid index'
            ' tune" builds it again',
            err=True,
        )
    _hint_profiles(folder)
    for line in remaining:
        typer.echo(
            f"warning: {line}; it still holds erased rows, which answer no search; mend that, then erase again",
            err=True,
        )
    if remaining:
        raise typer.Exit(1)


def _hint_profiles(folder: Path) -> None:
    """Say what an erasure does not reach where a gallery was built with profiles that hold embeddings of crops."""
    from reid.retrieval.gallery_header import read_header
    from reid.retrieval.storage import SITE_SUFFIX

    if SITE_SUFFIX in read_header(folder)["files"]:
        typer.echo(
            "hint: the profiles that this gallery was built with hold embeddings of crops as well; calibrate again"
            " without the erased ones",
            err=True,
        )


@commands.command("remove", epilog="Example: reid index remove galleries/crops --before 2024-05-01")
def index_remove(
    folder: Place,
    where: Where = None,
    identity: Annotated[list[str] | None, typer.Option(help="Identity to remove. Can be repeated.")] = None,
    person: Annotated[list[str] | None, typer.Option(help="Id or name of a person to remove. Can be repeated.")] = None,
    path: Annotated[list[str] | None, typer.Option(help="Path of a crop to remove. Can be repeated.")] = None,
    track: Annotated[list[str] | None, typer.Option(help="Track to remove. Can be repeated.")] = None,
    camera: Annotated[list[str] | None, typer.Option(help="Camera to remove. Can be repeated.")] = None,
    before: Annotated[
        str | None, typer.Option(help="Remove crops that were taken before this time (ISO 8601).")
    ] = None,
    delete_files: Annotated[bool, typer.Option("--delete-files", help="Delete the images of the crops, too.")] = False,
    allow_again: Annotated[
        bool, typer.Option("--allow-again", help="Let the same crops come back when they are added again.")
    ] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help='Remove the bytes from all files at once, as "reid index compact" does.')
    ] = False,
) -> None:
    """Remove the rows that fulfil all given conditions; no search answers with them from then on.

    Their vectors and labels leave the files with "reid index compact". A receipt without names is kept in the folder.
    Removed crops stay out when the same manifest is added again, until "reid index restore" lifts that.
    """
    uri = milvus_uri(folder)
    if uri is None:
        from reid.retrieval.storage import check_gallery

        check_gallery(folder)
    from reid.retrieval.filters import ColumnCondition, both, equals, parse_where, time_of

    if before is not None:
        time_of(before)
    chosen = both(
        parse_where(where) if where is not None else None,
        _paths(path),
        *(
            equals(n, *v)
            for n, v in (("identity", identity), ("person", person), ("track", track), ("camera", camera))
            if v
        ),
        None if before is None else ColumnCondition("time", "<", (before,)),
    )
    if chosen is None:
        raise ConfigError(
            "reid index remove: which rows? give --where, --identity, --person, --path, --track, --camera or --before"
        )
    if uri is not None:
        refuse_options(uri, person=person, delete_files=delete_files)
        remove_in_milvus(uri, chosen)
        return
    only_identity = identity if identity and not (where or person or path or track or camera or before) else None
    _remove(folder, chosen, only_identity, delete_files, allow_again, compact)


def index_kind_of(folder: Path) -> str:
    """Return the kind of the index of a gallery folder; "flat" where it has none."""
    from reid.retrieval.gallery_header import read_header

    return str(read_header(folder).get("index", {}).get("index_kind", "flat"))


def _paths(paths: Sequence[str] | None) -> Filter | None:
    """Return the filter for the rows of some images, however their paths are written."""
    import os

    from reid.retrieval.filters import equals

    if not paths:
        return None
    spelled = [str(Path(path)) for path in paths]
    spelled += [spell(path) for path in spelled for spell in (os.path.abspath, os.path.relpath)]
    return equals("path", *dict.fromkeys(spelled))


def _remove(
    folder: Path,
    chosen: Filter,
    identities: Sequence[str] | None,
    delete_files: bool,
    allow_again: bool,
    compact: bool,
) -> None:
    from reid.retrieval.erasure import erase_rows
    from reid.retrieval.person_filters import on_paths
    from reid.retrieval.upkeep import compact_gallery, delete_images, selected_paths

    chosen = on_paths(folder, chosen)
    paths = selected_paths(folder, chosen) if delete_files else []
    erased = erase_rows(folder, chosen, forget=not allow_again, identities=identities or ())
    if not any(one.rows != 0 or one.finished for one in erased):
        raise DataError(f"{folder}: no row fulfils these conditions; nothing was removed")
    remaining = [line for one in erased for line in one.remaining]
    if delete_files:
        remaining += delete_images(paths)
    if compact:
        compact_gallery(folder)
    _tell(erased, "rows", remaining)
    if delete_files:
        typer.echo(f"deleted {len(paths)} images")


def _tell(erased: Sequence[ErasedRows], what: str, remaining: Sequence[str]) -> None:
    """Print a line for each gallery and file, and what remains; the exit code is 1 where something does."""
    for one in erased:
        done = "removed, it was damaged" if one.rows is None else f"removed {one.rows} {what}"
        typer.echo(f"{one.path}\t{'removed what an earlier erasure had left' if one.finished else done}")
    for line in remaining:
        typer.echo(f"warning: {line}; it still holds removed rows; mend that, then repeat", err=True)
    if remaining:
        raise typer.Exit(1)


@commands.command("retain", epilog="Example: reid index retain galleries/crops --days 30")
def index_retain(
    folder: Folder,
    days: Annotated[float | None, typer.Option(help="Keep crops so many days from the time they were taken.")] = None,
    forever: Annotated[bool, typer.Option("--forever", help="Keep all crops from now on.")] = False,
) -> None:
    """Keep crops for some days only: older rows are removed now, and whenever rows are added.

    Rows without a time are kept. Run it without --days from a daily job to remove what has become too old since.
    """
    from reid.retrieval.storage import check_gallery

    check_gallery(folder)
    from reid.retrieval.gallery_header import read_header
    from reid.retrieval.upkeep import remove_old_rows, retain

    if days is not None and forever:
        raise ConfigError("--days and --forever: give one of them")
    if days is None and not forever and read_header(folder).get("retention_days") is None:
        raise ConfigError(f"{folder}: keeps all crops; give --days, how many days from now on")
    erased = remove_old_rows(folder) if days is None and not forever else retain(folder, days)
    if forever:
        typer.echo(f"{folder}\tkeeps all crops")
        return
    _tell(erased, "rows that are too old", [line for one in erased for line in one.remaining])


@commands.command("restore", epilog="Example: reid index restore galleries/crops anna")
def index_restore(
    folder: Annotated[Path, typer.Argument(help="Folder of the gallery.")],
    identity: Annotated[str | None, typer.Argument(help="Identity that was erased.")] = None,
    category: Annotated[str | None, typer.Option(help="Only in this category: person, vehicle, ...")] = None,
    path: Annotated[list[Path] | None, typer.Option(help="Path of a crop that was removed. Can be repeated.")] = None,
    removed: Annotated[
        bool, typer.Option("--removed", help='All crops that "reid index remove" removed otherwise than by identity.')
    ] = False,
) -> None:
    """Lift an erasure: the crops come back when the gallery is built again or they are added again."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    from reid.retrieval.erasure import lift_erasure, lift_removal
    from reid.retrieval.tombstones import read_tombstones

    if identity is None:
        if not path and not removed:
            raise ConfigError("reid index restore: what? give an identity, --path or --removed")
        if not (folders := lift_removal(folder, None if removed else path)):
            raise DataError(f"{folder}: none of these crops was removed here")
        for one in folders:
            typer.echo(f"{one}\tlifted the removal of {'all crops' if removed else f'{len(path or ())} crops'}")
        return
    lifted = lift_erasure(folder, identity, category)
    if not lifted:
        before, hint = read_tombstones(folder), ""
        if category is not None and before.holds(identity):
            hint = "; it was erased in every category: leave --category out"
        elif before.paths:
            hint = "; crops that were removed by other conditions come back with --path or --removed"
        raise DataError(f'{folder}: identity "{identity}" was not erased here{hint}')
    for one in lifted:
        typer.echo(f"{one}\tlifted the erasure of {identity}; the next build brings its rows back")
