"""Short codes of vectors: one byte for each number, with a bound on how wrong a score that they give may be.

A search reads the codes of all rows, a quarter of the bytes of the vectors, and only the vectors of the few rows whose
scores could be among the best. Sums of products of bytes are exact, so the bounds hold to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
ROWS_AT_ONCE = 1024
PARAMETER_ROWS = 8  # of a file, which hold the steps and centres as float32
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
        order: (N,) int64, the row of the vectors that each row of the codes stands for; None: in the same order.
        error: The largest distance of a vector from what its codes stand for.
        scaled_error: The same with every number divided by its step.
        longest: The largest length of a row of codes, as whole numbers.
    """

    codes: ByteArray
    steps: FloatArray
    centres: FloatArray
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
        return cls(codes, encoder.steps, encoder.centres, order, **encoder.bounds())

    @classmethod
    def of_file(cls, values: ByteArray, bounds: Mapping[str, float], order: IntArray | None) -> RowCodes:
        """Return the codes of a file.

        Args:
            values: (8 + N, D) uint8, as :func:`map_codes` returns them.
            bounds: What :func:`write_codes` returned.
            order: (N,) int64, the row of each code, as it was written.
        """
        parameters = np.frombuffer(values[:PARAMETER_ROWS].tobytes(), "<f4").astype(np.float32)
        steps, centres = parameters.reshape(2, -1)
        return cls(values[PARAMETER_ROWS:], steps, centres, order, **bounds)

    def take_mask(self, mask: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_] | None:
        """Return a mask (N,) over the vectors as one over the codes."""
        return mask if mask is None or self.order is None else mask[self.order]

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
    """

    vectors: FloatArray
    order: IntArray | None
    steps: FloatArray
    centres: FloatArray
    error: float = 0.0
    scaled_error: float = 0.0
    longest: float = 0.0

    @classmethod
    def of(cls, vectors: FloatArray, order: IntArray | None) -> Encoder:
        """Choose the steps for vectors (N, D)."""
        low, high = np.full(vectors.shape[1], np.inf, np.float32), np.full(vectors.shape[1], -np.inf, np.float32)
        for start in range(0, len(vectors), ROWS_AT_ONCE):
            part = vectors[start : start + ROWS_AT_ONCE]
            np.minimum(low, part.min(axis=0), out=low)
            np.maximum(high, part.max(axis=0), out=high)
        steps = (high - low) / np.float32(2 * LARGEST)
        return cls(vectors, order, np.where(steps > SMALLEST_STEP, steps, np.float32(1)), (low + high) / np.float32(2))

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
            self.longest = max(self.longest, _longest(whole))
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

        Two roundings are bounded by Cauchy and Schwarz: that of the rows, and that of the query.

        Args:
            queries: The queries.
            codes: The codes that they are compared with.
            least: (Q,), the smallest ``units``; larger ones round more.  None sets no limit.
        """
        wide = queries.astype(np.float64)
        stretched = wide * codes.steps
        largest = np.abs(stretched).max(axis=1)
        units = np.where(largest > 0, largest / LARGEST, 1.0)
        units = units if least is None else np.maximum(units, least)
        whole = np.rint(stretched / units[:, None])
        rounded = np.linalg.norm(stretched - units[:, None] * whole, axis=1) * codes.longest
        lengths = np.linalg.norm(wide, axis=1)
        rows = np.minimum(lengths * codes.error, np.linalg.norm(stretched, axis=1) * codes.scaled_error)
        constants = wide @ codes.centres.astype(np.float64)
        largest_sums = units * np.linalg.norm(whole, axis=1) * codes.longest
        sums = largest_sums * (queries.shape[1] + 2) * FLOAT32_ROUNDOFF
        errors = 1.001 * (rounded + rows + sums) + ROUNDING * (largest_sums + np.abs(constants) + lengths)
        return cls(whole.astype(np.float32), units, constants, errors)

    def scores(self, query: int | IntArray, sums: npt.NDArray[Any]) -> FloatArray:
        """Return the scores (E,) of a query, or of queries (E,), for sums of products (E,)."""
        units, constants = self.units.astype(np.float32)[query], self.constants.astype(np.float32)[query]
        scores: FloatArray = constants + units * sums.astype(np.float32)
        return scores


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

    Its first eight rows hold the steps and the centres as float32, the others the codes.

    Returns:
        The bounds that :meth:`RowCodes.of_file` needs.
    """
    encoder = Encoder.of(vectors, order)
    with path.open("wb") as stream:
        shape = (len(vectors) + PARAMETER_ROWS, vectors.shape[1])
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(encoder.steps.astype("<f4").tobytes() + encoder.centres.astype("<f4").tobytes())
        for part in encoder.parts():
            stream.write(part.data)
    return encoder.bounds()


def map_codes(path: Path, dimension: int) -> ByteArray:
    """Map the file (8 + N, D) that :func:`write_codes` wrote into memory.

    Raises:
        ValueError: The file is none of codes.
        OSError: The file cannot be read.
    """
    values: ByteArray = flat_values(path, "|u1")
    if len(values) < PARAMETER_ROWS * dimension or len(values) % dimension:
        raise ValueError("expected rows of bytes")
    return values.reshape(-1, dimension)


def _longest(rows: FloatArray) -> float:
    return float(np.sqrt(np.einsum("nd,nd->n", rows, rows).max(initial=0)))
