"""mAP, mINP and CMC of queries against a gallery, by counting instead of sorting.

Only positives have to be placed: the rank of the i-th best positive of a query is i plus the number
of wrong gallery rows that score at least as much.  So each block of queries costs one matrix product
and, for every positive, one pass of comparisons.  No list of Q x G is ever sorted or kept.

Nothing here knows files, samples or networks; unknown labels are resolved in ``rules``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.evaluation.rules import BoolArray, Judgement, check_labels, judge
from reid.records import IntArray

Float64Array = npt.NDArray[np.float64]
Vectors = npt.NDArray[Any]

MAX_RANK = 50
LONGEST_CMC = 1_000_000
LARGEST = 1e15  # absolute value of a component; beyond, inner products overflow float32
BLOCK_BYTES = 64 * 2**20
SMALLEST_BLOCK, LARGEST_BLOCK = 64, 256  # below 64 rows the product re-reads the gallery too often
FEW = 16  # a part of the row smaller than 1/16 is cheaper to copy out first, then count


class NoMatchError(DataError):
    """No query has a right answer in the gallery, so there is nothing to average."""


@dataclass(frozen=True, eq=False)
class Metrics:
    """What a retrieval is worth under the Market rule; every value is a fraction in 0..1.

    ``cmc`` (K,) float64, ``cmc[k - 1]`` is rank-k: the share of queries with a right answer among
    the first k.  ``average_precision`` (Q,) and ``inverse_negative_penalty`` (Q,) float64 are NaN,
    and ``first_match`` (Q,) int64 (place of the first right answer, 1 is best) is 0, for a query
    without any right answer in the gallery; such queries enter no mean and are counted.
    ``queries`` and ``gallery`` count all rows given.
    """

    mAP: float  # noqa: N815 - the field's own spelling
    mINP: float  # noqa: N815
    cmc: Float64Array
    queries: int
    queries_without_match: int
    gallery: int
    average_precision: Float64Array
    inverse_negative_penalty: Float64Array
    first_match: IntArray

    def rank(self, k: int) -> float:
        """CMC at ``k`` (1 is the first place)."""
        return float(self.cmc[k - 1])


def market_metrics(
    query_vectors: npt.ArrayLike,
    gallery_vectors: npt.ArrayLike,
    *,
    query_identities: npt.ArrayLike,
    gallery_identities: npt.ArrayLike,
    query_cameras: npt.ArrayLike,
    gallery_cameras: npt.ArrayLike,
    max_rank: int = MAX_RANK,
    block: int | None = None,
) -> Metrics:
    """Metrics of ``query_vectors`` (Q, D) against ``gallery_vectors`` (G, D), floats.

    Scores are inner products, so rows should have unit length; lengths are not changed here.
    Labels are arrays (Q,) and (G,) of strings or integers.  A gallery row with the query's identity
    and camera is left out.  Average precision is the mean, over all R right rows, of i / rank of
    the i-th (equal to scikit-learn's where no scores tie); INP is R / rank of the last one (Ye et
    al., 2021).  Ties are judged at their worst: of rows with equal scores the wrong ones stand
    first, so an embedding that maps everything to one point scores as low as can be.

    ``max_rank`` is the length of ``cmc``; ``block`` the number of queries scored at a time (default:
    as many as fit 64 MiB, at least 64).
    """
    queries, gallery = _check_vectors(query_vectors, gallery_vectors)
    judgement = judge(
        check_labels("query_identities", query_identities, len(queries)),
        check_labels("gallery_identities", gallery_identities, len(gallery)),
        check_labels("query_cameras", query_cameras, len(queries)),
        check_labels("gallery_cameras", gallery_cameras, len(gallery)),
    )
    if not 1 <= max_rank <= LONGEST_CMC or (block is not None and block < 1):
        raise DataError(
            f"metrics: expected max_rank of 1 to {LONGEST_CMC} and block of 1 or more, got {max_rank} and {block}"
        )
    size = block or _block_size(len(gallery), gallery.itemsize)
    return _summary(_place_all(queries, gallery, judgement, size), len(gallery), max_rank)


def _check_vectors(query: npt.ArrayLike, gallery: npt.ArrayLike) -> tuple[Vectors, Vectors]:
    arrays = []
    for name, given in (("query_vectors", query), ("gallery_vectors", gallery)):
        try:
            array = np.asarray(given)
        except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, tensors that want gradients
            raise DataError(f"{name}: expected an array of floats (rows, D): {' '.join(str(error).split())}") from error
        if array.ndim != 2 or array.dtype.kind != "f":
            raise DataError(f"{name}: expected floats (rows, D), got {array.dtype} {array.shape}")
        if len(array) == 0:
            raise DataError(f"{name}: no rows; nothing can be evaluated without queries and a gallery")
        arrays.append(array)
    if arrays[0].shape[1] != arrays[1].shape[1]:
        raise DataError(
            f"query_vectors have {arrays[0].shape[1]} dimensions, gallery_vectors {arrays[1].shape[1]};"
            " embed both with the same weights"
        )
    dtype = np.result_type(arrays[0], arrays[1], np.float32)
    for name, array in zip(("query_vectors", "gallery_vectors"), arrays, strict=True):
        _check_finite(name, array)
    return np.ascontiguousarray(arrays[0], dtype), np.ascontiguousarray(arrays[1], dtype)


def _check_finite(name: str, vectors: Vectors) -> None:
    for start in range(0, len(vectors), 4096):  # in parts: a mask of everything is a quarter of the vectors
        usable = (np.abs(vectors[start : start + 4096]) < np.float64(LARGEST)).all(axis=1)  # false for NaN too
        if not usable.all():
            raise DataError(
                f"{name}: row {start + int(np.argmin(usable))} holds NaN, infinity or a value beyond {LARGEST:g};"
                " rows should have unit length"
            )


def _block_size(gallery: int, itemsize: int) -> int:
    return int(np.clip(BLOCK_BYTES // (itemsize * gallery), SMALLEST_BLOCK, LARGEST_BLOCK))


@dataclass(frozen=True)
class _Placed:
    """Per query, (Q,): average precision, INP (NaN without a match) and place of the first match (0)."""

    average_precision: Float64Array
    inverse_negative_penalty: Float64Array
    first_match: IntArray


def _place_all(queries: Vectors, gallery: Vectors, judgement: Judgement, block: int) -> _Placed:
    copies, originals = _identical_rows(gallery)
    buffer = np.empty((min(block, len(queries)), len(gallery)), gallery.dtype)
    parts = []
    for start in range(0, len(queries), block):
        stop = min(start + block, len(queries))
        scores = np.matmul(queries[start:stop], gallery.T, out=buffer[: stop - start])  # (B, G)
        # A matrix product may round equal columns differently at the edges of its tiles.
        scores[:, copies] = scores[:, originals]
        parts.append(_place_block(scores, *judgement.same_identity(start, stop)))
    return _Placed(
        np.concatenate([part.average_precision for part in parts]),
        np.concatenate([part.inverse_negative_penalty for part in parts]),
        np.concatenate([part.first_match for part in parts]),
    )


def _place_block(scores: Vectors, offsets: IntArray, rows: IntArray, left_out: BoolArray) -> _Placed:
    """Places of the right rows of B queries.  ``scores`` (B, G) is used up.

    ``offsets``, ``rows`` and ``left_out`` (P,) list the pairs of one identity, sorted by query.
    """
    blocks = len(scores)
    found = scores[offsets, rows]
    scores[offsets, rows] = -np.inf  # what stays finite is wrong: counting needs no mask
    offsets, found = offsets[~left_out], found[~left_out]
    found = found[np.lexsort((-found, offsets))]  # best first within each query
    bounds = np.searchsorted(offsets, np.arange(blocks + 1))
    matches = np.diff(bounds)
    wrong_before = np.empty(len(found), np.int64)
    mask = np.empty(scores.shape[1], np.bool_)
    for i in np.flatnonzero(matches):
        where = slice(bounds[i], bounds[i + 1])
        wrong_before[where] = _count_not_below(scores[i], found[where], mask)
    place = np.arange(len(found)) - bounds[offsets] + 1  # 1, 2, ... among the right rows of the query
    rank = place + wrong_before
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of a query without a match
        precision = np.bincount(offsets, weights=place / rank, minlength=blocks) / matches
    matched = matches > 0
    first, penalty = np.zeros(blocks, np.int64), np.full(blocks, np.nan)
    first[matched] = rank[bounds[:-1][matched]]
    penalty[matched] = matches[matched] / rank[bounds[1:][matched] - 1]
    return _Placed(precision, penalty, first)


def _count_not_below(row: Vectors, thresholds: Vectors, mask: BoolArray) -> list[int]:
    """For each of the descending ``thresholds`` (R,), how many of ``row`` (G,) are at least as large.

    ``mask`` (G,) is scratch space.
    """
    np.greater_equal(row, thresholds[-1], out=mask)
    lowest = int(np.count_nonzero(mask))
    if lowest * FEW < len(row):
        row, mask = row[mask], mask[:lowest]
    counts = [int(np.count_nonzero(np.greater_equal(row, bar, out=mask))) for bar in thresholds[:-1]]
    return [*counts, lowest]


def _identical_rows(vectors: Vectors) -> tuple[IntArray, IntArray]:
    """Rows of ``vectors`` (G, D) that repeat an earlier one, and that earlier row; int64, equal length."""
    _, first, inverse = np.unique(_hashes(vectors), return_index=True, return_inverse=True)
    originals = first[inverse.reshape(-1)]
    copies = np.flatnonzero(originals != np.arange(len(vectors)))
    same = [bool(np.array_equal(vectors[i], vectors[originals[i]])) for i in copies]
    copies = copies[np.array(same, dtype=np.bool_)]
    return copies, originals[copies]


def _hashes(vectors: Vectors) -> npt.NDArray[np.uint64]:
    """(G,) uint64: equal rows have equal hashes, different ones almost never."""
    words = np.uint32 if vectors.itemsize == 4 else np.uint64
    weights = np.random.default_rng(0).integers(0, 2**63, vectors.shape[1], dtype=np.uint64) * 2 + 1
    hashes = np.empty(len(vectors), np.uint64)
    for start in range(0, len(vectors), 4096):
        part = vectors[start : start + 4096] + vectors.dtype.type(0)  # -0.0 becomes 0.0
        hashes[start : start + 4096] = part.view(words).astype(np.uint64) @ weights
    return hashes


def _summary(placed: _Placed, gallery: int, max_rank: int) -> Metrics:
    matched = placed.first_match > 0
    if not matched.any():
        raise NoMatchError(
            f"none of the {len(matched)} queries has a right answer in the gallery: the same identity"
            " seen by another camera; check the identities and cameras of both"
        )
    places = np.bincount(np.minimum(placed.first_match[matched], max_rank + 1), minlength=max_rank + 2)
    return Metrics(
        mAP=float(placed.average_precision[matched].mean()),
        mINP=float(placed.inverse_negative_penalty[matched].mean()),
        cmc=np.cumsum(places[1 : max_rank + 1]) / np.count_nonzero(matched),
        queries=len(matched),
        queries_without_match=int(np.count_nonzero(~matched)),
        gallery=gallery,
        average_precision=placed.average_precision,
        inverse_negative_penalty=placed.inverse_negative_penalty,
        first_match=placed.first_match,
    )
