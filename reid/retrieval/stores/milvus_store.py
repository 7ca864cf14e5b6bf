"""A store in Milvus: on a server, on a cluster, or in a file of Milvus Lite.

Milvus finds candidates with its exact index (FLAT). Their scores are computed again as :mod:`reid.retrieval.exact`
defines them, and Milvus is asked for more where rounding could have hidden a row, so the answers are those of every
other store. Everything is read and written with the consistency level "Strong": a search sees what was written before
it, by any client.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reid.errors import DataError, GalleryError
from reid.records import FloatArray, IntArray, Ranking
from reid.retrieval.exact import best_positions, empty_ranking, score_rows
from reid.retrieval.filters import rows_where
from reid.retrieval.row_table import FIELDS, ID, LABELS, OFFSET, RowTable
from reid.retrieval.stores.flat_store import FlatStore
from reid.retrieval.stores.milvus_client import (
    LONGEST_TEXT,
    MOST_RESULTS,
    MilvusConnection,
    parse_milvus_uri,
)
from reid.retrieval.stores.milvus_filters import HAS_TIME, MORE, TEXT_FIELDS, TIME, microseconds, milvus_expression
from reid.retrieval.stores.snapshot import write_snapshot
from reid.retrieval.stores.store import StoredRows, check_queries, check_rows, closed_store

if TYPE_CHECKING:
    from reid.retrieval.filters import Filter

BYTES_AT_ONCE = 16 * 2**20  # of the vectors of one request; Milvus takes 64 MiB
NUMBERS_AT_ONCE = 8_192  # row numbers in one expression
HITS_AT_ONCE = 4_096  # that one request asks for, because they come with their vectors
EXTRA_CANDIDATES = 16
UNIT_ROUNDOFF = 2.0**-24
ORIGINAL = "_original"  # labels that are not in the Unicode form NFC, in which Milvus compares them
ROW_FIELDS = ("row_id", "vector", *TEXT_FIELDS, TIME, HAS_TIME, "has_columns", MORE)

_Answers = tuple[IntArray, FloatArray]  # the numbers (k,) and scores (k,) of rows, best first


class MilvusStore:
    """A collection of Milvus; see :class:`reid.retrieval.stores.store.VectorStore`.

    Args:
        connection: The collection, which must exist; :meth:`open` and :meth:`create` make one.
        facts: What is kept with it.
    """

    def __init__(self, connection: MilvusConnection, facts: Mapping[str, Any]):
        self._connection: MilvusConnection | None = connection
        self._dimension = int(facts["dimension"])
        self.facts = dict(facts)
        connection.load()

    @classmethod
    def open(cls, uri: str) -> MilvusStore:
        """Open a collection.

        Args:
            uri: ``milvus://HOST:PORT/COLLECTION``, or a file that ends in ".db".

        Raises:
            ConfigError: The address is wrong, or pymilvus is not installed.
            GalleryError: The server does not answer, or there is no such collection.
        """
        address = parse_milvus_uri(uri)
        if "://" not in address.server and not Path(address.server).exists():
            raise GalleryError(f'{uri}: no gallery there; create one with "reid index create"')
        connection = MilvusConnection(address)
        facts = connection.describe()
        if facts is None:
            connection.close()
            raise GalleryError(f'{uri}: no gallery there; create one with "reid index create"')
        return cls(connection, facts)

    @classmethod
    def create(cls, uri: str, dimension: int, facts: Mapping[str, object] | None = None) -> MilvusStore:
        """Create an empty collection.

        Args:
            uri: Its address.
            dimension: The length of a vector.
            facts: What is kept with it, such as the fingerprint of the network.

        Raises:
            ConfigError: The address is wrong, or pymilvus is not installed.
            GalleryError: The server does not answer, or there is such a collection already.
        """
        connection = MilvusConnection(parse_milvus_uri(uri))
        if connection.describe() is not None:
            connection.close()
            raise GalleryError(f"{uri}: there is a gallery already; choose another name")
        connection.create(dimension, facts or {})
        return cls(connection, connection.describe() or {})

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self._dimension

    def add(self, row_ids: IntArray, vectors: FloatArray, columns: RowTable | None = None) -> None:
        """Add rows; if a part of them cannot be written, what was written is removed again."""
        connection = self._open_connection()
        check_rows(self.dimension, row_ids, vectors, columns)
        if len(np.unique(row_ids)) != len(row_ids) or len(self._present(row_ids)):
            raise DataError("store: expected new row numbers, got one that is there already")
        if len(row_ids) and connection.query(f"has_columns == {'true' if columns is None else 'false'}", ["row_id"], 1):
            raise DataError("store: expected rows with metadata as those that are there have it, or all without")
        step = max(1, BYTES_AT_ONCE // (4 * self.dimension))
        done = 0
        try:
            for start in range(0, len(row_ids), step):
                part = np.arange(start, min(start + step, len(row_ids)))
                done = int(part[-1]) + 1
                table = None if columns is None else columns.take(part)
                connection.upsert(_entities(row_ids[part], vectors[part], table))
        except GalleryError:
            self._delete(row_ids[:done])
            raise

    def remove(self, row_ids: IntArray) -> int:
        """Remove rows; unknown numbers are skipped. Milvus clears its files when it compacts them."""
        self._open_connection()
        present = self._present(np.unique(row_ids))
        self._delete(present)
        return len(present)

    def search(
        self, queries: FloatArray, k: int, allowed: IntArray | None = None, where: Filter | None = None
    ) -> Ranking:
        """Find the ``k`` nearest rows of each query, exactly."""
        connection = self._open_connection()
        check_queries(self.dimension, queries, k)
        expression = ""
        if where is not None:
            expression, selected = self._expression(where)
            if selected is not None:
                allowed = selected if allowed is None else np.intersect1d(selected, allowed)
        if not len(queries) or (allowed is not None and not len(allowed)):
            return empty_ranking(len(queries), 0)
        expressions = _with_numbers(expression, allowed)
        sizes = [connection.count(one) for one in expressions]
        k = min(k, sum(sizes))
        found = empty_ranking(len(queries), k)
        parts = [
            self._search_part(queries, min(k, size), one, size)
            for one, size in zip(expressions, sizes, strict=True)
            if size
        ]
        for i in range(len(queries)):
            numbers = np.concatenate([np.empty(0, np.int64), *(part[i][0] for part in parts)])
            scores = np.concatenate([np.empty(0, np.float32), *(part[i][1] for part in parts)])
            best = best_positions(numbers, scores, k)
            found.rows[i], found.scores[i], found.counts[i] = numbers[best], scores[best], k
        return Ranking(found.rows, found.scores, found.counts)

    def batches(self) -> Iterator[StoredRows]:
        """Yield all rows, in ascending order of their numbers."""
        yield from self._read("")

    def count(self) -> int:
        """Return the number of rows."""
        return self._open_connection().count()

    def row_ids_where(self, where: Filter | None) -> IntArray:
        """Return (N,) int64, ascending, the numbers of the rows that fulfil a condition; None stands for all."""
        expression, selected = ("", None) if where is None else self._expression(where)
        if selected is not None:
            return selected
        found = [np.empty(0, np.int64)]
        for rows in self._open_connection().read(expression, ["row_id"], MOST_RESULTS // 2):
            found.append(np.array([row["row_id"] for row in rows], np.int64))
        return np.concatenate(found)

    def columns_of(self, row_ids: IntArray) -> RowTable:
        """Return the metadata of the rows with some numbers, in ascending order of these; others are passed over."""
        names, rows = [name for name in ROW_FIELDS if name != "vector"], list[dict[str, Any]]()
        for one in _with_numbers("", row_ids):
            rows += self._open_connection().query(one, names)
        rows.sort(key=lambda row: int(row["row_id"]))
        return _table(rows) if rows else RowTable.from_samples(())

    def snapshot(self, path: Path) -> None:
        """Write the rows to one file."""
        write_snapshot(path, self.dimension, self.batches())

    def compact(self) -> None:
        """Ask Milvus to remove deleted rows from its files."""
        self._open_connection().compact()

    def drop(self) -> None:
        """Delete the collection with all rows, and close the store."""
        self._open_connection().drop()
        self.close()

    def close(self) -> None:
        """End the connection; the rows stay."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _open_connection(self) -> MilvusConnection:
        if self._connection is None:
            raise closed_store()
        return self._connection

    def _present(self, row_ids: IntArray) -> IntArray:
        """Return those of some row numbers that are there."""
        connection, found = self._open_connection(), []
        for one in _with_numbers("", row_ids):
            found += [int(row["row_id"]) for row in connection.query(one, ["row_id"])]
        return np.array(sorted(found), np.int64)

    def _delete(self, row_ids: IntArray) -> None:
        for one in _with_numbers("", row_ids):
            self._open_connection().delete(one)

    def _expression(self, where: Filter) -> tuple[str, IntArray | None]:
        """Return the expression of a filter; where Milvus cannot say it, read the metadata and return the rows."""
        connection = self._open_connection()
        if connection.query("has_columns == false", ["row_id"], 1):
            raise GalleryError("search: the store keeps no metadata, so it cannot be filtered by an expression")
        first = connection.query("row_id >= 0", [MORE], 1)
        if not first:
            return "", None
        names = frozenset(name for name in first[0][MORE] if not name.startswith("_"))
        expression = milvus_expression(where, names)
        if expression is not None:
            return expression, None
        fields = [name for name in ROW_FIELDS if name != "vector"]
        selected = [np.empty(0, np.int64)]
        for rows in connection.read("", fields, MOST_RESULTS // 2):
            numbers = np.array([row["row_id"] for row in rows], np.int64)
            selected.append(numbers[rows_where(where, _table(rows))])
        return "", np.concatenate(selected)

    def _search_part(self, queries: FloatArray, k: int, expression: str, size: int) -> list[_Answers]:
        """Find the ``k`` best rows of each query among the ``size`` rows of an expression."""
        answers: dict[int, _Answers] = {}
        limit, step = min(k + EXTRA_CANDIDATES, size), max(1, HITS_AT_ONCE // (k + EXTRA_CANDIDATES))
        while limit <= MOST_RESULTS and len(answers) < len(queries):
            left = [i for i in range(len(queries)) if i not in answers]
            for start in range(0, len(left), step):
                asked = left[start : start + step]
                hits = self._open_connection().search(queries[asked], expression, limit)
                for i, one in zip(asked, hits, strict=True):
                    best = self._best_of(queries[i], one, k, size)
                    answers.update({} if best is None else {i: best})
            limit, step = (min(4 * limit, size) if limit < size else MOST_RESULTS + 1), max(1, step // 4)
        missing = [i for i in range(len(queries)) if i not in answers]
        answers.update(zip(missing, self._search_by_reading(queries[missing], k, expression), strict=True))
        return [answers[i] for i in range(len(queries))]

    def _best_of(self, query: FloatArray, hits: Sequence[tuple[int, float, Any]], k: int, size: int) -> _Answers | None:
        """Score what Milvus found again; None where a row that it did not return might be among the ``k`` best."""
        rounding = 4 * (len(query) + 2) * UNIT_ROUNDOFF * max(1.0, float(np.linalg.norm(query)))
        numbers = np.array([number for number, _, _ in hits], np.int64)
        vectors = np.array([vector for _, _, vector in hits], np.float32).reshape(-1, self.dimension)
        scores = score_rows(query, vectors)
        best = best_positions(numbers, scores, k)
        is_complete = len(hits) >= size or (len(hits) > k and scores[best[-1]] > hits[-1][1] + rounding)
        return (numbers[best], scores[best]) if is_complete else None

    def _search_by_reading(self, queries: FloatArray, k: int, expression: str) -> list[_Answers]:
        """Read the rows and score them here: for more answers, or more equal scores, than Milvus returns at once."""
        if not len(queries):
            return []
        local = FlatStore(self.dimension)
        for rows in self._read(expression):
            local.add(rows.row_ids, rows.vectors)
        found = local.search(queries, k)
        return list(zip(found.rows, found.scores, strict=True))

    def _read(self, expression: str) -> Iterator[StoredRows]:
        step = int(np.clip(BYTES_AT_ONCE // (4 * self.dimension), 1, MOST_RESULTS // 2))
        for rows in self._open_connection().read(expression, ROW_FIELDS, step):
            vectors = np.array([row["vector"] for row in rows], np.float32).reshape(-1, self.dimension)
            numbers = np.array([row["row_id"] for row in rows], np.int64)
            yield StoredRows(numbers, vectors, _table(rows) if rows[0]["has_columns"] else None)


def _with_numbers(expression: str, row_ids: IntArray | None) -> list[str]:
    """Return expressions that select the rows of an expression with some numbers, each row by one of them."""
    if row_ids is None:
        return [expression]
    parts = (row_ids[start : start + NUMBERS_AT_ONCE] for start in range(0, len(row_ids), NUMBERS_AT_ONCE))
    lists = [f"row_id in [{','.join(map(str, part.tolist()))}]" for part in parts]
    return [f"({expression}) and {one}" if expression else one for one in lists]


def _entities(row_ids: IntArray, vectors: FloatArray, columns: RowTable | None) -> list[dict[str, object]]:
    """Return rows as Milvus takes them."""
    rows: list[dict[str, object]] = []
    described: Sequence[Mapping[str, Any]] = [{}] * len(row_ids) if columns is None else columns.arrow.to_pylist()
    for number, vector, row in zip(row_ids.tolist(), vectors, described, strict=True):
        texts = {name: str(row.get(name) or "") for name in TEXT_FIELDS}
        normal = {name: unicodedata.normalize("NFC", text) if name in LABELS else text for name, text in texts.items()}
        for name, text in texts.items():
            if len(text.encode()) > LONGEST_TEXT or len(normal[name].encode()) > LONGEST_TEXT:
                raise DataError(f"store: expected a {name} of at most {LONGEST_TEXT} bytes, which Milvus can keep")
        more = {name: value for name, value in row.items() if name not in FIELDS and name != ID}
        more = {name: "" if value is None and not name.startswith("_") else value for name, value in more.items()}
        original = {name: text for name, text in texts.items() if text != normal[name]}
        rows.append(
            {
                "row_id": number,
                "vector": vector,
                **normal,
                TIME: microseconds(row["time"]) if row.get("time") else 0,
                HAS_TIME: bool(row.get("time")),
                "has_columns": columns is not None,
                MORE: {**more, **({ORIGINAL: original} if original else {})},
            }
        )
    return rows


def _table(rows: Sequence[Mapping[str, Any]]) -> RowTable:
    """Return the metadata of rows as they come from Milvus."""
    import pyarrow as pa

    originals = [row[MORE].get(ORIGINAL, {}) for row in rows]
    columns: dict[str, Any] = {}
    for name in TEXT_FIELDS:
        texts = pa.array([o.get(name, row[name]) for o, row in zip(originals, rows, strict=True)], pa.string())
        columns[name] = texts.dictionary_encode() if name in LABELS else texts
    times = pa.array([row[TIME] if row[HAS_TIME] else None for row in rows], pa.int64())
    columns["time"] = times.cast(pa.timestamp("us"))
    names = {name for row in rows for name in row[MORE]} - {ORIGINAL, OFFSET}
    columns[OFFSET] = pa.array([row[MORE].get(OFFSET) for row in rows], pa.int64())
    columns[ID] = pa.array([row["row_id"] for row in rows], pa.int64())
    for name in sorted(names):
        values = pa.array([row[MORE].get(name) for row in rows])
        columns[name] = values.dictionary_encode() if pa.types.is_string(values.type) else values
    return RowTable(pa.table(columns))
