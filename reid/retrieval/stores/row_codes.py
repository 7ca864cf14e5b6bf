"""Short codes of vectors: one byte for each number, with a bound on how wrong a score that they give may be.

A search reads the codes of all rows, a quarter of the bytes of the vectors, and only the vectors of the few rows whose
scores could be among the best. Sums of products of bytes are exact, so the bounds hold to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from reid.records import FloatArray, IntArray
from reid.retrieval.numpy_files import flat_values

ByteArray = npt.NDArray[np.uint8]
Float64Array = npt.NDArray[np.float64]

LARGEST = 127  # a code is a whole number of at most this size
ZERO = 128  # the byte that stands for the code 0
SMALLEST_STEP = 1e-30  # numbers that differ by less in all rows are taken for equal
EVENNESS = 0.75  # steps grow with this power of the range; 1 suits the rows best, 0 the queries, which have one unit
ROWS_AT_ONCE = 1024
PARAMETER_ROWS = 12  # of a file, which hold the steps, the centres and the means as float32
OLD_PARAMETER_ROWS = 8  # of earlier files, which have no means
ROUNDING = 1e-6  # added to bounds for the rounding of scores to float32, relative to the largest possible score
FLOAT32_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class RowCodes:
    """The codes of the vectors of a segment.

    Byte b at number d of a row stands for ``centres[d] + (b - 128) * steps[d]``.

    Args:
        codes: (N, D) uint8, 1..255.
        steps: (D,) float32.
        centres: (D,) float32.
        means: (D,) float32, about the mean of the codes as whole numbers; embeddings are often far from the middle of
            their range.
        order: (N,) int64, the row of the vectors that each row of the codes stands for; None: in the same order.
        error: The largest distance of a vector from what its codes stand for.
        scaled_error: The same with every number divided by its step.
        longest: The largest distance of a row of codes, as whole numbers, from the means.
    """

    codes: ByteArray
    steps: FloatArray
    centres: FloatArray
    means: FloatArray
    order: IntArray | None
    error: float
    scaled_error: float
    longest: float

    @classmethod
    def of(cls, vectors: FloatArray, order: IntArray | None = None) -> RowCodes:
        """Encode vectors (N, D) float32, at least one, in the given order.

        Example:
            >>> codes = RowCodes.of(np.float32([[1, 0], [0.6, 0.8]]))
            >>> np.round(codes.centres + (codes.codes - 128.0) * codes.steps, 3).tolist()
            [[1.0, 0.0], [0.6, 0.8]]
        """
        encoder = Encoder.of(vectors, order)
        codes = np.concatenate(list(encoder.parts()))
        return cls(codes, encoder.steps, encoder.centres, encoder.means, order, **encoder.bounds())

    @classmethod
    def of_file(cls, values: ByteArray, rows: int, bounds: Mapping[str, float], order: IntArray | None) -> RowCodes:
        """Return the codes of a file.

        Args:
            values: (12 + N, D) uint8, as :func:`map_codes` returns them; (8 + N, D) of earlier files.
            rows: The number N of rows.
            bounds: What :func:`write_codes` returned.
            order: (N,) int64, the row of each code, as it was written.

        Raises:
            ValueError: The file has another number of rows.
        """
        head = len(values) - rows
        if head not in (PARAMETER_ROWS, OLD_PARAMETER_ROWS):
            raise ValueError(f"expected the codes of {rows} rows")
        parameters = np.frombuffer(values[:head].tobytes(), "<f4").astype(np.float32).reshape(-1, values.shape[1])
        means = parameters[2] if head == PARAMETER_ROWS else np.zeros_like(parameters[0])
        return cls(values[head:], parameters[0], parameters[1], means, order, **bounds)

    @cached_property
    def wide_parameters(self) -> tuple[Float64Array, Float64Array, Float64Array]:
        """The steps, the centres and the means, (D,) float64 each, as each search needs them."""
        return self.steps.astype(np.float64), self.centres.astype(np.float64), self.means.astype(np.float64)

    @cached_property
    def longest_code(self) -> float:
        """The largest length of a row of codes, as whole numbers."""
        return self.longest + 1.001 * float(np.linalg.norm(self.wide_parameters[2]))

    def take_mask(self, mask: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_] | None:
        """Return a mask (N,) over the vectors as one over the codes."""
        return mask if mask is None or self.order is None else mask.take(self.order)

    def rows_at(self, codes: IntArray) -> IntArray:
        """Return the rows (E,) of the vectors that some rows (E,) of the codes stand for."""
        return codes if self.order is None else self.order[codes]


@dataclass
class Encoder:
    """Makes codes part by part; its bounds are known when all parts were made.

    Args:
        vectors: (N, D) float32.
        order: (N,) int64, the row of each code; None: as they come.
        steps: (D,) float32.
        centres: (D,) float32.
        means: (D,) float32.
    """

    vectors: FloatArray
    order: IntArray | None
    steps: FloatArray
    centres: FloatArray
    means: FloatArray
    error: float = 0.0
    scaled_error: float = 0.0
    longest: float = 0.0

    @classmethod
    def of(cls, vectors: FloatArray, order: IntArray | None) -> Encoder:
        """Choose the steps for vectors (N, D)."""
        low, high = np.full(vectors.shape[1], np.inf, np.float32), np.full(vectors.shape[1], -np.inf, np.float32)
        sums = np.zeros(vectors.shape[1])
        for start in range(0, len(vectors), ROWS_AT_ONCE):
            part = vectors[start : start + ROWS_AT_ONCE]
            np.minimum(low, part.min(axis=0), out=low)
            np.maximum(high, part.max(axis=0), out=high)
            sums += part.sum(axis=0)
        ranges = (high - low).astype(np.float64)
        steps = (ranges**EVENNESS * ranges.max() ** (1 - EVENNESS) / (2 * LARGEST)).astype(np.float32)
        steps, centres = np.where(steps > SMALLEST_STEP, steps, np.float32(1)), (low + high) / np.float32(2)
        means = np.clip((sums / len(vectors) - centres) / steps, -LARGEST, LARGEST)
        return cls(vectors, order, steps, centres, means.astype(np.float32))

    def parts(self) -> Iterator[ByteArray]:
        """Yield the codes (n, D) of some rows at a time."""
        inverse: FloatArray = np.float32(1) / self.steps
        for start in range(0, len(self.vectors), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            scaled = self.vectors[rows] if self.order is None else self.vectors[self.order[rows]]
            scaled = (scaled - self.centres) * inverse
            whole: FloatArray = np.clip(np.rint(scaled), -LARGEST, LARGEST)
            scaled -= whole
            self.scaled_error = max(self.scaled_error, _longest(scaled))
            scaled *= self.steps
            self.error = max(self.error, _longest(scaled))
            self.longest = max(self.longest, _longest(whole - self.means))
            yield (whole + np.float32(ZERO)).astype(np.uint8)

    def bounds(self) -> dict[str, float]:
        """Return the bounds of :class:`RowCodes` by their names; a little is added for the rounding of float32."""
        return {
            "error": 1.001 * self.error,
            "scaled_error": 1.001 * self.scaled_error + 1e-3,
            "longest": 1.001 * self.longest,
        }


@dataclass(frozen=True)
class CodedQueries:
    """Queries in whole numbers, to be compared with the codes of one segment.

    The score of a query and a row is ``constants + units * (sum of products of whole numbers)``, wrong by at most
    ``errors``.

    Args:
        whole: (Q, D) float32, whole numbers of at most 127.
        units: (Q,) float64.
        constants: (Q,) float64.
        errors: (Q,) float64.
    """

    whole: FloatArray
    units: Float64Array
    constants: Float64Array
    errors: Float64Array

    @classmethod
    def of(cls, queries: FloatArray, codes: RowCodes, least: Float64Array | None = None) -> CodedQueries:
        """Round queries (Q, D) float32.

        Two roundings are bounded by Cauchy and Schwarz: that of the rows, and that of the query. What the latter does
        to the mean of the codes is known, so only the distances of the codes from it count.

        Args:
            queries: The queries.
            codes: The codes that they are compared with.
            least: (Q,), the smallest ``units``; larger ones round more.  None sets no limit.
        """
        steps, centres, means = codes.wide_parameters
        wide, stretched, whole, residual = arrays = np.empty((4, *queries.shape), np.float64)
        wide[:] = queries
        np.multiply(wide, steps, out=stretched)
        largest = np.abs(stretched).max(axis=1)
        units = np.where(largest > 0, largest / LARGEST, 1.0)
        units = units if least is None else np.maximum(units, least)
        np.rint(stretched / units[:, None], out=whole)
        np.subtract(stretched, units[:, None] * whole, out=residual)
        lengths = np.sqrt(np.einsum("aqd,aqd->aq", arrays, arrays))
        rounded = lengths[3] * codes.longest
        rows = np.minimum(lengths[0] * codes.error, lengths[1] * codes.scaled_error)
        constants = wide @ centres + residual @ means
        largest_sums = units * lengths[2] * codes.longest_code
        sums = largest_sums * (queries.shape[1] + 2) * FLOAT32_ROUNDOFF
        errors = 1.001 * (rounded + rows + sums) + ROUNDING * (largest_sums + np.abs(constants) + lengths[0])
        return cls(whole.astype(np.float32), units, constants, errors)

    def scores(self, query: int | IntArray, sums: npt.NDArray[Any]) -> FloatArray:
        """Return the scores (E,) of a query, or of queries (E,), for sums of products (E,)."""
        units, constants = self.units.astype(np.float32)[query], self.constants.astype(np.float32)[query]
        scores: FloatArray = constants + units * sums.astype(np.float32)
        return scores


@dataclass(frozen=True)
class CodedRows:
    """The rows of one segment.

    Args:
        codes: Their codes.
        vectors: (N, D) float32.
        offset: What is added to a row to get its position in the store.
        mask: (N,) bool, which rows of the codes may answer; None: all.
    """

    codes: RowCodes
    vectors: FloatArray
    offset: int
    mask: npt.NDArray[np.bool_] | None

    def positions(self, codes: IntArray) -> IntArray:
        """Return the positions (E,) in the store of some rows (E,) of the codes."""
        return self.offset + self.codes.rows_at(codes)


class CodeSource:
    """The codes of a segment, which are read or made when a search needs them.

    Args:
        make: Reads or makes them.
        is_stored: Whether they are in a file, so that it costs little to get them.
    """

    def __init__(self, make: Callable[[], RowCodes], is_stored: bool = False):
        self._make = make
        self._codes: RowCodes | None = None
        self._lock = Lock()
        self.is_stored = is_stored
        self.searches = 0  # that could have used them

    @property
    def is_ready(self) -> bool:
        """Whether to get the codes costs little."""
        return self.is_stored or self._codes is not None

    def get(self) -> RowCodes:
        """Return the codes."""
        with self._lock:
            if self._codes is None:
                self._codes = self._make()
            return self._codes


def write_codes(path: Path, vectors: FloatArray, order: IntArray | None) -> dict[str, float]:
    """Write the codes of vectors (N, D) float32 as a NumPy file, part by part.

    Its first twelve rows hold the steps, the centres and the means as float32, the others the codes.

    Returns:
        The bounds that :meth:`RowCodes.of_file` needs.
    """
    encoder = Encoder.of(vectors, order)
    with path.open("wb") as stream:
        shape = (len(vectors) + PARAMETER_ROWS, vectors.shape[1])
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(np.stack([encoder.steps, encoder.centres, encoder.means]).astype("<f4").tobytes())
        for part in encoder.parts():
            stream.write(part.data)
    return encoder.bounds()


def map_codes(path: Path, dimension: int) -> ByteArray:
    """Map the file (12 + N, D) that :func:`write_codes` wrote into memory.

    Raises:
        ValueError: The file is none of codes.
        OSError: The file cannot be read.
    """
    values: ByteArray = flat_values(path, "|u1")
    if len(values) < OLD_PARAMETER_ROWS * dimension or len(values) % dimension:
        raise ValueError("expected rows of bytes")
    return values.reshape(-1, dimension)


def _longest(rows: FloatArray) -> float:
    return float(np.sqrt(np.einsum("nd,nd->n", rows, rows).max(initial=0)))
