"""Search a gallery by scores that are normalized per pair of cameras, with what the gallery keeps of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np

from reid.records import FloatArray, IntArray, Sample
from reid.retrieval.cohort_rows import BoolArray, CohortRows
from reid.retrieval.cohorts import with_other_cameras
from reid.retrieval.gallery import Gallery
from reid.retrieval.gallery_rows import first_of_groups, groups_by
from reid.retrieval.kept_cohorts import METHOD, cohorts_of, read_cohorts
from reid.retrieval.kept_site import read_site
from reid.retrieval.normalized_ranking import NormalizedGallery, NormalizedRanking
from reid.retrieval.row_table import RowTable

_prepared: WeakKeyDictionary[Gallery, tuple[object, NormalizedGallery]] = WeakKeyDictionary()


def normalized_gallery(gallery: Gallery, method: str = "csls") -> NormalizedGallery:
    """Return a gallery ready to be searched by normalized scores, once for each state of the gallery.

    It uses the statistics and thresholds that the folder of the gallery keeps (:mod:`reid.retrieval.kept_cohorts`).
    Where it keeps none, a search measures what it needs.

    Raises:
        GalleryError: The file of the statistics is damaged.
    """
    known, table = _prepared.get(gallery), gallery.table
    if known is None or known[0] is not table or known[1].statistics.method != method:
        known = table, _prepare(gallery, table, method)
        _prepared[gallery] = known
    return known[1]


def _prepare(gallery: Gallery, table: RowTable, method: str) -> NormalizedGallery:
    kept = None if (folder := gallery.folder) is None else read_cohorts(folder)
    rows = CohortRows.of_table(table, gallery.rows.vectors(), None if kept is None else kept.hashes)
    others = None if folder is None else read_site(folder)
    if others is not None and len(with_other_cameras(rows, others).cameras) > len(rows.cameras):
        return NormalizedGallery.prepare(rows, method, others)
    current = None if kept is None or method != METHOD else cohorts_of(kept, table, rows, gallery.rows)
    if current is None:
        return NormalizedGallery.prepare(rows, method)
    return NormalizedGallery(rows, current.statistics, fitted=current.thresholds)


def search_normalized(
    gallery: Gallery,
    vectors: FloatArray,
    queries: Sequence[Sample],
    k: int,
    *,
    fingerprint: str,
    keep: BoolArray | None = None,
    method: str = "csls",
    one_per: str = "",
) -> NormalizedRanking | None:
    """Find the rows of a gallery with the best normalized scores, as :meth:`Gallery.search` does by plain ones.

    Args:
        gallery: The gallery.
        vectors: (Q, D) float32 of unit length.
        queries: The samples of the queries, which name their cameras and categories.
        k: The number of answers, at least 1.
        fingerprint: The fingerprint of the network that made ``vectors``.
        keep: (G,) bool, which rows may answer; None allows all.
        method: "csls" or "snorm".
        one_per: A column such as "identity"; only the best row of each of its labels answers.

    Returns:
        The answers; None where the gallery has too few crops to normalize scores, or Milvus keeps its vectors.

    Raises:
        GalleryError: Another network made the gallery, or the gallery is empty.
        DataError: The vectors, ``k`` or ``keep`` have a wrong type or shape.
    """
    if len(gallery) and not len(gallery.rows.table):
        return None  # a server keeps the vectors
    removed = gallery.check_search(vectors, k, fingerprint=fingerprint, keep=keep)
    prepared = normalized_gallery(gallery, method)
    rows = CohortRows.of_samples(queries, vectors)
    if not prepared.can_rank(rows, keep):
        return None
    allowed = keep if not removed.any() else ~removed if keep is None else keep & ~removed
    if not one_per:
        return prepared.search(rows, k, allowed)
    everything = np.ones(len(prepared.columns), np.bool_) if allowed is None else allowed
    return _best_of_groups(prepared, rows, k, everything, groups_by(gallery.table, one_per))


def _best_of_groups(
    prepared: NormalizedGallery, rows: CohortRows, k: int, allowed: BoolArray, groups: IntArray
) -> NormalizedRanking:
    """Find the best row of each of the ``k`` nearest groups; ``groups`` (G,) int64 is the group of each row."""
    size, wanted = int(np.count_nonzero(allowed)), min(k, len(np.unique(groups[allowed])))
    depth = min(4 * k, size)
    while True:
        every = prepared.search(rows, depth, allowed)
        counted = enumerate(every.ranking.counts)
        best = [first_of_groups(every.ranking.rows[i, :count], groups, wanted) for i, count in counted]
        if depth >= size or all(len(positions) >= wanted for positions in best):
            break
        depth = min(4 * depth, size)
    found = NormalizedRanking.empty(len(rows.vectors), wanted)
    for i, positions in enumerate(best):
        found.ranking.rows[i, : len(positions)] = every.ranking.rows[i, positions]
        found.ranking.scores[i, : len(positions)] = every.ranking.scores[i, positions]
        found.similarities[i, : len(positions)] = every.similarities[i, positions]
        found.ranking.counts[i] = len(positions)
    return found.checked()
