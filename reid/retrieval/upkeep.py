"""Look after a gallery folder: check every byte, describe it, compact it, and keep rows for some days only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reid.errors import DataError, GalleryError
from reid.retrieval.embed import load_embeddings
from reid.retrieval.erasure import ErasedRows, erase_rows
from reid.retrieval.filters import ColumnCondition, Filter, rows_where
from reid.retrieval.folder_reading import read_attached, read_gallery_folder
from reid.retrieval.gallery_header import HEADER, INDEX, VECTORS, listed_files, read_header
from reid.retrieval.gallery_index import index_gallery
from reid.retrieval.growth import oldest_time
from reid.retrieval.kept_cohorts import read_cohorts, with_cohorts
from reid.retrieval.kept_site import read_site
from reid.retrieval.persons.person_files import PERSONS, PersonTable, erased_crops, forget_crops, read_decisions
from reid.retrieval.receipts import new_receipt, read_receipts
from reid.retrieval.row_table import RowTable
from reid.retrieval.segments import GallerySegment, checked_file, damaged
from reid.retrieval.storage import NETWORK_SUFFIX, QUERIES_FILE, write_gallery
from reid.retrieval.stored_gallery import StoredGallery, compacted, read_gallery, under_lock
from reid.retrieval.tombstones import read_tombstones

CAMERAS_SHOWN = 1000  # names that a description lists


def verify_gallery(folder: Path) -> None:
    """Check every byte of a gallery: header, vectors, rows, network, queries, erasures and receipts.

    Args:
        folder: The folder of the gallery.

    Raises:
        GalleryError: A file is damaged or missing; the message names it.
        DataError: The file of queries is damaged.
    """

    def check(header: dict[str, Any]) -> None:
        for entry in listed_files(header):
            checked_file(folder, entry)

    read_gallery_folder(folder, check)
    stored = read_gallery(folder)
    read_tombstones(folder)
    read_receipts(folder)
    read_decisions(folder)
    read_attached(folder, PERSONS, PersonTable.read)
    read_cohorts(folder)
    read_site(folder)
    _check_rows(stored)
    if (folder / QUERIES_FILE).exists():
        load_embeddings(folder / QUERIES_FILE)


def _check_rows(stored: StoredGallery) -> None:
    last = -1
    for segment in stored.segments:
        name = HEADER if segment.entry is None else segment.entry["files"][VECTORS]["name"]
        lengths = np.linalg.norm(segment.vectors, axis=1) if len(segment.table) else np.ones(1)
        if not np.all(np.abs(lengths - 1) <= 1e-2):
            raise damaged(stored.folder, f"a vector of {name} has no unit length")
        if len(segment.deleted) and (segment.deleted[0] < 0 or segment.deleted[-1] >= len(segment.table)):
            raise damaged(stored.folder, f"the deleted rows of {name} are none of its rows")
        if len(segment.table) and segment.table.row_ids[0] <= last:
            raise damaged(stored.folder, f"the rows of {name} have ids of other rows")
        last = int(segment.table.row_ids[-1]) if len(segment.table) else last
    count = sum(len(segment.kept) for segment in stored.segments)
    if count != stored.facts["count"]:
        raise damaged(stored.folder, f"its header says {stored.facts['count']} rows, there are {count}")


def compact_gallery(folder: Path, known: Sequence[GallerySegment] = ()) -> int:
    """Write a gallery anew without removed rows, as few segments, and remove the files that held them.

    An approximate index that held removed rows is built again; searches are exact until it is there.

    Args:
        folder: The folder of the gallery; a gallery of version 1 is converted.
        known: Segments that were read before.

    Returns:
        By how many bytes the files have become smaller.

    Raises:
        GalleryError: The gallery is damaged, or the folder cannot be written to.
    """
    before = bytes_of(folder)
    with write_gallery(folder, replaces=str(read_header(folder)["generation"])) as writer:
        stored = under_lock(writer, known)
        if read_header(folder)["version"] == 1:
            writer.commit(stored.facts)
            stored = read_gallery(folder)
        facts = compacted(writer, stored, everything=True)
        gone = sum(len(segment.table) for segment in stored.segments) - facts["count"]
        facts["files"] = forget_crops(writer, facts["files"], _dropped_crops(stored) if gone else ())
        facts = with_cohorts(writer, facts, stored)
        if facts["segments"] != stored.facts["segments"] or facts["files"] != stored.facts["files"]:
            receipt = {"receipt": new_receipt({"action": "compact", "rows": gone})} if gone else {}
            writer.commit({**facts, **receipt})
        problems = writer.sweep()
    if problems:
        raise GalleryError(f"{problems[0]}; it may still hold removed rows; mend that, then compact again")
    if INDEX in stored.facts["files"] and INDEX not in facts["files"] and facts["count"]:
        index_gallery(folder, stored.facts["index"]["index_kind"], stored.facts["index"]["wished"])
    return before - bytes_of(folder)


def _dropped_crops(stored: StoredGallery) -> list[tuple[str, str]]:
    """Return the crops that are in the files of a gallery but not among its rows any more."""
    kept = set(stored.kept_table().column("path").to_pylist())
    parts = [erased_crops(segment.table, np.ones(len(segment.table), np.bool_)) for segment in stored.segments]
    return [crop for part in parts for crop in part if crop[0] not in kept]


def retain(folder: Path, days: float | None) -> tuple[ErasedRows, ...]:
    """Keep rows for some days only, now and whenever rows are added.

    Args:
        folder: The folder of the gallery.
        days: How old a row may be by its time; None keeps all rows. Rows of unknown time are kept.

    Returns:
        What was removed, see :func:`reid.retrieval.erasure.erase_rows`.

    Raises:
        DataError: ``days`` is not positive.
        GalleryError: The gallery is damaged, or the folder cannot be written to.
    """
    if days is not None and not 0 < days < 1e5:
        raise DataError(f"retention: expected a positive number of days, got {days:g}")
    with write_gallery(folder, replaces=str(read_header(folder)["generation"])) as writer:
        stored = under_lock(writer)
        facts = {key: value for key, value in stored.facts.items() if key != "retention_days"}
        writer.commit(facts if days is None else {**facts, "retention_days": days})
        writer.sweep()
    return remove_old_rows(folder)


def remove_old_rows(folder: Path) -> tuple[ErasedRows, ...]:
    """Remove the rows of a gallery that are older than it keeps rows; () where it keeps all."""
    limit = oldest_time(read_header(folder))
    if limit is None:
        return ()
    return erase_rows(folder, ColumnCondition("time", "<", (limit,)), forget=False, action="retain")


def selected_paths(folder: Path, where: Filter) -> list[Path]:
    """Return the images of the rows of a gallery that a filter selects.

    Raises:
        DataError: The filter names an unknown column.
        GalleryError: The gallery is missing or damaged.
    """
    table = read_gallery(folder).kept_table()
    chosen = table.take(np.flatnonzero(rows_where(where, table)))
    return [Path(path) for path in dict.fromkeys(chosen.column("path").to_pylist())]


def delete_images(paths: Sequence[Path]) -> list[str]:
    """Delete images; one that is not there any more is passed over.

    Returns:
        One line for each image that could not be deleted.
    """
    remaining = []
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            remaining.append(f"{path}: cannot be deleted ({error.strerror or error})")
    return remaining


def bytes_of(folder: Path) -> int:
    """Return the number of bytes of a gallery's files."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def describe(table: RowTable, fingerprint: str, dimension: int, folder: Path | None) -> dict[str, Any]:
    """Return what a gallery holds.

    Args:
        table: Its rows.
        fingerprint: The fingerprint of its network.
        dimension: The length of a vector.
        folder: Its folder; None where it is in memory only.
    """
    times = [time.isoformat() for time in _extremes(table)]
    facts: dict[str, Any] = {
        "rows": len(table),
        "cameras": len(table.distinct("camera")),
        "identities": _count_identities(table),
        "fingerprint": fingerprint,
        "dimension": dimension,
        "tracks": len(table.distinct("track")),
        "modalities": table.distinct("modality"),
        "categories": table.distinct("category"),
        "camera_names": table.distinct("camera")[:CAMERAS_SHOWN],
        "first_time": times[0] if times else None,
        "last_time": times[1] if times else None,
        "columns": list(table.column_names),
    }
    if folder is None:
        return facts
    header = read_header(folder)
    stored = read_gallery(folder)
    persons = read_attached(folder, PERSONS, PersonTable.read) or PersonTable.empty()
    return {
        **facts,
        "persons": len(set(persons.persons.tolist()) - {0}),
        "decisions": len(read_decisions(folder).decisions),
        "segments": len(stored.segments),
        "removed_rows": sum(len(segment.table) for segment in stored.segments) - len(stored.kept_table()),
        "bytes": bytes_of(folder),
        "version": header["version"],
        "generation": stored.generation,
        "network": NETWORK_SUFFIX in stored.facts["files"],
        "index_kind": stored.facts.get("index", {}).get("index_kind", "flat"),
        "retention_days": stored.facts.get("retention_days"),
        "receipts": len(read_receipts(folder)),
    }


def _extremes(table: RowTable) -> list[Any]:
    import pyarrow.compute as pc

    found = pc.min_max(table.column("time")).as_py()
    return [] if found["min"] is None else [found["min"], found["max"]]


def _count_identities(table: RowTable) -> int:
    (names, words), (categories, category_words) = table.codes("identity"), table.codes("category")
    known = names != words.index("") if "" in words else np.ones(len(names), np.bool_)
    return len(np.unique((names.astype(np.int64) * max(len(category_words), 1) + categories)[known]))
