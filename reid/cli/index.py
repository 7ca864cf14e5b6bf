"""``reid index``: build a gallery, let it grow, ask what it holds, and look after it.

The verbs that remove rows are in :mod:`reid.cli.index_erasure`, those that exchange rows with other galleries and
programs in :mod:`reid.cli.index_exchange`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reid.cli import index_erasure, index_exchange, index_tuning
from reid.cli.gallery_options import Place, Where, check_domains, filter_of, rows_and_columns
from reid.cli.index_milvus import add_in_milvus, milvus_uri, network_of_milvus, refuse_options
from reid.cli.network_options import NetworkCommand, ReadingCommand
from reid.cli.options import (
    AsJson,
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
from reid.cli.search import SearchRequest, search_gallery
from reid.errors import ConfigError, DataError
from reid.records import Modality, UnseenCameraPolicy, sample_columns

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint

commands = typer.Typer()
index = typer.Typer(
    help="Build a gallery, let it grow, search it, remove people from it, and look after it.", no_args_is_help=True
)
commands.add_typer(index, name="index")

KeepsThumbnails = Annotated[
    bool, typer.Option("--thumbnails", help="Keep a small JPEG image of each new crop, of at most 10 KB.")
]


@index.command(
    "build", cls=ReadingCommand, epilog="Example: reid index build --data crops/manifest.csv --out galleries/crops"
)
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
    thumbnails: KeepsThumbnails = False,
) -> None:
    """Embed the crops of split gallery and save them as a gallery.

    Without --data, the gallery holds both sites of the synthetic street. Crops of identities that were erased from the
    folder are left out until "reid index restore" lifts the erasure.
    """
    from reid.data.manifest import check_files
    from reid.data.selection import gallery_samples
    from reid.data.unreadable import count_unreadable
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
    gallery = build_gallery(checkpoint, samples, folder, thumbnails)
    erased = len(rows) - len(gallery) - count_unreadable(rows)
    if erased:
        typer.echo(
            f'{folder}: left out {erased} rows of erased identities; "reid index restore" lifts an erasure',
            err=True,
        )
    identities = {(sample.category, sample.identity) for sample in gallery.samples}
    labelled = any(name for _, name in identities)
    shown = f"of {len(identities)} identities" if labelled else "of unknown identity"
    cameras = len({sample.camera for sample in gallery.samples if sample.camera})
    where = f"in {cameras} camera{'s' * (cameras != 1)}" if cameras else "of unknown cameras"
    typer.echo(f"{folder}\t{len(gallery)} images {shown} {where}")


@index.command(
    "create", cls=NetworkCommand, epilog="Example: reid index create galleries/crops --weights street.safetensors"
)
def index_create(
    folder: Place,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    unseen: Unseen = None,
    flip: Flip = False,
) -> None:
    """Create an empty gallery with the network that will embed its crops and its queries.

    Milvus keeps no network, so give the same weights and profiles to every command that embeds.
    "reid index add" gives it rows. --unseen-camera nearest or mixture also holds for cameras that come later.
    """
    from reid.pipeline import check_weights, load_checkpoint
    from reid.retrieval.kept_site import network_files

    policy = unseen_policy(unseen)
    if policy in (UnseenCameraPolicy.CALIBRATE, UnseenCameraPolicy.PRIOR):
        raise DataError(f'--unseen-camera {policy}: needs crops, so give it to "reid index add"')
    check_weights(weights, profiles or ())
    checkpoint = load_checkpoint(weights, backbone, size, profiles or (), flip)
    checkpoint = for_cameras_of((), checkpoint, unseen)
    from reid.retrieval.embed import dimension_of
    from reid.retrieval.gallery import Gallery

    network = network_files(checkpoint) if milvus_uri(folder) is None else None
    Gallery.create(folder, checkpoint.fingerprint, dimension_of(checkpoint), network)
    typer.echo(f"{folder}\tempty, {checkpoint.fingerprint}")


@index.command("add", cls=ReadingCommand, epilog="Example: reid index add galleries/crops --data today/manifest.csv")
def index_add(
    folder: Place,
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    profiles: ProfileFiles = None,
    unseen: Unseen = None,
    thumbnails: KeepsThumbnails = False,
    as_json: AsJson = False,
) -> None:
    """Embed the crops of split gallery that the gallery does not have yet, and add them.

    A crop is known by its path and its content. Where its content or labels have changed, its row is replaced. Crops
    that were removed or erased stay out. The network is the gallery's own; --profiles adds statistics of new cameras.
    A gallery in Milvus has none: give the --weights and --profiles that it was created with.
    A command that was stopped goes on where it was when it is repeated. Searches and the page see the new rows at once.
    """
    from reid.data.manifest import check_files
    from reid.retrieval.storage import check_gallery

    uri = milvus_uri(folder)
    if uri is None:
        check_gallery(folder)
        if weights:
            raise ConfigError('--weights: the gallery has its own network; "reid index refresh" gives it another one')
    if not data:
        raise DataError("reid index add: which crops? give their manifest by --data")
    every_sample, samples, more = rows_and_columns(data, root)
    check_files(samples)
    from reid.data.loading import readable_rows
    from reid.pipeline import workers

    kept = readable_rows(samples, workers=workers())
    samples, more = tuple(samples[i] for i in kept), {name: [more[name][i] for i in kept] for name in more}
    if uri is not None:
        refuse_options(uri, thumbnails=thumbnails)
        add_in_milvus(uri, samples, more, network_of_milvus(every_sample, weights, profiles, unseen), as_json)
        return
    from reid.pipeline import check_weights, embed_samples, gallery_checkpoint, progress_bar
    from reid.retrieval.embed import embed
    from reid.retrieval.growth import add_samples
    from reid.retrieval.kept_site import network_files
    from reid.retrieval.query_file import save_queries
    from reid.retrieval.refresh import check_unchanged, refresh_queries
    from reid.retrieval.upkeep import remove_old_rows

    check_weights(None, profiles or ())
    old = gallery_checkpoint(folder)
    checkpoint = for_cameras_of(every_sample, with_profiles(old, profiles), unseen)
    check_domains(folder, checkpoint, samples)
    is_new = checkpoint.fingerprint != old.fingerprint
    if is_new:
        check_unchanged(folder, old, checkpoint)
    queries = refresh_queries(folder, old, checkpoint, lambda few: embed_samples(checkpoint, few, "embedding queries"))
    with progress_bar("adding to the gallery", len(samples)) as progress:
        added = add_samples(
            folder,
            samples,
            lambda part: embed(checkpoint, part, workers=workers(), progress=progress),
            more,
            attach=network_files(checkpoint) if is_new else None,
            fingerprint=checkpoint.fingerprint,
            with_thumbnails=thumbnails,
        )
        progress(len(samples) - added.added)
    if queries is not None:
        save_queries(folder, queries)
    remove_old_rows(folder)
    if as_json:
        typer.echo(json.dumps(vars(added), indent=2))
        return
    notes = [f"{added.known} were there already"]
    notes += [f"{added.replaced} of the new rows replace changed ones"] if added.replaced else []
    notes += [f'{added.barred} stay out, they were erased or are too old; "reid index restore" lifts an erasure'] * (
        added.barred > 0
    )
    typer.echo(f"{folder}\tadded {added.added} rows; {'; '.join(notes)}")


def with_profiles(checkpoint: Checkpoint, profiles: Sequence[Path] | None) -> Checkpoint:
    """Return a checkpoint with the statistics of some files of camera profiles."""
    from reid.norm import Profiles

    for path in profiles or ():
        checkpoint = checkpoint.with_profiles(Profiles.load(path))
    return checkpoint


@index.command("info", epilog="Example: reid index info galleries/crops --json")
def index_info(folder: Place, as_json: AsJson = False) -> None:
    """Show what a gallery holds: rows, cameras, identities, its network's fingerprint, segments and bytes."""
    from reid.retrieval.storage import check_gallery

    if milvus_uri(folder) is None:
        check_gallery(folder)
    from reid.retrieval.gallery import Gallery

    facts = Gallery.open(folder).info()
    for name, value in facts.items() if not as_json else ():
        text = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else value
        typer.echo(f"{name}\t{text}")
    if as_json:
        typer.echo(json.dumps(facts, indent=2))


@index.command("list", epilog="Example: reid index list galleries/crops --where \"camera = 'door'\" --limit 20")
def index_list(
    folder: Place,
    where: Where = None,
    limit: Annotated[int, typer.Option(min=0, help="Show at most so many rows; 0 shows all.")] = 100,
    columns: Annotated[
        list[str] | None, typer.Option("--column", help="Column to show. Can be repeated. Default: all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the rows of a gallery, one line each, in the order in which they were added."""
    from reid.retrieval.storage import check_gallery

    if milvus_uri(folder) is None:
        check_gallery(folder)
    rows, count = _listed_rows(folder, where, limit, columns)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if rows:
        typer.echo("\t".join(rows[0]))
    for row in rows:
        typer.echo("\t".join(str(value or "") for value in row.values()))
    if len(rows) < count:
        typer.echo(f"{len(rows)} of {count} rows are shown; --limit 0 shows all", err=True)


def _listed_rows(
    folder: Path, where: str | None, limit: int, columns: Sequence[str] | None
) -> tuple[list[dict[str, Any]], int]:
    import numpy as np

    from reid.retrieval.filters import parse_where, rows_where
    from reid.retrieval.gallery import Gallery
    from reid.retrieval.person_filters import on_paths
    from reid.retrieval.person_search import label_persons
    from reid.retrieval.persons.person_files import has_persons

    gallery = Gallery.open(folder)
    is_folder = milvus_uri(folder) is None
    if is_folder and has_persons(folder):
        label_persons(gallery)
    table, chosen_rows = gallery.table, None if where is None else parse_where(where)
    if is_folder and chosen_rows is not None:
        chosen_rows = on_paths(folder, chosen_rows)
    rows = np.arange(len(table)) if chosen_rows is None else np.flatnonzero(rows_where(chosen_rows, table))
    shown = table.take(rows[:limit] if limit else rows)
    texts: dict[str, list[Any]] = sample_columns(shown.samples_at(np.arange(len(shown))))
    texts["time"] = [time.isoformat() if time else None for time in texts["time"]]
    for name in columns or table.column_names:
        column = shown.column(name)
        texts.setdefault(name, column.to_pylist() if name != "domain" else texts["category"])
    chosen = list(columns or table.column_names)
    lines = zip(*(texts[name] for name in chosen), strict=True)
    return [dict(zip(chosen, line, strict=True)) for line in lines], len(rows)


@index.command("search", epilog="Example: reid index search galleries/crops query.jpg --where \"camera <> 'door'\"")
def index_search(
    folder: Place,
    image: Annotated[Path, typer.Argument(help="Image of the person or object to search for.")],
    camera: Annotated[str, typer.Option(help="Camera that took the image.")] = "",
    modality: Annotated[Modality, typer.Option(help="Light that the camera records.")] = Modality.VISIBLE,
    category: Annotated[str, typer.Option(help="What the image shows: person, vehicle, ...")] = "person",
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Number of answers.")] = 10,
    where: Where = None,
    one_per: Annotated[
        str,
        typer.Option("--one-per", help="Show only the best answer of each identity, person, track or other column."),
    ] = "",
    weights: Weights = None,
    profiles: ProfileFiles = None,
    as_json: AsJson = False,
) -> None:
    """Rank a gallery by similarity to one image; "reid search" knows more options.

    A gallery in Milvus has no network: give the --weights and --profiles that it was created with.
    """
    search_gallery(
        SearchRequest(
            image, folder, camera=camera, modality=modality, category=category, k=k, where=filter_of(where),
            one_per=one_per, weights=weights, profiles=profiles or (), as_json=as_json,
        )
    )  # fmt: skip


index.add_typer(index_erasure.commands)
index.add_typer(index_exchange.commands)
index.add_typer(index_tuning.commands)

VERBS = tuple(
    str(command.name)
    for group in (index, index_erasure.commands, index_exchange.commands, index_tuning.commands)
    for command in group.registered_commands
)
