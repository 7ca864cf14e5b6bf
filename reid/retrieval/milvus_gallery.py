"""Galleries that Milvus keeps: on a server, on a cluster, or in a file of Milvus Lite, with the calls of any gallery.

Rows have lasting numbers that are not consecutive: row ``r`` of a ranking is ``gallery.samples[r]``. Nothing but
the answers is read from the server, and every search sees what any client wrote before it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np

from reid.errors import DataError, GalleryError
from reid.files import Writer
from reid.records import Embeddings, FloatArray, IntArray, Ranking, Sample, sample_columns
from reid.retrieval.exact import empty_ranking
from reid.retrieval.filters import BoolArray, Filter, both, equals, parse_where
from reid.retrieval.gallery import Gallery
from reid.retrieval.gallery_rows import GalleryRows, first_of_groups, groups_by
from reid.retrieval.growth import AddedRows, check_network
from reid.retrieval.row_table import RowTable, SampleRows
from reid.retrieval.stores.milvus_store import MilvusStore
from reid.retrieval.stores.store import check_queries

if TYPE_CHECKING:
    import pandas as pd

BITS = 21  # of a row number, for the rows that are added in the same millisecond
MOST_ROWS = 2**20  # that are added at once
PATHS_AT_ONCE = 512  # in one expression


class MilvusGallery(Gallery):
    """A gallery in a collection of Milvus; :meth:`Gallery.open` and :meth:`create` with an address make one.

    Args:
        store: The collection.
        uri: Its address.
    """

    def __init__(self, store: MilvusStore, uri: str):
        super().__init__(GalleryRows(RowTable.from_samples(()), (), store.dimension), str(store.facts["fingerprint"]))
        self.store = store
        self.uri = uri

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Open a gallery.

        Args:
            folder: ``milvus://HOST:PORT/COLLECTION``, or a file that ends in ".db".

        Raises:
            ConfigError: The address is wrong, or pymilvus is not installed.
            GalleryError: The server does not answer, or there is no such gallery.
        """
        return cls(MilvusStore.open(str(folder)), str(folder))

    @classmethod
    def create(
        cls, folder: Path | str, fingerprint: str, dimension: int, attach: Mapping[str, Writer] | None = None
    ) -> Self:
        """Create an empty gallery; its network stays in a file of the user, so ``attach`` must be empty.

        Raises:
            ConfigError: The address is wrong, or pymilvus is not installed.
            GalleryError: The server does not answer, or there is such a gallery already.
        """
        if attach:
            raise GalleryError(f"{folder}: Milvus keeps no network; give the weights whenever you embed")
        return cls(MilvusStore.create(str(folder), dimension, {"fingerprint": fingerprint}), str(folder))

    def search(
        self,
        vectors: FloatArray,
        k: int,
        *,
        fingerprint: str,
        where: str | Filter | None = None,
        keep: BoolArray | None = None,
        one_per: str = "",
    ) -> Ranking:
        """Find the ``k`` nearest rows of each query; see :meth:`Gallery.search`.

        ``keep`` follows the order of :attr:`table`.
        """
        self.check_fingerprint(fingerprint)
        check_queries(self.dimension, vectors, k)
        chosen = parse_where(where) if isinstance(where, str) else where
        allowed = None
        if keep is not None:
            numbers = self.store.row_ids_where(None)
            if keep.shape != numbers.shape or keep.dtype != np.bool_:
                raise DataError(f"search: expected keep {numbers.shape} bool, got {keep.dtype} {keep.shape}")
            allowed = numbers[keep]
        if not one_per:
            return self.store.search(vectors, k, allowed, chosen)
        return self._search_groups(vectors, k, allowed, chosen, one_per)

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raise GalleryError unless the network of this fingerprint made the gallery."""
        if fingerprint != self._fingerprint:
            raise GalleryError(
                f'the query was embedded by "{fingerprint}" and the gallery by "{self._fingerprint}"; their scores'
                " mean nothing: embed both with the same weights and profiles"
            )

    def new_samples(self, paths: Sequence[str]) -> list[int]:
        """Return the positions of the paths that the gallery does not have yet, each path once."""
        known, first = self._known_paths(paths), dict[str, int]()
        for position, path in enumerate(paths):
            first.setdefault(path, position)
        return [position for path, position in first.items() if path not in known]

    def _search_groups(
        self, vectors: FloatArray, k: int, allowed: IntArray | None, where: Filter | None, column: str
    ) -> Ranking:
        depth = 4 * k
        while True:
            found = self.store.search(vectors, depth, allowed, where)
            numbers = np.unique(found.rows[np.arange(found.rows.shape[1]) < found.counts[:, None]])
            table = self.store.columns_of(numbers)
            groups = groups_by(table, column)
            rows = np.searchsorted(numbers, found.rows)
            best = [first_of_groups(rows[i, :count], groups, k) for i, count in enumerate(found.counts)]
            if found.rows.shape[1] < depth or all(len(positions) >= k for positions in best):
                break
            depth *= 4
        ranking = empty_ranking(len(vectors), max((len(positions) for positions in best), default=0))
        for i, positions in enumerate(best):
            ranking.rows[i, : len(positions)] = found.rows[i, positions]
            ranking.scores[i, : len(positions)] = found.scores[i, positions]
            ranking.counts[i] = len(positions)
        return Ranking(ranking.rows, ranking.scores, ranking.counts)

    def add(self, embeddings: Embeddings, more: Mapping[str, Sequence[object]] | None = None) -> AddedRows:
        """Add rows; a row whose path is in the gallery already is passed over."""
        check_network(embeddings, self._fingerprint, self.dimension, self.uri)
        if len(embeddings) > MOST_ROWS:
            raise DataError(f"{self.uri}: expected at most {MOST_ROWS:,} rows at once, got {len(embeddings):,}")
        paths = [str(sample.path) for sample in embeddings.samples]
        new = np.array(self.new_samples(paths), np.int64)
        part = embeddings.select(new)
        chosen = {name: [values[i] for i in new.tolist()] for name, values in (more or {}).items()}
        # Two programs that add in the same millisecond get different numbers, most probably.
        first = (time.time_ns() // 10**6 << BITS) + secrets.randbelow(MOST_ROWS)
        table = RowTable.from_samples(part.samples, first, chosen)
        self.store.add(table.row_ids, part.vectors, table)
        return AddedRows(len(new), len(embeddings) - len(new))

    def _known_paths(self, paths: Sequence[str]) -> set[str]:
        known: set[str] = set()
        for start in range(0, len(paths), PATHS_AT_ONCE):
            where = equals("path", *paths[start : start + PATHS_AT_ONCE])
            numbers = self.store.row_ids_where(where)
            known |= set(self.store.columns_of(numbers).column("path").to_pylist())
        return known

    def remove(self, where: str | Filter, *, forget: bool = False) -> int:
        """Remove the rows that a filter selects; their bytes stay on the server until it compacts its files."""
        if forget:
            raise GalleryError(f"{self.uri}: Milvus keeps no list of what was removed, so the rows may be added again")
        chosen = parse_where(where) if isinstance(where, str) else where
        return self.store.remove(self.store.row_ids_where(chosen))

    def erase(self, identity: str, category: str | None = None) -> int:
        """Remove every row of one identity, and ask the server to compact its files."""
        if not identity:
            raise GalleryError("erase: expected an identity, got an empty one; unlabelled rows belong to no identity")
        where = both(equals("identity", identity), equals("category", *([] if category is None else [category])))
        removed = 0 if where is None else self.remove(where)
        self.compact()
        return removed

    def compact(self) -> int:
        """Ask the server to write its files anew without removed rows; it does so in its own time, so returns 0."""
        self.store.compact()
        return 0

    def verify(self) -> None:
        """Read every row and check that its vector has unit length.

        Raises:
            GalleryError: A vector is wrong, or rows are missing.
        """
        count = 0
        for rows in self.store.batches():
            count += len(rows.row_ids)
            lengths = np.linalg.norm(rows.vectors, axis=1)
            if not np.all(np.abs(lengths - 1) <= 1e-2):
                raise GalleryError(f"{self.uri}: the gallery is damaged, a vector has no unit length; build it again")
        if count != self.store.count():
            raise GalleryError(f"{self.uri}: {self.store.count()} rows are counted, but {count} can be read")

    def save(
        self, folder: Path | str, attach: Mapping[str, Writer] | None = None, thumbnails: Sequence[bytes] | None = None
    ) -> None:
        """Write the gallery to a folder, where it goes on without Milvus."""
        rows = RowTable.from_samples(())
        Gallery.build(self.embeddings, self._further_columns(rows)).save(folder, attach, thumbnails)

    def _further_columns(self, empty: RowTable) -> dict[str, list[object]]:
        table = self.table
        names = set(table.column_names) - set(empty.column_names)
        return {name: table.column(name).to_pylist() for name in sorted(names)}

    def reopened(self) -> Self:
        """Return the gallery itself, which always answers with what the server holds."""
        return self

    def reload(self) -> bool:
        """Return False: every search sees what other programs have changed."""
        return False

    @property
    def samples(self) -> SampleRows:
        """The sample of each row, by its number."""
        return StoredSamples(self.store)

    @property
    def table(self) -> RowTable:
        """The metadata of all rows, which is read from the server."""
        tables = [rows.columns for rows in self.store.batches() if rows.columns is not None]
        return RowTable.concatenated(tables) if tables else RowTable.from_samples(())

    @property
    def embeddings(self) -> Embeddings:
        """All samples and vectors, which are read from the server."""
        vectors = [rows.vectors for rows in self.store.batches()]
        together = np.concatenate([np.empty((0, self.dimension), np.float32), *vectors])
        return Embeddings(tuple(self.table.samples), together, self._fingerprint)

    def to_frame(self) -> pd.DataFrame:
        """Return the samples as a pandas table; see :meth:`Gallery.to_frame`."""
        import pandas as pd

        return pd.DataFrame(sample_columns(tuple(self.table.samples)))

    def info(self) -> dict[str, Any]:
        """Return what the gallery holds."""
        from reid.retrieval.upkeep import describe

        return {**describe(self.table, self._fingerprint, self.dimension, None), "uri": self.uri}

    def close(self) -> None:
        """End the connection."""
        self.store.close()

    def __len__(self) -> int:
        return self.store.count()


class StoredSamples(SampleRows):
    """The samples of a collection by row number, read when they are asked for."""

    def __init__(self, store: MilvusStore) -> None:
        self.store = store

    @overload
    def __getitem__(self, row: int) -> Sample: ...

    @overload
    def __getitem__(self, row: slice) -> tuple[Sample, ...]: ...

    def __getitem__(self, row: int | slice) -> Sample | tuple[Sample, ...]:
        if isinstance(row, slice):
            return tuple(self)[row]
        table = self.store.columns_of(np.array([row], np.int64))
        if not len(table):
            raise IndexError(f"no row {row}")
        return table.samples_at(np.array([0]))[0]

    def __iter__(self) -> Iterator[Sample]:
        for rows in self.store.batches():
            if rows.columns is not None:
                yield from rows.columns.samples_at(np.arange(len(rows.columns)))

    def __len__(self) -> int:
        return self.store.count()
