"""The cohort statistics and match thresholds that a gallery folder keeps beside its vectors.

A search by normalized scores compares every row with what the row scores with the crops of each camera anyway, and a
verdict compares a similarity with those of different people.  Both follow from the vectors alone.  A gallery keeps them
in ``data-<hex>.cohorts.safetensors``, which its header lists with a checksum, so that a program that opens the gallery
searches at once.  Every change of the rows writes the file anew, in the same commit: rows that were removed are in it
no more, and what others had measured with them is measured again.

A gallery keeps no file where no camera has enough crops for a cohort, and where it is so large that measuring would
take minutes.  Then a search measures the rows toward the camera of its query.  So it does for a gallery that an older
version wrote; the next change of its rows, or ``reid index compact``, makes the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from reid.errors import DataError, GalleryError
from reid.records import IntArray
from reid.retrieval.cohort_rows import COHORT_LIMIT, CohortRows, PathHashes
from reid.retrieval.cohort_updates import update_rows
from reid.retrieval.cohorts import FEWEST, CohortStatistics, measure_cohorts
from reid.retrieval.folder_reading import read_attached
from reid.retrieval.gallery_rows import GalleryRows
from reid.retrieval.match_thresholds import MatchThresholds, fit_thresholds, refit_thresholds
from reid.retrieval.row_table import RowTable, first_line
from reid.retrieval.segments import GallerySegment, checked_file, damaged, read_segment
from reid.retrieval.storage import COHORTS_SUFFIX, GalleryWriter
from reid.retrieval.stored_gallery import Facts, StoredGallery, vectors_name
from reid.retrieval.tombstones import read_tombstones
from reid.structured_text import parse_json

FORMAT = "reid-cohorts-1"
METHOD = "csls"  # of the statistics that are kept: the default of a search
MOST_COMPARISONS = 2_500_000_000  # of a row with a crop of a cohort; about half a minute on one core
MOST_CAMERAS_FITTED = 40  # pools included; with more, a search fits the thresholds of its own camera only


@dataclass(frozen=True, eq=False)
class KeptCohorts:
    """What a gallery keeps of its rows.

    Attributes:
        row_ids: (N,) int64, the ids of the rows, ascending.
        statistics: Their statistics (N, C).
        thresholds: How the similarities of different people are distributed, for every pair of cameras; None where
            there are too many cameras.
        hashes: The hashes of their paths; None in files of an earlier version.
    """

    row_ids: IntArray
    statistics: CohortStatistics
    thresholds: MatchThresholds | None
    hashes: PathHashes | None = None

    @classmethod
    def measure(cls, row_ids: IntArray, rows: CohortRows) -> KeptCohorts:
        """Measure rows (N,) with these ids."""
        statistics = measure_cohorts(rows, rows, METHOD)
        few = len(statistics.cameras) <= MOST_CAMERAS_FITTED
        thresholds = fit_thresholds(rows, statistics) if few else None
        return cls(row_ids, statistics, thresholds, PathHashes(row_ids, rows.keys, rows.images))

    def updated(self, before: CohortRows, row_ids: IntArray, rows: CohortRows) -> KeptCohorts:
        """Return what :meth:`measure` returns for other rows, of which many are the same.

        Args:
            before: The rows (N,) that were measured.
            row_ids: (M,) int64, the ids of the rows of now, ascending.
            rows: The rows (M,) of now.
        """
        places = np.minimum(np.searchsorted(self.row_ids, row_ids), max(len(self.row_ids) - 1, 0))
        known = self.row_ids[places] == row_ids if len(self.row_ids) else np.zeros(len(row_ids), np.bool_)
        statistics = update_rows(self.statistics, before, rows, np.where(known, places, -1))
        thresholds = None
        if len(statistics.cameras) <= MOST_CAMERAS_FITTED:
            thresholds = refit_thresholds(self.thresholds, (before, self.statistics), (rows, statistics))
        return KeptCohorts(row_ids, statistics, thresholds, PathHashes(row_ids, rows.keys, rows.images))

    def write(self, path: Path) -> None:
        """Write everything to a safetensors file."""
        statistics = self.statistics
        tensors = {name: getattr(statistics, name) for name in ("mean", "deviation", "lowest", "counts", "k")}
        note = {"format": FORMAT, "method": statistics.method, "cameras": json.dumps(statistics.cameras)}
        if self.thresholds is not None:
            tensors |= {"match.rates": self.thresholds.rates, "match.scores": self.thresholds.scores}
            note["match"] = self.thresholds.source
        tensors["row_ids"] = self.row_ids
        if self.hashes is not None:
            tensors |= {"path.keys": self.hashes.keys, "path.images": self.hashes.images}
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, note)

    @classmethod
    def read(cls, path: Path) -> KeptCohorts:
        """Read what :meth:`write` wrote.

        Raises:
            GalleryError: The file is something else, or damaged.
        """
        try:
            with safe_open(path, framework="np") as file:
                note = file.metadata() or {}
                arrays: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if note.get("format") != FORMAT:
                raise DataError("it is of another format")
            cameras = np.array(parse_json(note["cameras"]), dtype=np.str_)
            statistics = CohortStatistics.from_arrays(
                {**arrays, "cameras": cameras, "method": np.array(note["method"])}
            )
            row_ids = np.asarray(arrays["row_ids"], np.int64)
            if len(row_ids) != len(statistics) or np.any(np.diff(row_ids) <= 0):
                raise DataError("its rows do not fit")
            hashes = None
            if "path.keys" in arrays:
                hashes = PathHashes(row_ids, arrays["path.keys"], arrays["path.images"])
                if not hashes.keys.shape == hashes.images.shape == row_ids.shape:
                    raise DataError("the hashes of its paths do not fit")
            thresholds = None
            if "match" in note:
                rates, scores = arrays["match.rates"], arrays["match.scores"]
                if scores.shape != (len(rates), len(cameras), len(cameras)):
                    raise DataError("its thresholds do not fit")
                thresholds = MatchThresholds(statistics.cameras, rates, scores, note["match"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, DataError) as error:
            raise damaged(path.parent, f"{path.name} is no file of cohort statistics ({first_line(error)})") from error
        return cls(row_ids, statistics, thresholds, hashes)


def read_cohorts(folder: Path) -> KeptCohorts | None:
    """Read what a gallery folder keeps; None where it keeps nothing.

    Raises:
        GalleryError: The gallery is missing, or the file is damaged.
    """
    return read_attached(folder, COHORTS_SUFFIX, KeptCohorts.read)


def cohorts_of(kept: KeptCohorts, table: RowTable, rows: CohortRows, source: GalleryRows) -> KeptCohorts | None:
    """Return what was kept for exactly the rows (G,) of a table; rows that came or went since are taken into account.

    Args:
        kept: What the folder keeps.
        table: The rows.
        rows: The same with their vectors.
        source: Holds the vectors of rows that went.

    Returns:
        None where rows that were measured are not there any more.
    """
    row_ids = table.row_ids
    if np.array_equal(kept.row_ids, row_ids):
        return kept
    before = _rows_with_ids(source.segments, kept.row_ids, source.dimension)
    return None if before is None else kept.updated(before, row_ids, rows)


def with_cohorts(writer: GalleryWriter, facts: Facts, before: StoredGallery | None = None) -> Facts:
    """Write what a gallery keeps of its rows, before facts about other rows are committed.

    Args:
        writer: The writer.
        facts: The facts that will be committed; the files of their segments are written already.
        before: The gallery before the change; None where there was none.

    Returns:
        The facts with the file, or without one where none is kept.

    Raises:
        OSError: The file cannot be written.
        GalleryError: A file of the gallery is damaged.
    """
    after = _stored_after(writer, facts, before)
    table = after.kept_table()
    files = {suffix: entry for suffix, entry in facts["files"].items() if suffix != COHORTS_SUFFIX}
    if not is_worth_keeping(camera_counts(table)):
        return {**facts, "files": files}
    kept = _readable(writer.folder, facts)
    if kept is not None and np.array_equal(kept.row_ids, table.row_ids):
        return facts
    vectors = GalleryRows(table, after.segments, facts["dimension"]).vectors()
    rows = CohortRows.of_table(table, vectors, None if kept is None else kept.hashes)
    sources = (*(before.segments if before is not None else ()), *after.segments)
    old = None if kept is None else _rows_before(kept.row_ids, table.row_ids, rows, sources, facts["dimension"])
    if kept is None or old is None:
        kept = KeptCohorts.measure(table.row_ids, rows)
    else:
        kept = kept.updated(old, table.row_ids, rows)
    return {**facts, "files": {**files, COHORTS_SUFFIX: writer.write_data(COHORTS_SUFFIX, kept.write)}}


def commit_cohorts(writer: GalleryWriter, stored: StoredGallery) -> None:
    """Commit what a gallery keeps of its rows, after these were committed; nothing where it is there already.

    Raises:
        OSError: The file cannot be written.
        GalleryError: A file of the gallery is damaged.
    """
    facts = with_cohorts(writer, stored.facts, stored)
    if facts["files"] != stored.facts["files"]:
        writer.commit(facts)


def _stored_after(writer: GalleryWriter, facts: Facts, before: StoredGallery | None) -> StoredGallery:
    """Return the gallery as it is when the facts are committed."""
    known = {vectors_name(one.entry): one for one in (before.segments if before else ()) if one.entry is not None}
    segments = tuple(
        read_segment(writer.folder, entry, facts["dimension"], known.get(vectors_name(entry)))
        for entry in facts["segments"]
    )
    return StoredGallery(writer.folder, "not committed", facts, segments, read_tombstones(writer.folder))


def camera_counts(table: RowTable) -> IntArray:
    """Return the number of rows of each camera (C,) of each category, unknown cameras included."""
    (categories, _), (cameras, words) = table.codes("category"), table.codes("camera")
    numbers = categories.astype(np.int64) * max(len(words), 1) + cameras
    counts: IntArray = np.unique(numbers, return_counts=True)[1].astype(np.int64)
    return counts


def is_worth_keeping(counts: IntArray) -> bool:
    """Return whether statistics of a gallery are kept: a camera has a cohort, and measuring takes no minutes.

    Args:
        counts: (C,) int64, the rows of each camera.

    Example:
        >>> [is_worth_keeping(np.array(counts)) for counts in ([3, 4], [40, 4], [900_000, 800_000])]
        [False, True, False]
    """
    compared = int(counts.sum()) * int(np.minimum(counts, COHORT_LIMIT).sum())
    return int(counts.max(initial=0)) >= FEWEST and compared <= MOST_COMPARISONS


def _readable(folder: Path, facts: Facts) -> KeptCohorts | None:
    """Read what a gallery kept; None where it is damaged, because a writer measures it again."""
    entry = facts["files"].get(COHORTS_SUFFIX)
    try:
        return None if entry is None else KeptCohorts.read(checked_file(folder, entry))
    except GalleryError:
        return None


def _rows_before(
    row_ids: IntArray, known_ids: IntArray, known: CohortRows, segments: Sequence[GallerySegment], dimension: int
) -> CohortRows | None:
    """Return the rows with some ids (N,) in their order, reading those only that are not among the known ones.

    Args:
        row_ids: The ids, ascending.
        known_ids: (M,) int64, ascending, the ids of rows that have been read.
        known: These rows (M,).
        segments: Where the others are.
        dimension: The length of a vector.

    Returns:
        The rows; None where one is in no segment, or has another length.
    """
    places = np.searchsorted(known_ids, row_ids)
    is_known = np.isin(row_ids, known_ids)
    if is_known.all():
        return known.select(places)
    others = _rows_with_ids(segments, row_ids[~is_known], dimension)
    if others is None:
        return None
    order = np.argsort(np.concatenate([row_ids[is_known], row_ids[~is_known]]), kind="stable")
    return CohortRows.joined(known.select(places[is_known]), others).select(order)


def _rows_with_ids(segments: Sequence[GallerySegment], row_ids: IntArray, dimension: int) -> CohortRows | None:
    """Return the rows with some ids (N,) in their order; None where one is in no segment, or has another length."""
    distinct = list({id(one.source): one for one in segments if len(one.table)}.values())
    if not distinct or not len(row_ids) or any(one.source.shape[1] != dimension for one in distinct):
        return None
    whole = RowTable.concatenated([one.table for one in distinct])
    ids, order = np.unique(whole.row_ids, return_index=True)
    places = np.minimum(np.searchsorted(ids, row_ids), len(ids) - 1)
    if not np.array_equal(ids[places], row_ids):
        return None
    table = whole.take(order[places])
    return CohortRows.of_table(table, GalleryRows(table, distinct, dimension).vectors())
