"""The crops of a site, and the crops that a page offers as queries, as columns that are quick to filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from reid.records import IntArray, Sample
from reid.retrieval.row_table import RowTable, SampleRows


@dataclass(frozen=True)
class SiteData:
    """The samples of one manifest or of one gallery: a site with its cameras."""

    name: str
    samples: Sequence[Sample]

    @cached_property
    def cameras(self) -> tuple[Sample, ...]:
        """One sample for each pair of a category and a camera, sorted by (category, camera)."""
        return tuple(camera_examples(self.samples))


def camera_examples(samples: Sequence[Sample]) -> list[Sample]:
    """Return one sample for each pair of a category and a camera, sorted by them."""
    if isinstance(samples, SampleRows):
        table = samples.table
        if not len(table):
            return []
        (first, _), (second, cameras) = table.codes("category"), table.codes("camera")
        _, rows = np.unique(first.astype(np.int64) * len(cameras) + second, return_index=True)
        samples = table.samples_at(rows)
    examples = {(sample.category, sample.camera): sample for sample in samples}
    return [examples[key] for key in sorted(examples)]


def categories_by_size(*tables: RowTable) -> tuple[str, ...]:
    """Return the categories of some tables, the one with the most rows first.

    Example:
        >>> from pathlib import Path
        >>> rows = [Sample(Path(f"{n}.jpg"), category=name) for n, name in enumerate(["bag", "person", "person"])]
        >>> categories_by_size(RowTable.from_samples(rows))
        ('person', 'bag')
    """
    rows: Counter[str] = Counter()
    for table in tables:
        codes, words = table.codes("category")
        for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
            rows[words[code]] += int(count)
    return tuple(sorted(rows, key=lambda name: (-rows[name], name)))


class QueryCrops:
    """The crops that a page offers as queries; each has a number that stays the same.

    Args:
        table: The crops; the ids of its rows are the numbers.
        sites: (N,) the position of the site of each crop in ``site_names``.
        site_names: The names of the sites.
        are_gallery_rows: Whether the crops are rows of the gallery that answers, and the numbers are ids of its rows.

    Example:
        >>> from pathlib import Path
        >>> table = RowTable.from_samples([Sample(Path("1.jpg"), camera="door"), Sample(Path("2.jpg"), camera="hall")])
        >>> crops = QueryCrops(table, np.zeros(2, np.int64), ["home"])
        >>> crops.matching("home", camera="hall").tolist(), crops.find(1)[1].camera, crops.find(5)
        ([1], 'hall', None)
    """

    def __init__(
        self, table: RowTable, sites: IntArray, site_names: Sequence[str], *, are_gallery_rows: bool = False
    ) -> None:
        self.table = table
        self.site_names = tuple(site_names)
        self.are_gallery_rows = are_gallery_rows
        self._sites = sites

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """The categories of the crops, the one with the most crops first."""
        return categories_by_size(self.table)

    def matching(self, site: str = "", category: str | None = None, camera: str | None = None) -> IntArray:
        """Return the numbers of the crops of a site, a category and a camera; "" and None allow every one."""
        keep: npt.NDArray[np.bool_] = np.ones(len(self.table), np.bool_)
        if site:
            keep &= self._sites == (self.site_names.index(site) if site in self.site_names else -1)
        for name, word in (("category", category), ("camera", camera)):
            if word is not None:
                codes, words = self.table.codes(name)
                keep &= codes == (words.index(word) if word in words else -1)
        return self.table.row_ids[keep]

    def find(self, number: int) -> tuple[str, Sample] | None:
        """Return the site and the sample of a crop; None where no crop has this number."""
        ids = self.table.row_ids
        row = int(np.searchsorted(ids, number))
        if row == len(ids) or ids[row] != number:
            return None
        return self.site_names[int(self._sites[row])], self.table.samples[row]
