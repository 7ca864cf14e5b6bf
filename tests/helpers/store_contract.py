"""The oracle of the contract that all vector stores keep, and the rows and filters that it is tried on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from reid.records import FloatArray, IntArray, Ranking
from reid.retrieval.exact import exact_search

CAMERAS = ("door", "yard", "roof")


@dataclass(frozen=True)
class CameraIs:
    """The condition ``camera = NAME``, without a parser."""

    camera: str

    @property
    def tree(self):
        import sqlglot

        return sqlglot.parse_one(f"camera = '{self.camera}'")

    def mask(self, columns: pa.Table):
        return np.array([value == self.camera for value in columns.column("camera").to_pylist()], dtype=np.bool_)


@dataclass
class PlainStore:
    """Rows in a dictionary: number -> (vector, camera)."""

    rows: dict[int, tuple[FloatArray, str]] = field(default_factory=dict)

    def add(self, row_ids: IntArray, vectors: FloatArray) -> None:
        for number, vector in zip(row_ids.tolist(), vectors, strict=True):
            self.rows[number] = vector, camera_of(number)

    def search(self, queries: FloatArray, k: int, allowed: IntArray | None = None, camera: str | None = None):
        """The answers, as lists of pairs (row number, score) for each query."""
        kept = [
            number
            for number, (_, name) in sorted(self.rows.items())
            if (allowed is None or number in set(allowed.tolist())) and camera in (None, name)
        ]
        if not kept:
            return [[] for _ in queries]
        found = exact_search(queries, np.stack([self.rows[number][0] for number in kept]), k)
        return [[(kept[row], score) for row, score in found.answers(i)] for i in range(len(queries))]


def camera_of(row_id: int) -> str:
    return CAMERAS[row_id % 3]


def columns_of(row_ids: IntArray) -> pa.Table:
    """The metadata of rows: camera and track."""
    numbers = row_ids.tolist()
    return pa.table({"camera": [camera_of(i) for i in numbers], "track": [f"t{i // 4}" for i in numbers]})


def answers(ranking: Ranking):
    return [ranking.answers(i) for i in range(len(ranking.rows))]
