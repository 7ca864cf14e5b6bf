"""Where the right rows of a query stand among the valid ones, by counting instead of sorting.

The rank of the i-th best right row is i plus the number of wrong rows before it, so every right row
costs one pass of comparisons.  What stands before what among equal scores is the tie rule's to say.
Nothing here knows vectors, labels or averages over queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reid.evaluation.labels import BoolArray
from reid.evaluation.score_blocks import Vectors
from reid.records import IntArray

Float64Array = npt.NDArray[np.float64]

AT_ONCE = 16  # thresholds that a row is compared with in one call
FEW = 16  # a part of the row smaller than 1/16 is cheaper to copy out first, then count

TIES = {
    "worst": "of rows with equal scores the wrong ones stand first",
    "mean": "the mean over all orders of rows (in a CMC over identities: of identities) with equal scores",
}


@dataclass(frozen=True)
class Places:
    """E places on which a right row stands, or may stand where scores tie.

    ``query`` (E,) int64, position in the block; ``rank`` (E,) int64, 1 is best; ``chance`` (E,): how
    likely a right row stands there, 1 unless it ties with wrong ones; ``before`` (E,): how many right
    rows stand in front of it then, on average; ``first``, ``last`` (E,): how likely it is the first,
    the last right row of the query.
    """

    query: IntArray
    rank: IntArray
    chance: Float64Array
    before: Float64Array
    first: Float64Array
    last: Float64Array


@dataclass(frozen=True)
class Counts:
    """The P right rows of B queries, best first within each query, and the wrong rows around them.

    ``bounds`` (B + 1,) int64: query i's rows are ``bounds[i]:bounds[i + 1]``; ``scores`` (P,);
    ``before`` (P,) int64: wrong rows that stand before; ``tied`` (P,) int64: wrong rows of the same
    score that may stand before or after, none by the rule "worst", which counts them as before.
    """

    bounds: IntArray
    scores: Vectors
    before: IntArray
    tied: IntArray

    @property
    def matches(self) -> IntArray:
        """(B,) int64: right rows of each query."""
        return np.diff(self.bounds)

    def first_at_worst(self) -> IntArray:
        """(B,) int64: rank of the first right row if ties go against it, 0 without any."""
        matched = self.matches > 0
        starts = self.bounds[:-1][matched]
        ranks = np.zeros(len(matched), np.int64)
        ranks[matched] = 1 + self.before[starts] + self.tied[starts]
        return ranks


def count_wrong(scores: Vectors, offsets: IntArray, rows: IntArray, ties: str) -> Counts:
    """Count the wrong rows above and level with the right rows of B queries.  ``scores`` (B, G) is used up.

    ``offsets`` and ``rows`` (P,) int64 list the pairs of one identity, sorted by query.  A score of
    -inf leaves a row out.  ``ties`` is a key of ``TIES``.
    """
    found = scores[offsets, rows]
    scores[offsets, rows] = -np.inf  # what stays finite is wrong: counting needs no mask
    valid = found > -np.inf
    offsets, found = offsets[valid], found[valid]
    found = found[np.lexsort((-found, offsets))]  # best first within each query
    bounds = np.searchsorted(offsets, np.arange(len(scores) + 1)).astype(np.int64)
    before = np.empty(len(found), np.int64)
    not_after = np.empty(len(found), np.int64)
    masks = np.empty((AT_ONCE, scores.shape[1]), np.bool_)
    for i in np.flatnonzero(np.diff(bounds)):
        where = slice(bounds[i], bounds[i + 1])
        not_after[where] = _count(np.greater_equal, scores[i], found[where], masks)
        if ties == "mean":
            before[where] = _count(np.greater, scores[i], found[where], masks)
    if ties == "worst":
        before = not_after
    return Counts(bounds, found, before, not_after - before)


def _count(beats: np.ufunc, row: Vectors, thresholds: Vectors, masks: BoolArray) -> list[int]:
    """How many of ``row`` (G,) beat each of the descending ``thresholds`` (R,).  ``masks`` (M, G) is scratch space."""
    lowest = beats(row, thresholds[-1], out=masks[0])
    last = int(np.count_nonzero(lowest))
    if last * FEW < len(row):
        row, masks = row[lowest], masks[:, :last]
    counts: list[int] = []
    for start in range(0, len(thresholds) - 1, len(masks)):
        bars = thresholds[start : min(start + len(masks), len(thresholds) - 1)]
        counts += map(int, map(np.count_nonzero, beats(row, bars[:, None], out=masks[: len(bars)])))
    return [*counts, last]


def places_of(counts: Counts) -> Iterator[Places]:
    """All places of B queries: those of the queries without ties at once, then one query after the other."""
    query = np.repeat(np.arange(len(counts.matches)), counts.matches)
    tied = np.bincount(query, weights=counts.tied, minlength=len(counts.matches)) > 0
    certain = ~tied[query]
    before = np.arange(len(query)) - counts.bounds[query]  # 0, 1, ... among the right rows of the query
    yield Places(
        query[certain],
        (1 + before + counts.before)[certain],
        np.ones(np.count_nonzero(certain)),
        before[certain].astype(np.float64),
        (before == 0)[certain].astype(np.float64),
        (before == counts.matches[query] - 1)[certain].astype(np.float64),
    )
    for i in np.flatnonzero(tied):
        where = slice(counts.bounds[i], counts.bounds[i + 1])
        yield _uncertain(int(i), counts.scores[where], counts.before[where], counts.tied[where])


def _uncertain(query: int, scores: Vectors, wrong_before: IntArray, wrong_tied: IntArray) -> Places:
    """Places of one query whose R right rows have ``scores`` (R,), descending, some level with wrong rows.

    Of n rows with one score, r of them right, behind c rows with p right ones: any of the ranks c + 1
    to c + n holds a right row with chance r / n, and given that, j - 1 of the n being in front of the
    j-th, p + (j - 1) (r - 1) / (n - 1) right rows stand before it on average.  So the mean of a sum
    over right rows of (places in front) / rank is exact (McSherry and Najork 2008).
    """
    starts = np.flatnonzero(np.diff(scores, prepend=np.inf) != 0)  # of the groups of one score
    sizes = np.diff(starts, append=len(scores))
    parts = []
    for p, r in zip(starts.tolist(), sizes.tolist(), strict=True):
        n = r + int(wrong_tied[p])
        j = np.arange(n)
        nothing = np.zeros(n)
        parts.append(
            Places(
                np.full(n, query),
                1 + p + int(wrong_before[p]) + j,
                np.full(n, r / n),
                p + j * ((r - 1) / max(n - 1, 1)),
                _first_of(n, r) if p == 0 else nothing,
                _first_of(n, r)[::-1] if p + r == len(scores) else nothing,
            )
        )
    return Places(*(np.concatenate(columns) for columns in zip(*(vars(part).values() for part in parts), strict=True)))


def _first_of(n: int, r: int) -> Float64Array:
    """Chance (n,) that place j of n rows in random order holds the first of the r right ones."""
    j = np.arange(n)
    none_yet = np.cumprod(np.clip((n - r - j) / (n - j), 0, 1))  # the first j + 1 are all wrong
    return np.concatenate([[1.0], none_yet[:-1]]) - none_yet


def first_of_identities(scores: Vectors, starts: IntArray, own: IntArray, ties: str) -> tuple[Places, IntArray]:
    """The first match when a gallery identity counts once, at its best row (as in SYSU-MM01's CMC).

    ``scores`` (B, G) have their columns sorted by identity, -inf where left out; ``starts`` (I,) are
    the first columns of the identities; ``own`` (B,) is the position of the query's identity among
    them, -1 if it is not there.  Returns the places of the first match and its rank at worst, (B,)
    int64, 0 without a match.
    """
    best = np.maximum.reduceat(scores, starts, axis=1)  # (B, I)
    matched = np.flatnonzero((own >= 0) & (best[np.arange(len(best)), own] > -np.inf))
    best, own = best[matched], own[matched, None]
    right = np.take_along_axis(best, own, axis=1)  # (M, 1)
    np.put_along_axis(best, own, -np.inf, axis=1)
    not_after = np.count_nonzero(best >= right, axis=1)
    before = np.count_nonzero(best > right, axis=1) if ties == "mean" else not_after
    tied = not_after - before
    query = np.repeat(matched, tied + 1)
    rank = 1 + np.repeat(before, tied + 1) + np.arange(len(query)) - np.repeat(np.cumsum(tied + 1) - tied - 1, tied + 1)
    chance = 1 / np.repeat(tied + 1.0, tied + 1)
    worst = np.zeros(len(scores), np.int64)
    worst[matched] = 1 + not_after
    return Places(query, rank, chance, np.zeros(len(query)), chance, chance), worst
