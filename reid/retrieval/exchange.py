"""Exchange rows with other galleries and other programs."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reid.data.manifest import read_table, write_manifest
from reid.errors import ConfigError, DataError, GalleryError
from reid.files import Writer, check_output_file, write_whole
from reid.records import Embeddings, Split
from reid.retrieval.embed import save_embeddings
from reid.retrieval.filters import parse_where, rows_where
from reid.retrieval.folder_reading import read_attached
from reid.retrieval.foreign_embeddings import read_foreign
from reid.retrieval.gallery import Gallery
from reid.retrieval.gallery_header import HEADER
from reid.retrieval.growth import AddedRows, add_to_folder
from reid.retrieval.person_filters import on_paths
from reid.retrieval.persons.person_changes import import_decisions
from reid.retrieval.persons.person_files import has_persons, read_decisions
from reid.retrieval.row_table import FIELDS, RowTable
from reid.retrieval.storage import NETWORK_SUFFIX, SITE_SUFFIX, write_private


def merge_galleries(folder: Path, others: Sequence[Path]) -> list[AddedRows]:
    """Add the rows of other galleries to a gallery, which is created where there is none.

    Args:
        folder: The folder of the gallery.
        others: The folders of the others; all have the same fingerprint.

    Thumbnails come with the rows, and so do decisions about persons, see
    :func:`reid.retrieval.persons.person_changes.import_decisions`.

    Returns:
        What became of the rows of each of the others.

    Raises:
        GalleryError: Another network made one of the galleries, or a folder cannot be read or written.
    """
    opened = [Gallery.open(other) for other in others]
    known = Gallery.open(folder).fingerprint if (folder / HEADER).exists() else opened[0].fingerprint
    for gallery in opened:
        if gallery.fingerprint != known:
            raise GalleryError(
                f'{gallery.folder}: was embedded by "{gallery.fingerprint}", the others by "{known}"; their scores mean'
                ' nothing together: "reid index refresh" gives a gallery another network'
            )
    added = []
    for other, gallery in zip(others, opened, strict=True):
        more = _further_columns(gallery.table)
        if (folder / HEADER).exists():
            rows = AddedRows()
            if len(gallery):
                images = gallery.kept_thumbnails()
                rows = add_to_folder(folder, gallery.embeddings, more, thumbnails=images)
            added.append(replace(rows, decisions=_carry_decisions(folder, other)))
            continue
        contents = {one: read_attached(other, one, Path.read_bytes) for one in (NETWORK_SUFFIX, SITE_SUFFIX)}
        attach = {one: partial(_write_bytes, content) for one, content in contents.items() if content is not None}
        rows = _create(folder, gallery.embeddings, more, attach, gallery.kept_thumbnails())
        added.append(replace(rows, decisions=_carry_decisions(folder, other)))
    return added


def _carry_decisions(folder: Path, other: Path) -> int:
    """Add the decisions about persons of another gallery; return how many are new.

    Raises:
        GalleryError: They contradict those of the gallery, or the file is damaged.
    """
    log = read_decisions(other)
    if not log.decisions:
        return 0
    try:
        return import_decisions(folder, log)[1]
    except GalleryError as error:
        raise GalleryError(
            f"{other}: its rows are in {folder} now, its decisions about persons are not: {error}; export them with"
            ' "reid identify export", then add them with "reid identify import --instead"'
        ) from error


def _write_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _create(
    folder: Path,
    embeddings: Embeddings,
    more: Mapping[str, Sequence[object]],
    attach: Mapping[str, Writer],
    thumbnails: Sequence[bytes] | None = None,
) -> AddedRows:
    """Write a new gallery with its first rows, both at once."""
    if not len(embeddings):
        Gallery.create(folder, embeddings.fingerprint, embeddings.vectors.shape[1], attach)
        return AddedRows()
    gallery = Gallery.build(embeddings, more)
    gallery.save(folder, attach, thumbnails)
    return AddedRows(len(gallery), 0, 0, len(embeddings) - len(gallery))


def _further_columns(table: RowTable) -> dict[str, Sequence[object]]:
    """Return the columns of a table that are no fields of a sample, those of the program included."""
    own = ("_id", "_offset")
    names = [name for name in table.arrow.column_names if name not in FIELDS and name not in own]
    return {name: table.arrow.column(name).to_pylist() for name in names}


def import_rows(
    folder: Path, embeddings: Path, data: Path | None = None, model: str | None = None
) -> tuple[AddedRows, int]:
    """Add embeddings that another program computed to a gallery, which is created where there is none.

    Rows of split gallery are added, or all rows where none is of this split.

    Args:
        folder: The folder of the gallery.
        embeddings: The file of the vectors, see :func:`reid.retrieval.foreign_embeddings.read_foreign`.
        data: The manifest of the vectors.
        model: The name of the model that computed them; the fingerprint of the gallery.

    Returns:
        What became of the rows, and how many vectors were scaled to unit length.

    Raises:
        DataError: A file is missing or damaged, or the numbers of rows differ.
        GalleryError: The gallery holds vectors of another model, or cannot be written to.
    """
    reading = None if data is None else read_table(data)
    found = (
        read_foreign(embeddings, fingerprint=model)
        if reading is None
        else read_foreign(embeddings, reading.samples, reading.more, model)
    )
    of_gallery = np.array([sample.split is Split.GALLERY for sample in found.embeddings.samples], np.bool_)
    rows = np.flatnonzero(of_gallery) if of_gallery.any() else np.arange(len(of_gallery))
    vectors = found.embeddings.select(rows)
    more = {name: [texts[i] for i in rows.tolist()] for name, texts in found.more.items()}
    if not (folder / HEADER).exists():
        return _create(folder, vectors, more, {}), found.scaled
    return Gallery.open(folder).add(vectors, more), found.scaled


def export_rows(folder: Path, out: Path, where: str | None = None) -> int:
    """Write vectors and rows of a gallery to a file for other programs.

    Args:
        folder: The folder of the gallery.
        out: The file; its suffix is one of :data:`EXPORTS`. A ``.npy`` file gets a manifest of the same name beside it.
        where: A filter; None writes all rows.

    Returns:
        The number of rows.

    Raises:
        ConfigError: A file of something else is in the place of the file.
        DataError: The filter is wrong, no row fulfils it, or the file cannot be written.
        GalleryError: The gallery is missing or damaged.
    """
    _check_export_file(out)
    gallery = Gallery.open(folder)
    if has_persons(folder):
        from reid.retrieval.person_search import label_persons

        label_persons(gallery)  # the column "person"
    table = gallery.table
    rows = (
        np.arange(len(table))
        if where is None
        else np.flatnonzero(rows_where(on_paths(folder, parse_where(where)), table))
    )
    if not len(rows):
        raise DataError(f"{folder}: no row to export")
    embeddings = gallery.embeddings.select(rows)
    try:
        EXPORTS[out.suffix.lower()](embeddings, table.take(rows), out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from error
    return len(rows)


def _check_export_file(out: Path) -> None:
    """Refuse to write over something else than an earlier export."""
    suffix, beside = out.suffix.lower(), out.with_suffix(".csv")
    check_output_file(out, _MARKS[suffix])
    if suffix == ".npy" and (beside.exists() or beside.is_symlink()) and not out.exists():
        raise ConfigError(
            f"{beside}: exists and would be lost, because the rows are written there; choose another name"
        )
    if suffix == ".parquet" and out.exists() and out.stat().st_size and not _is_exported_table(out):
        raise ConfigError(f"{out}: exists and is something else; it would be lost, so choose another name or delete it")


def _is_exported_table(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return b"fingerprint" in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def _columns(table: RowTable) -> dict[str, list[Any]]:
    samples = table.samples_at(np.arange(len(table)))
    columns: dict[str, list[Any]] = {name: [str(getattr(sample, name)) for sample in samples] for name in FIELDS}
    columns["path"] = [str(sample.path.absolute()) for sample in samples]  # it holds beside any other folder
    columns["time"] = [sample.time.isoformat() if sample.time else "" for sample in samples]
    return columns | {name: table.column(name).to_pylist() for name in table.column_names if name not in FIELDS}


def _write_parquet(embeddings: Embeddings, table: RowTable, out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(embeddings.vectors).reshape(-1)), embeddings.vectors.shape[1]
    )
    columns = {**_columns(table), "vector": vectors}
    whole = pa.table(columns).replace_schema_metadata({"fingerprint": embeddings.fingerprint})
    write_private(out, lambda part: pq.write_table(whole, part))


def _write_npz(embeddings: Embeddings, table: RowTable, out: Path) -> None:
    arrays: dict[str, Any] = {
        name: np.array(["" if value is None else value for value in values]) for name, values in _columns(table).items()
    }
    first = {"fingerprint": np.array(embeddings.fingerprint)}  # by which an export is recognised
    arrays = {**first, **arrays, "vectors": embeddings.vectors}

    def write(part: Path) -> None:
        with part.open("wb") as stream:
            np.savez(stream, **arrays)

    write_private(out, write)


def _write_npy(embeddings: Embeddings, table: RowTable, out: Path) -> None:
    beside = out.with_suffix(".csv")

    def write(part: Path) -> None:
        with part.open("wb") as stream:
            np.save(stream, embeddings.vectors)
        beside.unlink(missing_ok=True)  # so that a program that is killed leaves no vectors beside rows of others

    write_private(out, write)
    _write_csv(embeddings, table, beside)


def _write_csv(embeddings: Embeddings, table: RowTable, beside: Path) -> None:
    if len(table.column_names) == len(FIELDS):
        write_manifest(embeddings.samples, beside)
        return
    columns = _columns(table)

    def write_csv(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    write_whole(beside, write_csv)


def _write_safetensors(embeddings: Embeddings, _table: RowTable, out: Path) -> None:
    save_embeddings(embeddings, out)


EXPORTS: dict[str, Callable[[Embeddings, RowTable, Path], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".safetensors": _write_safetensors,
}
_MARKS = {".parquet": "PAR1", ".npz": "fingerprint.npy", ".npy": "NUMPY", ".safetensors": "reid-embeddings-"}
