"""The reading side of a gallery: open it, search it, and notice what other programs change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from reid.errors import DataError, GalleryError
from reid.records import Embeddings, FloatArray, Ranking, sample_columns
from reid.retrieval.filters import BoolArray, Filter, parse_where, rows_where
from reid.retrieval.gallery_index import index_file_of
from reid.retrieval.gallery_rows import GalleryRows, groups_by
from reid.retrieval.row_table import RowTable, SampleRows
from reid.retrieval.segments import thumbnails_of_rows
from reid.retrieval.storage import stamp_of
from reid.retrieval.stored_gallery import StoredGallery, read_gallery

if TYPE_CHECKING:
    import pandas as pd


class GalleryReader:
    """What a gallery answers; :class:`reid.retrieval.gallery.Gallery` adds how it is built and changed."""

    def __init__(self, rows: GalleryRows, fingerprint: str, folder: Path | None = None):
        self._rows = rows
        self._fingerprint = fingerprint
        self._folder = folder
        self._generation: str | None = None  # of the files in the folder that hold these rows
        self._lineage = ""
        self._stamp: tuple[object, ...] | None = None  # of the folder when these rows were read
        self._looked_up: tuple[object, ...] | None = None  # of the folder when its removed rows were last looked up
        self._removed: tuple[GalleryRows, BoolArray] | None = None  # (G,) of rows that another program removed

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Open the gallery of a folder.

        The vectors stay on disk and are mapped into memory. Sizes and the tables of rows are checked now, the vectors
        when they are used for the first time; :meth:`verify` checks everything.

        Args:
            folder: The folder of the gallery.

        Returns:
            The gallery; changes of it are also written to the folder.

        Raises:
            GalleryError: The gallery is missing, incomplete or damaged.
        """
        folder = Path(folder)
        stamp = stamp_of(folder)
        return cls._of(read_gallery(folder), stamp)

    @classmethod
    def _of(cls, stored: StoredGallery, stamp: tuple[object, ...]) -> Self:
        index = index_file_of(stored.folder, stored.facts)
        rows = GalleryRows(stored.kept_table(), stored.segments, stored.facts["dimension"], index)
        gallery = cls(rows, stored.facts["fingerprint"], stored.folder)
        gallery._generation, gallery._lineage = stored.generation, stored.facts["lineage"]
        gallery._stamp = gallery._looked_up = stamp
        gallery._removed = rows, np.zeros(len(rows.table), np.bool_)
        return gallery

    def reopened(self) -> Self:
        """Return the gallery as its folder holds it now; only what has changed is read, and this object stays.

        Raises:
            GalleryError: The gallery belongs to no folder, or is missing or damaged by now.
        """
        if self._folder is None:
            raise GalleryError("this gallery is in memory only and belongs to no folder; save it first")
        stamp = stamp_of(self._folder)
        return self._of(read_gallery(self._folder, self._rows.segments), stamp)

    def reload(self) -> bool:
        """Take over what other programs have changed in the folder; rows may get other numbers.

        Returns:
            Whether anything has changed.
        """
        if self._folder is None or stamp_of(self._folder) == self._stamp:
            return False
        changed = self.reopened()
        is_new = (changed._generation, len(changed)) != (self._generation, len(self))
        self.__dict__.update(changed.__dict__)
        return is_new

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
        """Find the ``k`` nearest rows of each query.

        Rows that another program has removed from the folder in the meantime do not answer.

        Args:
            vectors: (Q, D) float32 of unit length.
            k: The number of answers, at least 1.
            fingerprint: The fingerprint of the network that made ``vectors``.
            where: A filter, see :mod:`reid.retrieval.filters`; None allows all rows.
            keep: (G,) bool, which rows may answer; None allows all.
            one_per: A column such as "identity" or "track"; only the best row of each of its labels answers. A row
                without a label stands for itself.

        Returns:
            A ranking with min(k, number of rows that may answer) answers for every query, or with one for each label.

        Raises:
            GalleryError: Another network made the gallery, or the gallery is empty.
            DataError: The vectors, ``k`` or ``keep`` have a wrong type or shape, or the filter is wrong.
        """
        rows = self._rows
        self._check(rows, vectors, k, fingerprint, keep)
        removed = self._rows_removed_since(rows)
        if removed.any():
            keep = ~removed if keep is None else keep & ~removed
        if where is not None:
            selected = rows_where(parse_where(where) if isinstance(where, str) else where, rows.table)
            keep = selected if keep is None else keep & selected
        if not one_per:
            return rows.search(vectors, k, keep)
        return rows.search_groups(vectors, k, keep, groups_by(rows.table, one_per))

    def check_search(
        self, vectors: FloatArray, k: int, *, fingerprint: str, keep: BoolArray | None = None
    ) -> BoolArray:
        """Refuse what :meth:`search` refuses, for other ways of searching the rows.

        Returns:
            (G,) bool, the rows that another program has removed from the folder; they may not answer.

        Raises:
            GalleryError: Another network made the gallery, or the gallery is empty.
            DataError: The vectors, ``k`` or ``keep`` have a wrong type or shape.
        """
        self._check(self._rows, vectors, k, fingerprint, keep)
        return self._rows_removed_since(self._rows)

    @property
    def samples(self) -> SampleRows:
        """The sample of each row, made when it is asked for."""
        return self._rows.table.samples

    @property
    def table(self) -> RowTable:
        """The rows as columns, further columns of the manifest included."""
        return self._rows.table

    @property
    def rows(self) -> GalleryRows:
        """The rows with their vectors, as they are now; they are replaced as a whole when the gallery changes."""
        return self._rows

    def thumbnail(self, row: int) -> bytes | None:
        """Return the small JPEG image that is kept with a row; None where there is none.

        Raises:
            GalleryError: Its file is damaged.
        """
        ids = self._rows.table.row_ids[[row]]
        return thumbnails_of_rows(self._rows.segments, ids)[0] or None

    def kept_thumbnails(self) -> list[bytes]:
        """Return the small JPEG image (G,) that is kept with each row, b"" where there is none.

        Raises:
            GalleryError: A file of them is damaged.
        """
        return thumbnails_of_rows(self._rows.segments, self._rows.table.row_ids)

    def make_thumbnails(self) -> list[bytes]:
        """Make a small JPEG image (G,) of the crop of each row.

        Raises:
            DataError: A crop cannot be read.
        """
        from reid.retrieval.thumbnails import thumbnails_of

        return thumbnails_of(self._rows.table.samples)

    def add_column(self, name: str, texts: Sequence[str]) -> None:
        """Add a column for filters and groups to the rows in memory, in the place of an older one; it is not written.

        Args:
            name: The name of the column.
            texts: The text of each row (G,), "" where it is unknown.

        Raises:
            DataError: The number of texts is another one.
        """
        if len(texts) != len(self._rows.table):
            raise DataError(f'column "{name}": {len(texts)} values for {len(self._rows.table)} rows')
        removed = self._rows_removed_since(self._rows)
        self._rows = self._rows.with_column(name, texts)
        self._removed = self._rows, removed

    @property
    def folder(self) -> Path | None:
        """The folder of the gallery; None where it is in memory only."""
        return self._folder

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the network that made the vectors."""
        return self._fingerprint

    @property
    def dimension(self) -> int:
        """The length D of a vector."""
        return self._rows.dimension

    @property
    def embeddings(self) -> Embeddings:
        """The samples and a copy of their vectors."""
        rows = self._rows
        return Embeddings(tuple(rows.table.samples), rows.vectors(), self._fingerprint)

    def to_frame(self) -> pd.DataFrame:
        """Return the samples as a pandas table, for example to count the crops of each camera.

        Returns:
            One row for each gallery row, in the same order, and one column for each field of a sample. Paths,
            modalities and splits are strings; an unknown time is a missing value.

        Example:
            >>> from reid.records import Sample
            >>> from reid.retrieval.gallery import Gallery
            >>> samples = (Sample(Path("1.jpg"), "anna", "door"), Sample(Path("2.jpg"), "ben", "door"))
            >>> gallery = Gallery.build(Embeddings(samples, np.eye(2, dtype=np.float32), "f00d"))
            >>> gallery.to_frame().groupby("camera").identity.nunique()["door"].item()
            2
        """
        import pandas as pd  # takes most of a second, and a search does not need it

        return pd.DataFrame(sample_columns(tuple(self._rows.table.samples)))

    def __len__(self) -> int:
        return len(self._rows.table)

    def _check(self, rows: GalleryRows, vectors: FloatArray, k: int, fingerprint: str, keep: BoolArray | None) -> None:
        if fingerprint != self._fingerprint:
            raise GalleryError(
                f'the query was embedded by "{fingerprint}" and the gallery by "{self._fingerprint}"; their scores'
                ' mean nothing: embed both with the same weights and profiles, then "reid index build"'
            )
        if not len(rows.table):
            raise GalleryError("the gallery is empty; build it again with at least one image")
        if vectors.ndim != 2 or vectors.dtype != np.float32 or vectors.shape[1] != rows.dimension:
            raise DataError(
                f"search: expected float32 queries (Q, {rows.dimension}), got {vectors.dtype} {vectors.shape}"
            )
        if not np.isfinite(vectors).all():
            raise DataError("search: a query vector holds NaN or infinity")
        if k < 1:
            raise DataError(f"search: expected k of at least 1, got {k}")
        if keep is not None and (keep.shape != (len(rows.table),) or keep.dtype != np.bool_):
            raise DataError(f"search: expected keep ({len(rows.table)},) bool, got {keep.dtype} {keep.shape}")

    def _rows_removed_since(self, rows: GalleryRows) -> BoolArray:
        """Return (G,) bool: the rows in memory that were removed from the folder after it was read."""
        known = self._removed
        stamp = None if self._folder is None else stamp_of(self._folder)
        if known is None or known[0] is not rows or stamp != self._looked_up:
            known = rows, self._compare_with_folder(rows)
            self._removed, self._looked_up = known, stamp
        return known[1]

    def _compare_with_folder(self, rows: GalleryRows) -> BoolArray:
        if self._folder is None:
            return np.zeros(len(rows.table), np.bool_)
        stored = read_gallery(self._folder, rows.segments)
        if stored.facts["lineage"] != self._lineage:  # built again: the rows have nothing to do with each other
            return stored.tombstones.hidden_rows(rows.table)
        return ~np.isin(rows.table.row_ids, stored.kept_table().row_ids, assume_unique=True)
