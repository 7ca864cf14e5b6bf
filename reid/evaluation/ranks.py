"""The ranks of the right rows of each query, which are found by counting instead of sorting.

The rank of the i-th best right row is i plus the number of wrong rows before it, so every right row costs one pass of
comparisons.  The tie rule decides the order of rows with equal scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from reid.evaluation.labels import BoolArray, Labels
from reid.evaluation.score_blocks import (
    ScoreBlock,
    ScoreBlocks,
    Vectors,
    block_size,
    valid_block,
    valid_blocks,
    vector_scores,
)
from reid.records import IntArray

Float64Array = npt.NDArray[np.float64]

AT_ONCE = 16  # thresholds that a row is compared with in one call
FEW = 16  # below 1/16 of the row, it is cheaper to copy the rows that pass the lowest threshold and count among them

TIES = {
    "worst": "of rows with equal scores the wrong ones stand first",
    "mean": "the mean over all orders of rows (in a CMC over identities: of identities) with equal scores",
}


@dataclass(frozen=True)
class RightRanks:
    """E ranks at which a right row stands, or may stand where scores tie.

    ``query`` (E,) int64 is the position of the query in its block, and ``rank`` (E,) int64 the rank; 1 is best.
    ``chance`` (E,) is the probability that a right row stands there; it is 1 unless the row ties with wrong ones.
    ``before`` (E,) is the mean number of right rows in front of it, if it stands there.  ``first`` and ``last`` (E,)
    are the probabilities that it is the first and the last right row of the query.
    """

    query: IntArray
    rank: IntArray
    chance: Float64Array
    before: Float64Array
    first: Float64Array
    last: Float64Array


@dataclass(frozen=True)
class BlockRanks:
    """The ranks of the right rows of the B queries from ``start`` on.

    ``matches`` (B,) int64 counts the right rows of each query, and ``first_match`` (B,) int64 is the rank of the first
    one if ties go against it, 0 without any.  ``rows`` are the ranks of all right rows, some queries at a time.
    ``identities`` are the ranks of the query's identity where each gallery identity has one rank, or None where rows
    have ranks.
    """

    start: int
    matches: IntArray
    first_match: IntArray
    rows: Iterable[RightRanks]
    identities: RightRanks | None


def rank_right_rows(
    scores: ScoreBlocks, labels: Labels, start: int, size: int, *, ties: str, cmc_over: str
) -> BlockRanks:
    """Rank the right rows of a block of queries.

    Args:
        scores: The scores of Q queries and G gallery rows.
        labels: Their labels.
        start: The first query of the block.
        size: The number of queries of the block; the last block may have fewer.
        ties: How rows with equal scores are ordered, a key of ``TIES``.
        cmc_over: What has a rank in the CMC: "rows" or "identities".
    """
    block = valid_block(scores, labels, start, size)
    identities = first = None
    if cmc_over == "identities":
        identities, first = _rank_identities(block, labels, ties)
    counts = count_wrong(block.scores, block.offsets, block.rows, ties)
    rows = [certain_ranks(counts)] if ties == "worst" else ranks_of(counts)
    return BlockRanks(start, counts.matches, counts.first_at_worst() if first is None else first, rows, identities)


def _rank_identities(block: ScoreBlock, labels: Labels, ties: str) -> tuple[RightRanks, IntArray]:
    by_identity = labels.gallery_by_identity
    own = by_identity.own[block.start : block.start + len(block.scores)]
    return first_of_identities(block.scores[:, by_identity.order], by_identity.starts, own, ties)


@dataclass(frozen=True)
class WrongCounts:
    """The P right rows of B queries, best first within each query, and the number of wrong rows around them.

    ``bounds`` (B + 1,) int64: the rows of query i are ``bounds[i]:bounds[i + 1]``.  ``scores`` (P,) are their scores.
    ``before`` (P,) int64 counts the wrong rows before each.  ``tied`` (P,) int64 counts the wrong rows of the same
    score that may stand before or after; there are none by the rule "worst", which counts them as before.
    """

    bounds: IntArray
    scores: Vectors
    before: IntArray
    tied: IntArray

    @property
    def matches(self) -> IntArray:
        """The number of right rows of each query, (B,) int64."""
        return np.diff(self.bounds)

    def first_at_worst(self) -> IntArray:
        """Return the rank of the first right row if ties go against it, (B,) int64, 0 without any."""
        matched = self.matches > 0
        starts = self.bounds[:-1][matched]
        ranks = np.zeros(len(matched), np.int64)
        ranks[matched] = 1 + self.before[starts] + self.tied[starts]
        return ranks


def count_wrong(scores: Vectors, offsets: IntArray, rows: IntArray, ties: str) -> WrongCounts:
    """Count the wrong rows that score more than, or as much as, the right rows of B queries.

    Args:
        scores: Scores (B, G), -inf for rows that are left out; used up.
        offsets: Queries of the P pairs of one identity, (P,) int64, ascending.
        rows: Gallery rows of these pairs, (P,) int64.
        ties: How rows with equal scores are ordered, a key of ``TIES``.
    """
    found = scores[offsets, rows]
    scores[offsets, rows] = -np.inf  # every row that stays finite is wrong, so counting needs no mask
    valid = found > -np.inf
    offsets, found = offsets[valid], found[valid]
    found = found[np.lexsort((-found, offsets))]  # best first within each query
    bounds = np.searchsorted(offsets, np.arange(len(scores) + 1)).astype(np.int64)
    before = np.empty(len(found), np.int64)
    not_after = np.empty(len(found), np.int64)
    masks = np.empty((AT_ONCE, scores.shape[1]), np.bool_)
    for i in np.flatnonzero(np.diff(bounds)):
        where = slice(bounds[i], bounds[i + 1])
        not_after[where] = _count_passing(np.greater_equal, scores[i], found[where], masks)
        if ties == "mean":
            before[where] = _count_passing(np.greater, scores[i], found[where], masks)
    if ties == "worst":
        before = not_after
    return WrongCounts(bounds, found, before, not_after - before)


def _count_passing(passes: np.ufunc, row: Vectors, thresholds: Vectors, masks: BoolArray) -> list[int]:
    """Count the values of ``row`` (G,) that pass each of the descending ``thresholds`` (R,).

    ``masks`` (M, G) is scratch space.
    """
    lowest = passes(row, thresholds[-1], out=masks[0])
    last = int(np.count_nonzero(lowest))
    if last * FEW < len(row):
        row, masks = row[lowest], masks[:, :last]
    counts: list[int] = []
    for start in range(0, len(thresholds) - 1, len(masks)):
        bars = thresholds[start : min(start + len(masks), len(thresholds) - 1)]
        counts += map(int, map(np.count_nonzero, passes(row, bars[:, None], out=masks[: len(bars)])))
    return [*counts, last]


def ranks_of(counts: WrongCounts) -> Iterator[RightRanks]:
    """Turn counts into ranks: those of all queries without ties at once, then those of one tied query after another."""
    query = np.repeat(np.arange(len(counts.matches)), counts.matches)
    tied = np.bincount(query, weights=counts.tied, minlength=len(counts.matches)) > 0
    yield certain_ranks(counts, ~tied[query])
    for i in np.flatnonzero(tied):
        where = slice(counts.bounds[i], counts.bounds[i + 1])
        yield _tied_ranks(int(i), counts.scores[where], counts.before[where], counts.tied[where])


def certain_ranks(counts: WrongCounts, rows: BoolArray | slice = slice(None)) -> RightRanks:
    """Turn the counts of the right ``rows`` (P,) that tie with no wrong row into ranks."""
    query = np.repeat(np.arange(len(counts.matches)), counts.matches)
    before = np.arange(len(query)) - counts.bounds[query]  # 0, 1, ... among the right rows of the query
    query, rank = query[rows], (1 + before + counts.before)[rows]
    before = before[rows]
    last = before == counts.matches[query] - 1
    columns = (np.ones(len(query)), before, before == 0, last)
    return RightRanks(query, rank, *(column.astype(np.float64) for column in columns))


def _tied_ranks(query: int, scores: Vectors, wrong_before: IntArray, wrong_tied: IntArray) -> RightRanks:
    """List the ranks of one query whose R right rows have the descending ``scores`` (R,), some level with wrong rows.

    Of n rows with one score, r are right, and c rows with p right ones stand before them.  Each of the ranks c + 1 to
    c + n holds a right row with probability r / n.  If the j-th does, p + (j - 1) (r - 1) / (n - 1) right rows stand
    before it on average.  So the mean of a sum over right rows of (right rows in front) / rank is exact (McSherry and
    Najork 2008).
    """
    starts = np.flatnonzero(np.diff(scores, prepend=np.inf) != 0)  # of the groups of one score
    sizes = np.diff(starts, append=len(scores))
    pieces = []
    for p, r in zip(starts.tolist(), sizes.tolist(), strict=True):
        n = r + int(wrong_tied[p])
        j = np.arange(n)
        nothing = np.zeros(n)
        pieces.append(
            RightRanks(
                np.full(n, query),
                1 + p + int(wrong_before[p]) + j,
                np.full(n, r / n),
                p + j * ((r - 1) / max(n - 1, 1)),
                _chance_of_first(n, r) if p == 0 else nothing,
                _chance_of_first(n, r)[::-1] if p + r == len(scores) else nothing,
            )
        )
    columns = zip(*(vars(piece).values() for piece in pieces), strict=True)
    return RightRanks(*(np.concatenate(column) for column in columns))


def _chance_of_first(n: int, r: int) -> Float64Array:
    """Compute the probability (n,) that position j of n rows in random order holds the first of the r right rows."""
    j = np.arange(n)
    none_yet = np.cumprod(np.clip((n - r - j) / (n - j), 0, 1))  # the first j + 1 are all wrong
    return np.concatenate([[1.0], none_yet[:-1]]) - none_yet


def first_of_identities(scores: Vectors, starts: IntArray, own: IntArray, ties: str) -> tuple[RightRanks, IntArray]:
    """Rank the query's identity where each gallery identity has one rank, that of its best row (as in SYSU-MM01's CMC).

    Args:
        scores: Scores (B, G) with the columns sorted by identity, -inf where left out.
        starts: The first columns of the I identities, (I,) int64.
        own: The number of the query's identity among them, (B,) int64, -1 if it is not there.
        ties: How identities with equal scores are ordered, a key of ``TIES``.

    Returns:
        The ranks, and the rank of each query's identity if ties go against it, (B,) int64, 0 without a match.
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
    return RightRanks(query, rank, chance, np.zeros(len(query)), chance, chance), worst


def single_shot_ranks(
    query_vectors: npt.ArrayLike, gallery_vectors: npt.ArrayLike, labels: Labels, repeats: int, seed: int = 0
) -> IntArray:
    """Rank the right image where the gallery holds only one image of each identity.

    The image of each identity is drawn anew for every query and repeat, from the rows that are not left out (Li et
    al., "DeepReID", CVPR 2014).  Equal scores count as worse.  Locations are not used: only rows of the query's own
    camera that show its identity are left out.

    Args:
        query_vectors: Vectors (Q, D) of unit length.
        gallery_vectors: Vectors (G, D) of unit length.
        labels: Labels of both.
        repeats: How often to draw.
        seed: Seed of the draws.

    Returns:
        Ranks (repeats, Q), int64; 0 without a right image.
    """
    scores, _ = vector_scores(query_vectors, gallery_vectors, labels, block=block_size(labels.gallery, 8))
    return drawn_ranks(scores, labels, repeats, seed)


def drawn_ranks(scores: ScoreBlocks, labels: Labels, repeats: int, seed: int = 0) -> IntArray:
    """Rank the right image as :func:`single_shot_ranks` does, by any scores.

    Args:
        scores: The scores of the queries, as :func:`reid.evaluation.score_metrics` takes them.
        labels: The labels of the Q queries and G gallery rows.
        repeats: How often to draw.
        seed: Seed of the draws.

    Returns:
        Ranks (repeats, Q), int64; 0 without a right image.
    """
    labels = replace(labels, query_locations=None, gallery_locations=None)
    size = block_size(labels.gallery, 8)
    by_identity = labels.gallery_by_identity
    sizes = np.diff(by_identity.starts, append=len(by_identity.order))
    generator = np.random.default_rng(seed)
    ranks = np.zeros((repeats, labels.queries), np.int64)
    for block in valid_blocks(scores, labels, size):
        where = slice(block.start, block.start + len(block.scores))
        valid, own = block.scores[:, by_identity.order], by_identity.own[where]
        for repeat in range(repeats):
            drawn = _draw_one_of_each(valid, by_identity.starts, sizes, generator)  # (B, I) scores
            right = np.where(own >= 0, drawn[np.arange(len(own)), np.maximum(own, 0)], -np.inf)
            rank = np.count_nonzero(drawn >= right[:, None], axis=1)
            ranks[repeat, where] = np.where(right > -np.inf, rank, 0)
    return ranks


def _draw_one_of_each(scores: Vectors, starts: IntArray, sizes: IntArray, generator: np.random.Generator) -> Vectors:
    """Draw the score (B, I) of one row of each identity among those above -inf; columns are sorted by identity."""
    keys = np.where(scores > -np.inf, generator.random(scores.shape), -1.0)
    best = np.repeat(np.maximum.reduceat(keys, starts, axis=1), sizes, axis=1)
    return np.maximum.reduceat(np.where(keys == best, scores, -np.inf), starts, axis=1)
