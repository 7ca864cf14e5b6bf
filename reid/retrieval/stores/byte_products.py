"""Sums of products of whole numbers by matrix products of bytes, which some processors have instructions for."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from reid.records import FloatArray, IntArray
from reid.retrieval.stores.products import lower_bound
from reid.retrieval.stores.row_codes import ZERO, ByteArray, CodedQueries, Float64Array
from reid.retrieval.stores.store import BoolArray
from reid.retrieval.stores.tiles import Tile

if TYPE_CHECKING:
    import torch

HITS_PER_RANK = 8  # of a query in a tile; where more reach the bounds, the tile has better bounds


@cache
def has_byte_products() -> bool:
    """Whether the processor multiplies matrices of bytes, several times faster than in float32."""
    import torch

    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    is_fast = bool(known.get("avx512_vnni") or known.get("amx_int8")) and bool(torch.backends.mkldnn.enabled)
    return is_fast and hasattr(torch, "_int_mm")


class ByteSums:
    """Sums of products of queries with the same few codes again and again, which therefore stay as bytes with a sign.

    Args:
        codes: (N, D) uint8.

    Example:
        >>> from reid.retrieval.stores.row_codes import RowCodes
        >>> codes = RowCodes.of(np.float32([[1, 0], [0.6, 0.8]]))
        >>> queries = CodedQueries.of(np.float32([[1, 0]] * 20), codes)
        >>> sums = ByteSums(codes.codes).of(queries)
        >>> sums.shape, bool(sums[0, 0] > sums[0, 1])
        ((20, 2), True)
    """

    def __init__(self, codes: ByteArray):
        import torch

        self._rows = torch.from_numpy((codes ^ np.uint8(ZERO)).view(np.int8))

    def of(self, queries: CodedQueries) -> npt.NDArray[np.int32]:
        """Return the sums (Q, N)."""
        import torch

        sums: npt.NDArray[np.int32] = torch._int_mm(
            torch.from_numpy(queries.whole).to(torch.int8), self._rows.T
        ).numpy()
        return sums


class ByteProducts:
    """Sums of products of whole numbers, by matrix products of bytes.

    The arrays of a tile are used again for the next one: to get them anew from the system takes as long as a product.
    """

    def __init__(self) -> None:
        import torch

        self._buffers = {kind: torch.empty(0, dtype=kind) for kind in (torch.int8, torch.int32)}
        self._tile: Tile | None = None

    def take(self, queries: CodedQueries) -> None:
        """Take the queries (Q, D) that tiles are multiplied with."""
        import torch

        self.queries = queries
        self._whole = torch.from_numpy(queries.whole).to(torch.int8)
        self._tile = None

    def above(
        self, first: int, stop: int, tile: Tile, bounds: Float64Array, k: int
    ) -> tuple[IntArray, IntArray, FloatArray]:
        """Return queries (E,), which ascend, columns (E,) and scores (E,) whose upper bounds reach ``bounds`` (B,)."""
        import torch

        if tile is not self._tile:
            self._rows = self._array(tile.size, self._whole.shape[1], torch.int8)
            np.bitwise_xor(tile.rows, np.uint8(ZERO), out=self._rows.numpy().view(np.uint8))
            self._tile = tile
        self._sums = self._array(stop - first, tile.size, torch.int32)
        torch.ops.aten._int_mm.out(self._whole[first:stop], self._rows.T, out=self._sums)
        known = bounds
        reaches = None if np.isinf(known).any() else self._reaching(first, stop, known, tile.mask)
        if reaches is None or np.count_nonzero(reaches) > HITS_PER_RANK * k * len(known):
            known = np.maximum(known, self._bounds_of_tile(first, stop, k, tile.mask))
            reaches = self._reaching(first, stop, known, tile.mask)
        hits = np.flatnonzero(reaches)
        ends = np.searchsorted(hits, tile.size * np.arange(1, stop - first + 1))  # faster than a division of the hits
        query = np.repeat(np.arange(stop - first), np.diff(ends, prepend=0))
        column = hits - tile.size * query
        query += first
        return query, column, self.queries.scores(query, self._sums.numpy().reshape(-1)[hits])

    def _reaching(self, first: int, stop: int, bounds: Float64Array, mask: BoolArray | None) -> BoolArray:
        """Return (B, T) bool, which upper bounds reach ``bounds`` (B,)."""
        one, block = self.queries, slice(first, stop)
        least = np.floor((bounds - 1.001 * one.errors[block] - one.constants[block]) / one.units[block])
        limits = np.clip(least, np.iinfo(np.int32).min, np.iinfo(np.int32).max).astype(np.int32)
        reaches: BoolArray = self._sums.numpy() >= limits[:, None]
        if mask is not None:
            reaches &= mask
        return reaches

    def _bounds_of_tile(self, first: int, stop: int, k: int, mask: BoolArray | None) -> Float64Array:
        """Return (B,) a lower bound of the k-th best score of each query in the tile; -inf where it has fewer rows."""
        one, block, sums = self.queries, slice(first, stop), self._sums.numpy()
        lowest = lower_bound((sums if mask is None else sums[:, mask]).astype(np.float32), k).astype(np.float64)
        own = one.constants[block] + one.units[block] * np.nan_to_num(lowest, neginf=0.0) - one.errors[block]
        return np.where(np.isfinite(lowest), own - 1e-6 * (1 + np.abs(own)), -np.inf)

    def _array(self, rows: int, columns: int, kind: torch.dtype) -> torch.Tensor:
        import torch

        if len(self._buffers[kind]) < rows * columns:
            self._buffers[kind] = torch.empty(rows * columns, dtype=kind)
        return self._buffers[kind][: rows * columns].view(rows, columns)
