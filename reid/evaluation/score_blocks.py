"""Scores of queries against a gallery, a block of queries at a time, in bounded memory.

Whoever needs scores asks for rows ``start`` to ``stop`` of the Q x G table and gets an array that it
may overwrite; the whole table never exists.  Nothing here knows labels or metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.records import IntArray

Vectors = npt.NDArray[Any]
ScoreBlocks = Callable[[int, int], Vectors]
"""(start, stop) -> scores (stop - start, G) floats of those queries, larger is nearer, -inf is left out.

The array may be overwritten by the caller and is reused by the next call."""

LARGEST = 1e15  # absolute value of a component; beyond, inner products overflow float32
BLOCK_BYTES = 64 * 2**20
SMALLEST_BLOCK, LARGEST_BLOCK = 64, 512  # below 64 rows the product re-reads the gallery too often
FIRST_COMPONENTS = 4  # of a row, looked at to find rows that may be equal


def check_vectors(query: npt.ArrayLike, gallery: npt.ArrayLike) -> tuple[Vectors, Vectors]:
    """Both as contiguous floats (Q, D) and (G, D) of one type, finite and not empty; else a DataError."""
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


def block_size(gallery: int, itemsize: int = 4, memory: int | None = None) -> int:
    """How many queries to score at a time.

    ``memory`` bounds the bytes of their scores; by default 64 MiB, or what 64 queries need if that is more.
    """
    if memory is not None:
        return int(np.clip(memory // (itemsize * gallery), 1, LARGEST_BLOCK))
    return int(np.clip(BLOCK_BYTES // (itemsize * gallery), SMALLEST_BLOCK, LARGEST_BLOCK))


def inner_products(queries: Vectors, gallery: Vectors, block: int) -> ScoreBlocks:
    """Scores of checked ``queries`` (Q, D) against ``gallery`` (G, D): inner products, ``block`` rows at most.

    Equal gallery rows have equal scores, which a matrix product alone does not promise: it may
    round equal columns differently at the edges of its tiles.
    """
    copies, originals = _identical_rows(gallery)
    buffer = np.empty((min(block, len(queries)), len(gallery)), gallery.dtype)

    def scores(start: int, stop: int) -> Vectors:
        part = np.matmul(queries[start:stop], gallery.T, out=buffer[: stop - start])  # (B, G)
        part[:, copies] = part[:, originals]
        return part

    return scores


def _identical_rows(vectors: Vectors) -> tuple[IntArray, IntArray]:
    """Rows of ``vectors`` (G, D) that repeat an earlier one, and that earlier row; int64, equal length.

    Few rows agree even in their first components, so few are read whole.
    """
    starts = _first_of_equal(_hashes(vectors[:, :FIRST_COMPONENTS]))
    alike = np.flatnonzero(np.bincount(starts, minlength=len(vectors))[starts] > 1)
    originals = alike[_first_of_equal(_hashes(vectors[alike]))]
    kept = alike != originals
    copies, originals = alike[kept], originals[kept]
    same = [bool(np.array_equal(vectors[i], vectors[j])) for i, j in zip(copies, originals, strict=True)]
    return copies[np.array(same, np.bool_)], originals[np.array(same, np.bool_)]


def _first_of_equal(hashes: npt.NDArray[np.uint64]) -> IntArray:
    """(N,) int64: the first position in ``hashes`` (N,) that holds the same value."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)].astype(np.int64)


def _hashes(vectors: Vectors) -> npt.NDArray[np.uint64]:
    """(G,) uint64: equal rows have equal hashes, different ones almost never."""
    # Words of 32 bits: the low half of a round float64 is 0, and a product modulo 2^64 would lose the rest.
    words = vectors.shape[1] * vectors.itemsize // 4
    weights = np.random.default_rng(0).integers(0, 2**63, words, dtype=np.uint64) * 2 + 1
    hashes = np.empty(len(vectors), np.uint64)
    for start in range(0, len(vectors), 4096):
        part = vectors[start : start + 4096] + vectors.dtype.type(0)  # contiguous, and -0.0 becomes 0.0
        hashes[start : start + 4096] = part.view(np.uint32).astype(np.uint64) @ weights
    return hashes
