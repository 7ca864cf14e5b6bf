"""What the program takes from FAISS: flat and approximate indexes of inner products, and single products.

No other file imports faiss. An index finds candidates; their scores are then computed as :mod:`reid.retrieval.exact`
defines them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# torch comes before faiss: the other order loads two OpenMP runtimes, and forked workers hang.
# isort: off
import torch  # noqa: F401
import faiss as _faiss

# isort: on
import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.records import FloatArray, IntArray

faiss: Any = _faiss  # its type stubs describe the C++ signatures

SINGLE_THREAD_QUERIES = 16  # for at most so many queries one thread is faster: starting others costs more
_scanners = threading.local()  # of codes, by their dimension
MOST_PADDED = 3  # times the pairs of queries and rows that are computed, so that one call computes all
ROWS_IN_CACHE = 512  # that several queries are compared with before the next rows are read


@dataclass(frozen=True)
class CandidateIndex:
    """An approximate index, which finds rows that are probably among the nearest ones.

    Args:
        index: An index of FAISS that returns row numbers.
    """

    index: Any

    @classmethod
    def build(cls, factory: str, row_ids: IntArray, parts: Iterable[FloatArray], sample: FloatArray) -> CandidateIndex:
        """Build an index.

        Args:
            factory: The factory string of FAISS, for inner products.
            row_ids: (N,) int64, the numbers of the rows.
            parts: Their vectors, (n, D) float32 each, in this order.
            sample: (S, D) float32, some of them, to learn from.
        """
        index = faiss.IndexIDMap(faiss.index_factory(sample.shape[1], factory, faiss.METRIC_INNER_PRODUCT))
        inner = faiss.downcast_index(index.index)
        if hasattr(inner, "cp"):
            inner.cp.min_points_per_centroid = 1  # whoever chooses the factory string knows the number of rows
        index.train(np.ascontiguousarray(sample))
        start = 0
        for part in parts:
            index.add_with_ids(np.ascontiguousarray(part), row_ids[start : start + len(part)])
            start += len(part)
        return cls(index)

    @classmethod
    def read(cls, path: Path) -> CandidateIndex:
        """Read an index that :meth:`write` wrote; RuntimeError when the file holds anything else."""
        index = faiss.read_index(str(path))
        if not isinstance(index, faiss.IndexIDMap) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise RuntimeError("the index is not one of row numbers and inner products")
        return cls(index)

    def write(self, path: Path) -> None:
        """Write the index to a file; RuntimeError or OSError when it cannot be written."""
        faiss.write_index(self.index, str(path))

    @property
    def row_ids(self) -> IntArray:
        """(N,) int64, the numbers of the rows in the index."""
        numbers: IntArray = faiss.vector_to_array(self.index.id_map)
        return numbers

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return int(self.index.d)

    @property
    def bytes(self) -> int:
        """The memory of the index, as large as its file."""
        size = faiss.VectorIOWriter()
        faiss.write_index(self.index, size)
        return int(size.data.size())

    @property
    def effort(self) -> int:
        """``nprobe`` of inverted lists or ``efSearch`` of a graph, which are kept with the index; 0 for others."""
        inner = faiss.downcast_index(self.index.index)
        return int(inner.hnsw.efSearch if hasattr(inner, "hnsw") else getattr(inner, "nprobe", 0))

    def set_effort(self, effort: int) -> None:
        """Set ``nprobe`` or ``efSearch``."""
        inner = faiss.downcast_index(self.index.index)
        if hasattr(inner, "hnsw"):
            inner.hnsw.efSearch = effort
        elif hasattr(inner, "nprobe"):
            inner.nprobe = min(effort, inner.nlist)

    def search(self, queries: FloatArray, n: int) -> tuple[IntArray, IntArray]:
        """Find about the ``n`` best rows of each query.

        Args:
            queries: (Q, D) float32.
            n: The number of candidates, at most the number of rows.

        Returns:
            Queries (E,), which ascend, and row numbers (E,): for each query at most ``n``, each once.
        """
        with _faiss_threads(1 if len(queries) <= SINGLE_THREAD_QUERIES else None):
            _, found = self.index.search(np.ascontiguousarray(queries), n)
        query, rank = np.nonzero(found >= 0)  # FAISS fills up with -1
        return query, found[query, rank]


def pair_products(queries: FloatArray, vectors: FloatArray, query: IntArray, rows: IntArray) -> FloatArray:
    """Compute the inner products of pairs of a query and a row.

    Args:
        queries: (Q, D) float32.
        vectors: (N, D) float32, without gaps in memory.
        query: (E,) int64, the query of each pair, ascending.
        rows: (E,) int64, the row of each pair.

    Returns:
        (E,) float32, in the arithmetic of float32.

    Example:
        >>> pair_products(np.float32([[1, 0], [0, 1]]), np.float32([[0.6, 0.8], [1, 0]]), np.array([0, 1]),
        ...               np.array([1, 0])).tolist()
        [1.0, 0.800000011920929]
    """
    counts = np.bincount(query, minlength=len(queries))
    width, starts = int(counts.max(initial=0)), np.cumsum(counts) - counts
    if len(queries) * width > MOST_PADDED * len(query):  # some queries have many more rows than others
        parts = [
            inner_products(queries[i : i + 1], vectors, 0, 0, np.ascontiguousarray(rows[start : start + count]))[0]
            for i, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True))
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)
    rank = np.arange(len(query)) - starts[query]
    padded = np.zeros((len(queries), width), np.int64)
    padded[query, rank] = rows
    scores, queries = np.empty(padded.shape, np.float32), np.ascontiguousarray(queries)
    if len(query):
        pointers = map(faiss.swig_ptr, (scores, queries, vectors, padded))
        faiss.fvec_inner_products_by_idx(*pointers, queries.shape[1], len(queries), width)
    found: FloatArray = scores[query, rank]
    return found


def inner_products(
    queries: FloatArray, vectors: FloatArray, start: int, stop: int, positions: IntArray | None = None
) -> FloatArray:
    """Compute the inner products of a few queries with rows, faster than a matrix product does for so few.

    Args:
        queries: (Q, D) float32.
        vectors: (N, D) float32, without gaps in memory.
        start: The first row.
        stop: The row behind the last.
        positions: (T,) int64, the rows instead of ``start`` to ``stop``.

    Returns:
        (Q, T) float32, in the arithmetic of float32.

    Example:
        >>> inner_products(np.float32([[1, 0]]), np.float32([[0.6, 0.8], [1, 0], [0, 1]]), 1, 3).tolist()
        [[1.0, 0.0]]
    """
    queries, dimension = np.ascontiguousarray(queries), queries.shape[1]
    pointer = faiss.swig_ptr
    if positions is not None:
        scores = np.empty((len(queries), len(positions)), np.float32)
        for query, row in zip(queries, scores, strict=True):
            faiss.fvec_inner_products_by_idx(
                pointer(row), pointer(query), pointer(vectors), pointer(positions), dimension, 1, len(positions)
            )
        return scores
    scores = np.empty((len(queries), stop - start), np.float32)
    step = stop - start if len(queries) == 1 else ROWS_IN_CACHE
    for first in range(start, stop, step):
        part = vectors[first : min(first + step, stop)]
        for query, row in zip(queries, scores[:, first - start :], strict=True):
            faiss.fvec_inner_products_ny(pointer(row), pointer(query), pointer(part), dimension, len(part))
    return scores


@contextmanager
def _faiss_threads(count: int | None) -> Iterator[None]:
    """Let FAISS use ``count`` threads when it is called from this thread; None leaves its own number."""
    before = faiss.omp_get_max_threads()
    if count is not None:
        faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def read_index_vectors(path: Path) -> FloatArray:
    """Read the vectors (N, D) of an index file that any program wrote with FAISS, by their numbers.

    Indexes that keep codes instead of vectors give what the codes stand for.

    Raises:
        DataError: The file is no index, or its vectors cannot be reconstructed.
    """
    try:
        index = faiss.read_index(str(path))
        if hasattr(index, "make_direct_map"):
            index.make_direct_map()
        vectors: FloatArray = (
            np.empty((0, index.d), np.float32) if not index.ntotal else index.reconstruct_n(0, index.ntotal)
        )
        return vectors
    except (RuntimeError, AttributeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[-1][-200:]
        raise DataError(f"{path}: not an index of FAISS whose vectors can be read ({reason})") from error


def largest_sums(
    query: FloatArray, codes: npt.NDArray[np.uint8], n: int, mask: npt.NDArray[np.bool_] | None = None
) -> tuple[IntArray, FloatArray]:
    """Find the rows of codes whose sums of products with a query of whole numbers are largest.

    Args:
        query: (D,) float32, whole numbers of at most 127.
        codes: (N, D) uint8, without gaps in memory; a byte b stands for the whole number b - 128.
        n: How many rows, at least 1.
        mask: (N,) bool, which rows may answer; None: all.

    Returns:
        Rows (n,) and their sums (n,) in any order, or fewer where fewer may answer. Which of equal sums are left out
        is not defined.

    Example:
        >>> rows, sums = largest_sums(np.float32([1, 0]), np.uint8([[130, 0], [133, 9]]), 1)
        >>> rows.tolist(), sums.tolist()
        ([1], [5.0])
    """
    scanner = _code_scanner(codes.shape[1], mask is not None)
    query, pointer = np.ascontiguousarray(query, np.float32), faiss.swig_ptr
    if mask is not None:
        bits = np.packbits(mask, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(mask), pointer(bits))  # both live until the scan ends
        scanner.sel = selector
    sums, rows = np.full(n, -np.inf, np.float32), np.full(n, -1, np.int64)
    scanner.set_query(pointer(query))
    scanner.set_list(0, 0.0)
    scanner.scan_codes(len(codes), pointer(codes), None, pointer(sums), pointer(rows), n)
    found = rows >= 0
    return rows[found], sums[found]


def _code_scanner(dimension: int, is_selective: bool) -> Any:
    """Return the scanner of this thread for codes of so many bytes; FAISS never frees one, so it is kept."""
    known = _scanners.__dict__.setdefault("known", {})
    if (dimension, is_selective) not in known:
        quantizer = faiss.ScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_8bit_direct_signed)
        selector = faiss.IDSelectorAll() if is_selective else None
        scanner = quantizer.select_InvertedListScanner(faiss.METRIC_INNER_PRODUCT, None, True, selector, False)
        known[dimension, is_selective] = scanner, quantizer, selector
    return known[dimension, is_selective][0]
