"""Which rows of an array answer to which numbers, and in which order rows are best stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reid.records import IntArray
from reid.retrieval.stores.store import BoolArray

if TYPE_CHECKING:
    from reid.retrieval.row_table import RowTable


@dataclass(frozen=True)
class RowNumbers:
    """The numbers of the rows of an array; use :meth:`of` to make them.

    Args:
        row_ids: (N,) int64, each once.
        order: (N,) int64, positions that sort ``row_ids``; None where they ascend.

    Example:
        >>> numbers = RowNumbers.of(np.array([7, 5, 6]))
        >>> numbers.mask(np.array([6, 7, 99])).tolist()
        [True, False, True]
    """

    row_ids: IntArray
    order: IntArray | None

    @classmethod
    def of(cls, row_ids: IntArray) -> RowNumbers:
        """Keep ``row_ids`` (N,) int64; they may come in any order."""
        ascending = len(row_ids) < 2 or bool(np.all(row_ids[1:] > row_ids[:-1]))
        return cls(row_ids, None if ascending else np.argsort(row_ids, kind="stable"))

    @property
    def are_unique(self) -> bool:
        """Whether every number is there once."""
        in_order = self._sorted()
        return not np.any(in_order[1:] == in_order[:-1])

    def mask(self, wanted: IntArray) -> BoolArray:
        """Return (N,) bool: the rows whose numbers are among ``wanted`` (M,) int64."""
        count = len(self.row_ids)
        found = np.zeros(count, np.bool_)
        if count and len(wanted):
            first, last = self._ends()
            if self.order is None and last - first + 1 == count:
                at = np.asarray(wanted - first if first else wanted, np.int64)
                if at.view(np.uint64).max() < count:  # numbers below the first are huge ones without a sign
                    one, other = int(at[0]), int(at[-1])
                    if other - one == len(at) - 1 and (at[1:] > at[:-1]).all():  # a run, as rows of one day are
                        found[one : other + 1] = True
                    else:
                        found[at] = True
                    return found
            found[self.positions(wanted)] = True
        return found

    def positions(self, wanted: IntArray) -> IntArray:
        """Return the positions of the rows whose numbers are among ``wanted`` (M,) int64, in the order of these."""
        found = self.find(wanted)
        return found[found >= 0]

    def find(self, wanted: IntArray) -> IntArray:
        """Return (M,) int64: the position of the row of each number; -1 where there is none."""
        count = len(self.row_ids)
        if not count or not len(wanted):
            return np.full(len(wanted), -1, np.int64)
        first, last = self._ends()
        if last - first + 1 == count:
            at = np.clip(wanted - first, 0, count - 1)
        else:
            at = np.minimum(np.searchsorted(self._sorted(), wanted), count - 1)
        at = at if self.order is None else self.order[at]
        return np.where(self.row_ids[at] == wanted, at, -1)

    def _ends(self) -> tuple[int, int]:
        first, last = (0, -1) if self.order is None else (self.order[0], self.order[-1])
        return int(self.row_ids[first]), int(self.row_ids[last])

    def _sorted(self) -> IntArray:
        return self.row_ids if self.order is None else self.row_ids[self.order]


def camera_order(table: RowTable | None) -> IntArray | None:
    """Return the order (N,) in which the codes of some rows are best stored: by modality and camera.

    Returns:
        None where the rows come in this order, or nothing is known of them.
    """
    if table is None or not len(table):
        return None
    keys = []
    for name in ("camera", "modality"):  # the last one is the first to decide
        codes, words = table.codes(name)
        ranks = np.empty(len(words), np.int64)
        ranks[sorted(range(len(words)), key=words.__getitem__)] = np.arange(len(words))
        keys.append(ranks[codes])
    order = np.lexsort(keys).astype(np.int64)
    return None if np.array_equal(order, np.arange(len(order))) else order


def grouped_order(columns: Sequence[Sequence[str]]) -> IntArray:
    """Return the order in which rows are best stored: rows of one group together, otherwise as they come.

    A filter by camera then reads a few long runs of rows, which is several times faster than reading scattered ones.

    Args:
        columns: The columns that are most often filtered by, each (N,), for example modality and camera.

    Returns:
        (N,) int64: position i of the stored rows holds row ``order[i]``.

    Example:
        >>> grouped_order([["visible", "infrared", "visible"], ["door", "yard", "door"]]).tolist()
        [1, 0, 2]
    """
    keys = [np.unique(np.asarray(column), return_inverse=True)[1] for column in columns]
    return np.lexsort(keys[::-1]).astype(np.int64)
