"""Scores by pairs of cameras or modalities, and how much a query's own camera attracts its nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.evaluation.labels import LabelArray, Labels, check_labels
from reid.evaluation.metrics import MetricOptions, NoMatchError, vector_metrics
from reid.evaluation.ranks import Float64Array
from reid.evaluation.score_blocks import check_rows, check_vectors, valid_blocks, vector_scores
from reid.records import IntArray


@dataclass(frozen=True, eq=False)
class PairTable:
    """Scores of the queries of one group against the gallery rows of one group only.

    ``mAP`` and ``rank1`` (A, B) are float64, NaN without a right answer.  ``matched`` (A, B) int64 counts the queries
    behind a value.  Rows are ``query_groups`` (A,), columns are ``gallery_groups`` (B,).
    """

    query_groups: tuple[str, ...]
    gallery_groups: tuple[str, ...]
    mAP: Float64Array  # noqa: N815 - the field's own spelling
    rank1: Float64Array
    matched: IntArray


@dataclass(frozen=True, eq=False)
class CameraBias:
    """How often the nearest row of another identity has the query's camera, beside what chance would give.

    ``observed`` and ``expected`` (C,) float64 are means over the ``queries`` (C,) int64 of each of ``cameras``.
    ``shared`` and ``chance`` (Q,) are the same for each query, NaN where the gallery has no other identity.
    ``factor`` is how many times as often as by chance, over all queries: 1 is fair, NaN where no gallery row has a
    camera of the queries.
    """

    cameras: tuple[str, ...]
    queries: IntArray
    observed: Float64Array
    expected: Float64Array
    factor: float
    shared: Float64Array
    chance: Float64Array


def pair_table(
    query_vectors: npt.ArrayLike,
    gallery_vectors: npt.ArrayLike,
    labels: Labels,
    *,
    query_groups: npt.ArrayLike,
    gallery_groups: npt.ArrayLike,
    ties: str = "worst",
    memory: int | None = None,
) -> PairTable:
    """Compute the metrics by pairs of groups, such as cameras or modalities.

    The rule of ``labels`` holds within each pair.  All pairs together cost one evaluation.

    Args:
        query_vectors: Floats (Q, D), rows of unit length.
        gallery_vectors: Floats (G, D).
        labels: Labels of both.
        query_groups: The group of each query, (Q,) strings or integers.
        gallery_groups: The group of each gallery row, (G,).
        ties: The tie rule, a key of :data:`reid.evaluation.ranks.TIES`.
        memory: Bytes of scores to hold at a time.

    Raises:
        DataError: Vectors, labels or groups of other rows, or of a wrong type.

    Example:
        >>> labels = Labels(["anna"], ["anna", "ben"], ["door"], ["hall", "hall"])
        >>> vectors = np.float32([[1, 0]]), np.float32([[1, 0], [0, 1]])
        >>> groups = {"query_groups": ["day"], "gallery_groups": ["night", "night"]}
        >>> table = pair_table(*vectors, labels, **groups)
        >>> table.query_groups, table.gallery_groups, table.mAP.tolist()
        (('day',), ('night',), [[1.0]])
    """
    queries, gallery = check_vectors(query_vectors, gallery_vectors)
    sources = check_labels("query_groups", query_groups, len(queries))
    targets = check_labels("gallery_groups", gallery_groups, len(gallery))
    check_rows(labels, len(queries), len(gallery))
    rows, columns = np.unique(sources), np.unique(targets)
    precision, rank1 = (np.full((len(rows), len(columns)), np.nan) for _ in range(2))
    matched = np.zeros((len(rows), len(columns)), np.int64)
    options = MetricOptions(ties)
    for j, target in enumerate(columns):
        there = np.flatnonzero(targets == target)
        vectors = gallery[there]
        for i, source in enumerate(rows):
            here = np.flatnonzero(sources == source)
            try:
                metrics = vector_metrics(queries[here], vectors, labels.select(here, there), options, memory=memory)
            except NoMatchError:
                continue
            precision[i, j], rank1[i, j] = metrics.mAP, metrics.rank(1)
            matched[i, j] = metrics.queries - metrics.queries_without_match
    return PairTable(_names(rows), _names(columns), precision, rank1, matched)


def _names(groups: LabelArray) -> tuple[str, ...]:
    return tuple(str(group) for group in groups.tolist())


def camera_bias(
    query_vectors: npt.ArrayLike, gallery_vectors: npt.ArrayLike, labels: Labels, memory: int | None = None
) -> CameraBias:
    """Measure how much the query's own camera attracts its nearest neighbour among other identities.

    Rows of the query's identity are not used, since the protocol makes them differ in camera.  Chance is the share of
    the query's camera among the rows that are used.  Rows that tie as nearest count by their share.

    Args:
        query_vectors: Floats (Q, D), rows of unit length.
        gallery_vectors: Floats (G, D).
        labels: Labels of both, without locations.
        memory: Bytes of scores to hold at a time.

    Raises:
        DataError: The gallery has no row of another identity for any query.

    Example:
        >>> labels = Labels(["anna"], ["ben", "cleo"], ["door"], ["door", "hall"])
        >>> camera_bias(np.float32([[1, 0]]), np.float32([[0.8, 0.6], [0.6, 0.8]]), labels).factor
        2.0
    """
    table, size = vector_scores(query_vectors, gallery_vectors, labels, memory)
    query_cameras, gallery_cameras = labels.camera_codes
    shared, chance = np.full(labels.queries, np.nan), np.full(labels.queries, np.nan)
    for start, scores, offsets, rows in valid_blocks(table, labels, size):
        scores[offsets, rows] = -np.inf
        best = scores.max(axis=1)
        for i in np.flatnonzero(best > -np.inf):
            own = gallery_cameras == query_cameras[start + i]
            nearest = scores[i] == best[i]
            shared[start + i] = np.count_nonzero(nearest & own) / np.count_nonzero(nearest)
            other = scores[i] > -np.inf
            chance[start + i] = np.count_nonzero(other & own) / np.count_nonzero(other)
    return _average_by_camera(labels.query_cameras, shared, chance)


def _average_by_camera(cameras: LabelArray, shared: Float64Array, chance: Float64Array) -> CameraBias:
    known = ~np.isnan(shared)
    if not known.any():
        raise DataError("camera bias: the gallery has no row of another identity for any query")
    names, codes = np.unique(cameras[known], return_inverse=True)
    counts = np.bincount(codes.reshape(-1))
    observed, expected = (np.bincount(codes.reshape(-1), column[known]) / counts for column in (shared, chance))
    total = chance[known].sum()
    factor = float(shared[known].sum() / total) if total > 0 else float("nan")
    return CameraBias(_names(names), counts.astype(np.int64), observed, expected, factor, shared, chance)
