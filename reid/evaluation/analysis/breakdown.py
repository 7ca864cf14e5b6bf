"""Where a score comes from: by pairs of cameras or modalities, and how much the camera itself attracts.

Nothing here knows files or samples; a camera may as well be a modality or any other label of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.evaluation.answers import Labels, answers_to
from reid.evaluation.labels import MarketLabels, check_labels
from reid.evaluation.metrics import NoMatchError, market_metrics
from reid.evaluation.ranks import Float64Array
from reid.evaluation.score_blocks import block_size, check_vectors, inner_products
from reid.records import IntArray


@dataclass(frozen=True, eq=False)
class PairTable:
    """Scores of the queries of one group against the gallery rows of one group only.

    ``mAP`` and ``rank1`` (A, B) float64, NaN without a match; ``matched`` (A, B) int64 counts the
    queries behind a value; rows are ``query_groups`` (A,), columns ``gallery_groups`` (B,).
    """

    query_groups: tuple[str, ...]
    gallery_groups: tuple[str, ...]
    mAP: Float64Array  # noqa: N815 - the field's own spelling
    rank1: Float64Array
    matched: IntArray


@dataclass(frozen=True, eq=False)
class CameraBias:
    """How often the nearest row of another identity has the query's camera, beside what chance would give.

    ``observed`` and ``expected`` (C,) float64, means over the ``queries`` (C,) int64 of each of
    ``cameras``; ``shared`` and ``chance`` (Q,) are the same by query, NaN where the gallery has no
    other identity.  ``factor`` is how many times as often as by chance, over all queries; 1 is fair,
    NaN where no gallery row has a camera of the queries.
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
    labels: MarketLabels,
    *,
    query_groups: npt.ArrayLike,
    gallery_groups: npt.ArrayLike,
    ties: str = "worst",
    memory: int | None = None,
) -> PairTable:
    """Metrics by pairs of groups, e.g. cameras or modalities; groups are labels (Q,) and (G,).

    The rule of ``labels`` holds within each pair.  All pairs together cost one evaluation.  ``memory``
    bounds the bytes of scores held at a time.
    """
    queries, gallery = check_vectors(query_vectors, gallery_vectors)
    asked = check_labels("query_groups", query_groups, len(queries))
    shown = check_labels("gallery_groups", gallery_groups, len(gallery))
    rows, columns = np.unique(asked), np.unique(shown)
    precision, rank1 = (np.full((len(rows), len(columns)), np.nan) for _ in range(2))
    matched = np.zeros((len(rows), len(columns)), np.int64)
    for j, target in enumerate(columns):
        there = np.flatnonzero(shown == target)
        vectors = gallery[there]
        for i, source in enumerate(rows):
            here = np.flatnonzero(asked == source)
            try:
                metrics = market_metrics(
                    queries[here], vectors, **vars(_subset(labels, here, there)), ties=ties, memory=memory
                )
            except NoMatchError:
                continue
            precision[i, j], rank1[i, j] = metrics.mAP, metrics.rank(1)
            matched[i, j] = metrics.queries - metrics.queries_without_match
    return PairTable(_names(rows), _names(columns), precision, rank1, matched)


def _subset(labels: MarketLabels, queries: IntArray, gallery: IntArray) -> MarketLabels:
    chosen = {
        name: column[queries if name.startswith("query") else gallery]
        for name, column in vars(labels).items()
        if column is not None
    }
    return replace(labels, **chosen)


def _names(groups: Labels) -> tuple[str, ...]:
    return tuple(str(group) for group in groups.tolist())


def camera_bias(
    query_vectors: npt.ArrayLike,
    gallery_vectors: npt.ArrayLike,
    *,
    query_identities: npt.ArrayLike,
    gallery_identities: npt.ArrayLike,
    query_cameras: npt.ArrayLike,
    gallery_cameras: npt.ArrayLike,
    memory: int | None = None,
) -> CameraBias:
    """How much the query's own camera attracts its nearest neighbour, identity put aside.

    Only rows of other identities are looked at, since those of the same one differ in camera by the
    protocol.  Chance is the share of the query's camera among these rows.  Rows that tie as nearest
    count by their share.
    """
    queries, gallery = check_vectors(query_vectors, gallery_vectors)
    answers = answers_to(
        len(queries), len(gallery),
        query_identities=query_identities, gallery_identities=gallery_identities,
        query_cameras=query_cameras, gallery_cameras=gallery_cameras,
    )  # fmt: skip
    seen_by, of_gallery = answers.judgement.query_cameras, answers.judgement.gallery_cameras
    shared, chance = np.full(len(queries), np.nan), np.full(len(queries), np.nan)
    size = block_size(len(gallery), gallery.itemsize, memory)
    scores = inner_products(queries, gallery, size)
    for start in range(0, len(queries), size):
        part = scores(start, min(start + size, len(queries)))
        offsets, rows, _ = answers.judgement.same_identity(start, start + len(part))
        part[offsets, rows] = -np.inf
        best = part.max(axis=1)
        for i in np.flatnonzero(best > -np.inf):
            own = of_gallery == seen_by[start + i]
            nearest = part[i] == best[i]
            shared[start + i] = np.count_nonzero(nearest & own) / np.count_nonzero(nearest)
            other = part[i] > -np.inf
            chance[start + i] = np.count_nonzero(other & own) / np.count_nonzero(other)
    return _bias(check_labels("query_cameras", query_cameras, len(queries)), shared, chance)


def _bias(cameras: Labels, shared: Float64Array, chance: Float64Array) -> CameraBias:
    known = ~np.isnan(shared)
    if not known.any():
        raise DataError("camera bias: the gallery has no row of another identity for any query")
    names, codes = np.unique(cameras[known], return_inverse=True)
    counts = np.bincount(codes.reshape(-1))
    observed, expected = (np.bincount(codes.reshape(-1), column[known]) / counts for column in (shared, chance))
    total = chance[known].sum()
    factor = float(shared[known].sum() / total) if total > 0 else float("nan")
    return CameraBias(_names(names), counts.astype(np.int64), observed, expected, factor, shared, chance)
