"""The oracle of the contract that all vector stores keep, and the rows and filters that it is tried on."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from reid.records import FloatArray, IntArray, Ranking, Sample
from reid.retrieval.exact import exact_search
from reid.retrieval.filters import parse_where, rows_where
from reid.retrieval.row_table import RowTable

CAMERAS = ("door", "yard", "roof")


@dataclass
class PlainStore:
    """Rows in a dictionary: number -> (vector, camera)."""

    rows: dict[int, tuple[FloatArray, str]] = field(default_factory=dict)

    def add(self, row_ids: IntArray, vectors: FloatArray) -> None:
        for number, vector in zip(row_ids.tolist(), vectors, strict=True):
            self.rows[number] = vector, camera_of(number)

    def search(self, queries: FloatArray, k: int, allowed: IntArray | None = None, where: str | None = None):
        """The answers, as lists of pairs (row number, score) for each query."""
        numbers = np.array(sorted(self.rows), np.int64)
        if where is not None:
            numbers = numbers[rows_where(parse_where(where), columns_of(numbers))]
        kept = [number for number in numbers.tolist() if allowed is None or number in set(allowed.tolist())]
        if not kept:
            return [[] for _ in queries]
        found = exact_search(queries, np.stack([self.rows[number][0] for number in kept]), k)
        return [[(kept[row], score) for row, score in found.answers(i)] for i in range(len(queries))]


def camera_of(row_id: int) -> str:
    return CAMERAS[row_id % 3]


def columns_of(row_ids: IntArray) -> RowTable:
    """The metadata of rows: every field of a sample varies, and so does a further column."""
    samples = [
        Sample(
            Path("crops") / f"{i}.jpg",
            f"id{i % 7}",
            camera_of(i),
            "infrared" if i % 2 else "visible",
            "vehicle" if i % 5 else "person",
            time=None if i % 6 == 0 else datetime(2024, 5, 1) + timedelta(minutes=i),
            track=f"t{i // 4}",
        )
        for i in row_ids.tolist()
    ]
    return RowTable.from_samples(samples, more={"note": [f"it's {i % 4}" for i in row_ids.tolist()]})


def answers(ranking: Ranking):
    return [ranking.answers(i) for i in range(len(ranking.rows))]
