"""The scores of a tile of rows with all queries, in the fastest arithmetic of the processor, and how wrong they may be.

Few queries are compared row by row. For many, one matrix product is faster: in bfloat16 where the processor has
instructions for it, which halves the time, otherwise in float32. A rounded score only decides whether a row is looked
at again, so a bound on its error is all that an exact search needs.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from reid.records import FloatArray, IntArray
from reid.retrieval.stores.store import BoolArray
from reid.retrieval.stores.tiles import Tile

if TYPE_CHECKING:
    import torch

Float64Array = npt.NDArray[np.float64]

SMALL_TILE = 4096  # rows; for at most so many, a matrix product takes less time than importing FAISS
FEW_QUERIES = 6  # for at most so many queries, inner products one by one are faster than a matrix product
LONGEST_ROW = 1.01  # the bounds on rounding errors hold for vectors of unit length
FLOAT32_ROUNDOFF = 2.0**-24
BFLOAT16_ROUNDOFF = 2.0**-9
PARTS_PER_RANK = 16  # into which a row of scores is cut to find a lower bound of its k-th best


class Products(Protocol):
    """Rounded scores of queries (Q, D) with the rows of tiles."""

    def score(self, first: int, stop: int, tile: Tile) -> None:
        """Compute the scores of the queries ``first`` to ``stop`` with a tile, and keep them until the next call."""

    def lower_bound(self, k: int) -> FloatArray:
        """Return (B,) a lower bound of the k-th largest score of each query; -inf where the tile has fewer rows."""

    def above(self, bounds: FloatArray) -> tuple[IntArray, IntArray, FloatArray]:
        """Return queries (E,), which ascend, columns (E,) and scores (E,) that are not below ``bounds`` (B,)."""

    def margin(self, bounds: FloatArray, first: int, stop: int) -> FloatArray:
        """Return (B,) how far the rounded score of a row may be below ``bounds`` (B,) although its exact score is not.

        ``bounds`` are rounded scores of other rows.
        """


def products_of(queries: FloatArray) -> Products:
    """Choose the arithmetic for queries (Q, D) float32.

    Example:
        >>> products = products_of(np.float32([[1, 0]]))
        >>> products.score(0, 1, Tile(np.float32([[0.6, 0.8], [1, 0]]), 0, 2))
        >>> products.above(np.float32([0.9]))[1].tolist()
        [1]
    """
    if len(queries) > FEW_QUERIES and has_bfloat16():
        return Bfloat16Products(queries)
    return Float32Products(queries)


@cache
def has_bfloat16() -> bool:
    """Whether the processor multiplies matrices in bfloat16, faster than in float32 and with float32 sums."""
    import torch

    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16")) and bool(torch.backends.mkldnn.enabled)


class Float32Products:
    """Scores in float32: one by one for few queries, as a matrix product for more."""

    def __init__(self, queries: FloatArray):
        self.queries = queries
        self.scores: FloatArray = np.empty((0, 0), np.float32)
        self.mask: BoolArray | None = None
        # A float32 inner product is wrong by at most D u |x| |y| (Higham 2002, eq. 3.5), two by twice that.
        self.errors = (2 * (queries.shape[1] + 2) * FLOAT32_ROUNDOFF * LONGEST_ROW * _lengths(queries)).astype(
            np.float32
        )

    def score(self, first: int, stop: int, tile: Tile) -> None:
        """Compute the scores of a tile, also of rows that may not answer."""
        queries = self.queries[first:stop]
        if len(self.queries) <= FEW_QUERIES and tile.size > SMALL_TILE:
            from reid.retrieval.faiss_index import inner_products

            self.scores = inner_products(queries, tile.vectors, tile.start, tile.stop, tile.positions)
        else:
            self.scores = queries @ tile.rows.T
        self.mask = tile.mask

    def lower_bound(self, k: int) -> FloatArray:
        """Return (B,) a lower bound of the k-th largest score."""
        return lower_bound(self.scores if self.mask is None else self.scores[:, self.mask], k)

    def above(self, bounds: FloatArray) -> tuple[IntArray, IntArray, FloatArray]:
        """Return the scores that are not below ``bounds``, and their queries and columns."""
        bounds = np.maximum(bounds, np.finfo(np.float32).min)
        query, column = _answering(np.flatnonzero(self.scores >= bounds[:, None]), self.scores.shape[1], self.mask)
        return query, column, self.scores[query, column]

    def margin(self, bounds: FloatArray, first: int, stop: int) -> FloatArray:
        """Return twice the largest rounding error of a score."""
        return np.broadcast_to(self.errors[first:stop], bounds.shape)


class Bfloat16Products:
    """Scores in bfloat16, which are summed in float32 and then rounded to bfloat16."""

    def __init__(self, queries: FloatArray):
        import torch

        self.queries = torch.from_numpy(np.ascontiguousarray(queries)).bfloat16()
        self.scores: torch.Tensor = torch.empty((0, 0), dtype=torch.bfloat16)
        self.mask: BoolArray | None = None
        self._tile: Tile | None = None
        self._rows = self.scores
        lengths = _lengths(queries)
        residuals = _lengths(queries - self.queries.float().numpy())
        sums = (queries.shape[1] + 2) * FLOAT32_ROUNDOFF * lengths
        # Cauchy-Schwarz on the rounding of the row (at most u |x|) and on that of the query, which is known.
        self.errors: Float64Array = 1.01 * LONGEST_ROW * (BFLOAT16_ROUNDOFF * lengths + residuals + 2 * sums)

    def score(self, first: int, stop: int, tile: Tile) -> None:
        """Compute the scores of a tile, also of rows that may not answer."""
        import torch

        if tile is not self._tile:
            self._tile, self._rows = tile, torch.from_numpy(_as_writable(tile.rows)).bfloat16()
        self.scores = self.queries[first:stop] @ self._rows.T
        self.mask = tile.mask

    def lower_bound(self, k: int) -> FloatArray:
        """Return (B,) a lower bound of the k-th largest score."""
        scores = self.scores.float().numpy()
        return lower_bound(scores if self.mask is None else scores[:, self.mask], k)

    def above(self, bounds: FloatArray) -> tuple[IntArray, IntArray, FloatArray]:
        """Return the scores that are not below ``bounds``, and their queries and columns."""
        import torch

        if len(bounds) and bounds.min() > 0:  # then the order of the bits, as integers, is that of the numbers
            bits: npt.NDArray[np.int16] = self.scores.view(torch.int16).numpy()
            least = (bounds.view(np.uint32) >> 16).astype(np.int16)
            hits = np.flatnonzero(bits >= least[:, None])
            query, column = _answering(hits, bits.shape[1], self.mask)
            score = (bits[query, column].astype(np.uint32) << 16).view(np.float32)
        else:
            scores = self.scores.float().numpy()
            hits = np.flatnonzero(scores >= np.maximum(bounds, np.finfo(np.float32).min)[:, None])
            query, column = _answering(hits, scores.shape[1], self.mask)
            score = scores[query, column]
        return query, column, score

    def margin(self, bounds: FloatArray, first: int, stop: int) -> FloatArray:
        """Return twice the largest rounding error of a score near ``bounds``."""
        errors = self.errors[first:stop]
        largest = np.where(np.isfinite(bounds), np.abs(bounds), 0) + 4 * errors
        margin: Float64Array = 2.02 * (errors + BFLOAT16_ROUNDOFF * largest)
        return margin.astype(np.float32)


def lower_bound(scores: npt.NDArray[Any], k: int) -> FloatArray:
    """Return (B,) a close lower bound of the k-th largest of ``scores`` (B, T), in one pass; -inf where T < k.

    Each row is cut into parts. The k-th largest of their maxima is a lower bound, because k parts reach it.  Whole
    numbers are compared as they are.

    Example:
        >>> lower_bound(np.float32([[3, 1, 2]]), 2).tolist()
        [2.0]
    """
    if scores.shape[1] < k:
        return np.full(len(scores), -np.inf, np.float32)
    parts = k * PARTS_PER_RANK
    depth = scores.shape[1] // parts
    if depth > 1:
        scores = scores[:, : depth * parts].reshape(len(scores), depth, parts).max(axis=1)
    bound: FloatArray = np.partition(scores, -k, axis=1)[:, -k].copy()
    return bound


def _answering(hits: IntArray, size: int, mask: BoolArray | None) -> tuple[IntArray, IntArray]:
    """Return the queries and columns of positions (E,) in scores (B, ``size``), without rows that may not answer."""
    query, column = np.divmod(hits, max(1, size))
    if mask is None:
        return query, column
    kept = mask[column]
    return query[kept], column[kept]


def _lengths(vectors: FloatArray) -> Float64Array:
    lengths: Float64Array = np.sqrt(np.einsum("qd,qd->q", vectors, vectors, dtype=np.float64))
    return lengths


def _as_writable(rows: FloatArray) -> FloatArray:
    """Return a view that claims to be writable, because torch warns about memory that is not; nothing writes to it."""
    if rows.flags.writeable or not rows.size:
        return rows
    memory = (ctypes.c_float * rows.size).from_address(rows.ctypes.data)
    return np.ctypeslib.as_array(memory).reshape(rows.shape)
