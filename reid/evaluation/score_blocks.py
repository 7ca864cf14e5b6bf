"""Scores of queries against a gallery, one block of queries at a time, in bounded memory.

Code that needs scores asks for rows ``start`` to ``stop`` of the Q x G table and gets an array that it may overwrite;
the whole table never exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.evaluation.labels import Labels
from reid.records import IntArray

Vectors = npt.NDArray[Any]
ScoreBlocks = Callable[[int, int], Vectors]
"""(start, stop) -> scores (stop - start, G) floats of those queries; larger is nearer, -inf is left out.

The caller may overwrite the array, and the next call reuses it."""

LARGEST = 1e15  # absolute value of a component; beyond, inner products overflow float32
BLOCK_BYTES = 64 * 2**20
SMALLEST_BLOCK, LARGEST_BLOCK = 64, 512  # below 64 rows the product re-reads the gallery too often
FIRST_COMPONENTS = 4  # components of a row that are compared first, to find rows that may be equal


class ScoreBlock(NamedTuple):
    """Scores of the B queries from ``start`` on, where rows that are left out have the score -inf.

    ``scores`` (B, G) may be overwritten.  ``offsets`` and ``rows`` (P,) int64 list the pairs of one identity, sorted
    by query: query minus ``start`` and gallery row.
    """

    start: int
    scores: Vectors
    offsets: IntArray
    rows: IntArray


def valid_block(scores: ScoreBlocks, labels: Labels, start: int, size: int) -> ScoreBlock:
    """Score at most ``size`` queries from ``start`` on, and leave out what ``labels`` leave out."""
    block = scores(start, min(start + size, len(labels.query_identities)))
    return ScoreBlock(start, block, *labels.leave_out(block, start))


def valid_blocks(scores: ScoreBlocks, labels: Labels, size: int) -> Iterator[ScoreBlock]:
    """Go through the scores of all queries, ``size`` queries at a time, as :func:`valid_block` does."""
    for start in range(0, labels.queries, size):
        yield valid_block(scores, labels, start, size)


def vector_scores(
    query_vectors: npt.ArrayLike,
    gallery_vectors: npt.ArrayLike,
    labels: Labels,
    memory: int | None = None,
    *,
    block: int | None = None,
) -> tuple[ScoreBlocks, int]:
    """Prepare the inner products of query vectors (Q, D) and gallery vectors (G, D).

    ``memory`` bounds the bytes of the scores held at a time; ``block`` sets the number of queries itself.

    Returns:
        The scores, and how many queries to score at a time.

    Raises:
        DataError: Unusable vectors, or labels of other rows.
    """
    queries, gallery = check_vectors(query_vectors, gallery_vectors)
    check_rows(labels, len(queries), len(gallery))
    return inner_products_in_blocks(queries, gallery, memory, block)


def check_rows(labels: Labels, queries: int, gallery: int) -> None:
    """Raise DataError unless ``labels`` are those of so many queries and gallery rows."""
    found = (len(labels.query_identities), len(labels.gallery_identities))
    if found != (queries, gallery):
        raise DataError(
            f"labels: expected those of {queries} queries and {gallery} gallery rows, got {found[0]} and {found[1]};"
            " pass the labels of these vectors"
        )


def check_vectors(query: npt.ArrayLike, gallery: npt.ArrayLike) -> tuple[Vectors, Vectors]:
    """Return both as contiguous floats (Q, D) and (G, D) of one type, finite and not empty; else raise DataError."""
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
    for start in range(0, len(vectors), 4096):  # in parts: a mask of all rows takes a quarter of the vectors
        usable = (np.abs(vectors[start : start + 4096]) < np.float64(LARGEST)).all(axis=1)  # false for NaN too
        if not usable.all():
            raise DataError(
                f"{name}: row {start + int(np.argmin(usable))} holds NaN, infinity or a value beyond {LARGEST:g};"
                " rows should have unit length"
            )


def block_size(gallery: int, itemsize: int = 4, memory: int | None = None) -> int:
    """Choose how many queries to score at a time.

    ``memory`` bounds the bytes of their scores; by default 64 MiB, or what 64 queries need if that is more.
    """
    if memory is not None:
        return int(np.clip(memory // (itemsize * gallery), 1, LARGEST_BLOCK))
    return int(np.clip(BLOCK_BYTES // (itemsize * gallery), SMALLEST_BLOCK, LARGEST_BLOCK))


def inner_products_in_blocks(
    queries: Vectors, gallery: Vectors, memory: int | None = None, block: int | None = None
) -> tuple[ScoreBlocks, int]:
    """Return the inner products of checked vectors, and how many queries to score at a time."""
    size = block_size(len(gallery), gallery.itemsize, memory) if block is None else block
    return inner_products(queries, gallery, max(size, 1)), size


def inner_products(queries: Vectors, gallery: Vectors, block: int) -> ScoreBlocks:
    """Score checked ``queries`` (Q, D) against ``gallery`` (G, D) by inner products, at most ``block`` rows at a time.

    Equal gallery rows get equal scores.  A matrix product alone does not promise that, since it may round equal
    columns differently at the edges of its tiles.
    """
    copies, originals = _identical_rows(gallery)
    buffer = np.empty((min(block, len(queries)), len(gallery)), gallery.dtype)

    def scores(start: int, stop: int) -> Vectors:
        part = np.matmul(queries[start:stop], gallery.T, out=buffer[: stop - start])  # (B, G)
        part[:, copies] = part[:, originals]
        return part

    return scores


def best_of_tracks(scores: ScoreBlocks, starts: IntArray) -> ScoreBlocks:
    """Score tracks instead of images: a track is as similar to a query as its most similar image.

    The images of a track are neighbouring columns; ``starts`` (T,) are the first columns of the T tracks.
    """

    def best(start: int, stop: int) -> Vectors:
        return np.maximum.reduceat(scores(start, stop), starts, axis=1)

    return best


def _identical_rows(vectors: Vectors) -> tuple[IntArray, IntArray]:
    """Find the rows of ``vectors`` (G, D) that repeat an earlier row, and that earlier row; int64, equal length.

    Few rows agree even in their first components, so few rows are read whole.
    """
    starts = _first_of_equal(_hashes(vectors[:, :FIRST_COMPONENTS]))
    alike = np.flatnonzero(np.bincount(starts, minlength=len(vectors))[starts] > 1)
    originals = alike[_first_of_equal(_hashes(vectors[alike]))]
    kept = alike != originals
    copies, originals = alike[kept], originals[kept]
    same = [bool(np.array_equal(vectors[i], vectors[j])) for i, j in zip(copies, originals, strict=True)]
    return copies[np.array(same, np.bool_)], originals[np.array(same, np.bool_)]


def _first_of_equal(hashes: npt.NDArray[np.uint64]) -> IntArray:
    """Find for each of ``hashes`` (N,) the first position that holds the same value, (N,) int64."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)].astype(np.int64)


def _hashes(vectors: Vectors) -> npt.NDArray[np.uint64]:
    """Hash each row, (G,) uint64: equal rows have equal hashes, different rows almost never do."""
    # Words of 32 bits: the low half of a round float64 is 0, and a product modulo 2^64 would lose the rest.
    words = vectors.shape[1] * vectors.itemsize // 4
    weights = np.random.default_rng(0).integers(0, 2**63, words, dtype=np.uint64) * 2 + 1
    hashes = np.empty(len(vectors), np.uint64)
    for start in range(0, len(vectors), 4096):
        part = vectors[start : start + 4096] + vectors.dtype.type(0)  # contiguous, and -0.0 becomes 0.0
        hashes[start : start + 4096] = part.view(np.uint32).astype(np.uint64) @ weights
    return hashes
