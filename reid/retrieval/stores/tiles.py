"""The pieces of an array of vectors that a search reads, where only some of its rows may answer.

A processor reads long runs of rows several times faster than scattered ones. Runs are therefore read as they lie, with
small gaps between them; only rows that are far apart are picked out one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from reid.records import IntArray
from reid.retrieval.stores.store import BoolArray

LARGEST_GAP = 16  # rows between two runs that are read although they may not answer


@dataclass(frozen=True)
class Tile:
    """Some rows of an array.

    Args:
        vectors: (N, D) float32, the array; or bytes of codes.
        start: The first row of a run.
        stop: The row behind the run.
        mask: (stop - start,) bool, which rows of the run may answer; None: all.
        positions: (T,) int64, rows that are picked out instead of a run; None for a run.
    """

    vectors: npt.NDArray[Any]
    start: int
    stop: int
    mask: BoolArray | None = None
    positions: IntArray | None = None

    @property
    def size(self) -> int:
        """The number of rows T that are scored."""
        return self.stop - self.start if self.positions is None else len(self.positions)

    @cached_property
    def rows(self) -> npt.NDArray[Any]:
        """The rows (T, D) that are scored: a view of a run, or a copy of rows that are picked out."""
        if self.positions is None:
            return self.vectors[self.start : self.stop]
        return np.take(self.vectors, self.positions, axis=0)

    def rows_at(self, columns: IntArray) -> IntArray:
        """Return the rows of the array that stand at ``columns`` (E,) of the scores of this tile."""
        return columns + self.start if self.positions is None else self.positions[columns]


def tiles_of(
    vectors: npt.NDArray[Any], mask: BoolArray | None, rows: int, shortest_run: int, largest_waste: float
) -> Iterator[Tile]:
    """Cut the rows that may answer into tiles.

    Args:
        vectors: (N, D) float32.
        mask: (N,) bool, which rows may answer; None: all.
        rows: The largest number of rows of a tile.
        shortest_run: Rows are picked out where the runs are shorter than this on average.
        largest_waste: Rows are picked out where more than so many would be read for each that may answer.

    Yields:
        The tiles, which hold every row that may answer once.

    Example:
        >>> vectors, mask = np.zeros((9, 2), np.float32), np.arange(9) > 2
        >>> [(tile.start, tile.stop) for tile in tiles_of(vectors, mask, rows=4, shortest_run=1, largest_waste=2)]
        [(3, 7), (7, 9)]
    """
    if mask is None:
        for start in range(0, len(vectors), rows):
            yield Tile(vectors, start, min(start + rows, len(vectors)))
        return
    starts, stops = runs_of(mask)
    span, kept = int((stops - starts).sum()), int(np.count_nonzero(mask))
    if kept == 0:
        return
    if span >= shortest_run * len(starts) and span <= largest_waste * kept:
        for first, last in zip(starts.tolist(), stops.tolist(), strict=True):
            for start in range(first, last, rows):
                stop = min(start + rows, last)
                part = mask[start:stop]
                yield Tile(vectors, start, stop, None if part.all() else part)
        return
    positions = np.flatnonzero(mask)
    for start in range(0, len(positions), rows):
        yield Tile(vectors, 0, len(vectors), positions=positions[start : start + rows])


def runs_of(mask: BoolArray, gap: int = LARGEST_GAP) -> tuple[IntArray, IntArray]:
    """Return where the runs of rows that may answer start and stop; with at most ``gap`` rows between, they are one."""
    padded = np.zeros(len(mask) + 2, np.bool_)
    padded[1:-1] = mask
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    starts, stops = edges[::2], edges[1::2]
    separate = np.append(starts[1:] - stops[:-1] > gap, True)
    return starts[np.append(True, separate[:-1])[: len(starts)]], stops[separate[: len(stops)]]
