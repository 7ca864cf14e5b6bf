"""The gallery: samples with embeddings that can be searched, saved, extended and erased."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from reid.errors import GalleryError
from reid.files import Writer
from reid.records import Embeddings
from reid.retrieval.filters import Filter, parse_where, rows_where
from reid.retrieval.gallery_reader import GalleryReader
from reid.retrieval.gallery_rows import GalleryRows
from reid.retrieval.kept_cohorts import with_cohorts
from reid.retrieval.persons.person_files import erased_crops, kept_person_files
from reid.retrieval.row_table import ID, RowTable
from reid.retrieval.segments import GallerySegment
from reid.retrieval.storage import write_gallery
from reid.retrieval.stored_gallery import new_facts, with_files, with_rows
from reid.retrieval.stores.milvus_client import is_milvus_uri
from reid.retrieval.tombstones import Tombstones, write_tombstones

if TYPE_CHECKING:
    from reid.retrieval.growth import AddedRows


class Gallery(GalleryReader):
    """Embeddings that answer queries of the same network.

    Row i of every ranking is ``samples[i]``. Scores are inner products of unit vectors in -1..1, and a larger score
    means more similar; of equal scores, the lower row comes first. Answers are exact. Use :meth:`build`, :meth:`create`
    or :meth:`open` to get a gallery.

    Where a gallery belongs to a folder, other programs may change the folder. Rows that were removed from it answer no
    search from then on. Rows that were added are seen after :meth:`reload`, which also gives the rows new numbers.

    Example:
        >>> from reid.records import Sample
        >>> samples = (Sample(Path("1.jpg"), "anna"), Sample(Path("2.jpg"), "ben"))
        >>> gallery = Gallery.build(Embeddings(samples, np.eye(2, dtype=np.float32), "f00d"))
        >>> ranking = gallery.search(np.float32([[0.6, 0.8]]), k=1, fingerprint="f00d")
        >>> [gallery.samples[row].identity for row, score in ranking.answers(0)]
        ['ben']
    """

    @classmethod
    def build(cls, embeddings: Embeddings, more: Mapping[str, Sequence[object]] | None = None) -> Gallery:
        """Build a gallery in memory.

        Args:
            embeddings: At least one embedding; every row becomes a row of the gallery.
            more: Further columns for filters, by their names, one text or None for each embedding.

        Returns:
            The gallery, with the fingerprint of the embeddings.

        Raises:
            GalleryError: There are no embeddings.
        """
        if not len(embeddings):
            raise GalleryError("no embeddings to build a gallery from; embed at least one image")
        table = RowTable.from_samples(embeddings.samples, more=more)
        segment = GallerySegment(table, np.zeros(0, np.int64), None, embeddings.vectors.copy())
        return cls(GalleryRows(table, [segment], embeddings.vectors.shape[1]), embeddings.fingerprint)

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Open the gallery of a folder, or one in Milvus.

        Args:
            folder: The folder of the gallery, ``milvus://HOST:PORT/COLLECTION``, or a file of Milvus Lite, which ends
                in ".db". A folder is read as :meth:`GalleryReader.open
                <reid.retrieval.gallery_reader.GalleryReader.open>` says.

        Raises:
            ConfigError: The address of Milvus is wrong, or pymilvus is not installed.
            GalleryError: The gallery is missing, incomplete or damaged, or the server does not answer.
        """
        if is_milvus_uri(str(folder)):
            from reid.retrieval.milvus_gallery import MilvusGallery

            return cast("Self", MilvusGallery.open(folder))  # a MilvusGallery is a Gallery
        return super().open(folder)

    @classmethod
    def create(
        cls, folder: Path | str, fingerprint: str, dimension: int, attach: Mapping[str, Writer] | None = None
    ) -> Self:
        """Create an empty gallery in a folder; :meth:`add` gives it rows.

        Args:
            folder: The folder, which is made if it is missing, or the address of a collection of Milvus.
            fingerprint: The fingerprint of the network whose embeddings it will hold.
            dimension: The length D of a vector.
            attach: Writers of further files that belong to the gallery, such as its network.

        Raises:
            GalleryError: The folder holds a gallery or something else already, or cannot be written to.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> with TemporaryDirectory() as folder:
            ...     len(Gallery.create(folder, "f00d", 128))
            0
        """
        if is_milvus_uri(str(folder)):
            from reid.retrieval.milvus_gallery import MilvusGallery

            return cast("Self", MilvusGallery.create(folder, fingerprint, dimension, attach))
        folder = Path(folder)
        with write_gallery(folder) as writer:
            if writer.header is not None:
                writer.sweep()
                raise GalleryError(f"{folder}: holds a gallery already; choose another folder, or add rows to this one")
            writer.commit(with_files(writer, new_facts(fingerprint, dimension), attach or {}))
            writer.sweep()
        return cls.open(folder)

    def save(
        self,
        folder: Path | str,
        attach: Mapping[str, Writer] | None = None,
        thumbnails: Sequence[bytes] | None = None,
    ) -> None:
        """Write the gallery to a folder, as a whole or not at all.

        Rows that were erased from the folder are left out, of this object as well.

        Args:
            folder: The folder; it is made if it is missing, and a gallery in it is replaced.
            attach: Writers of further files that belong to the gallery, by the suffix of their names, such as the
                network that made it.
            thumbnails: A small JPEG image of each row (G,), b"" for none; None keeps those that the rows have.

        Raises:
            GalleryError: The folder cannot be written to, or it holds files of something else.
        """
        folder = Path(folder)
        images = self.kept_thumbnails() if thumbnails is None else thumbnails
        with write_gallery(folder) as writer:
            barred = writer.tombstones.barred(self._rows.table.samples)
            persons = kept_person_files(writer, erased_crops(self._rows.table, barred))
            rows, kept = self._rows.select(~barred), [images[i] for i in np.flatnonzero(~barred).tolist()]
            first_id = int((writer.header or {}).get("next_id", 0))
            table = rows.table.with_column(ID, np.arange(first_id, first_id + len(rows.table)))
            facts = {**new_facts(self._fingerprint, rows.dimension, first_id), "files": persons}
            facts = with_rows(writer, facts, table, [rows.vectors()], thumbnails=kept)
            facts = with_files(writer, facts, attach or {})
            writer.commit(with_cohorts(writer, facts))
            if writer.tombstones.lifted:
                write_tombstones(folder, replace(writer.tombstones, lifted=False))
            writer.sweep()  # the next writer removes what remains
        self.__dict__.update(Gallery.open(folder).__dict__)

    def add(self, embeddings: Embeddings, more: Mapping[str, Sequence[object]] | None = None) -> AddedRows:
        """Add rows, which are seen by every later search of every program.

        Rows whose image is in the gallery already are passed over, and so are rows of erased identities and images.

        Args:
            embeddings: The rows, embedded by the network of the gallery.
            more: Further columns for filters, by their names, one text or None for each embedding.

        Returns:
            How many rows were added and how many were passed over.

        Raises:
            GalleryError: Another network made the embeddings, the vectors have another length, or the folder cannot
                be written to.

        Example:
            >>> from reid.records import Sample
            >>> first, second = (Embeddings((Sample(n),), np.eye(2, dtype=np.float32)[:1], "f00d") for n in "ab")
            >>> gallery = Gallery.build(first)
            >>> gallery.add(second).added, len(gallery), gallery.add(first).known
            (1, 2, 1)
        """
        from reid.retrieval.growth import add_in_memory, add_to_folder

        if self._folder is None:
            self._rows, added = add_in_memory(self._rows, self._fingerprint, embeddings, more)
            return added
        added = add_to_folder(self._folder, embeddings, more, known=self._rows.segments)
        self.reload()
        return added

    def remove(self, where: str | Filter, *, forget: bool = True) -> int:
        """Remove the rows that a filter selects; they answer no search from now on.

        In a folder, their vectors and labels stay in the files until :meth:`compact`.

        Args:
            where: The filter, see :mod:`reid.retrieval.filters`.
            forget: Keep the same images out when rows are added later, until the erasure is lifted.

        Returns:
            The number of removed rows.

        Raises:
            DataError: The filter is wrong, or names an unknown column.
            GalleryError: The folder cannot be written to.

        Example:
            >>> from reid.records import Sample
            >>> samples = (Sample(Path("1.jpg"), camera="door"), Sample(Path("2.jpg"), camera="hall"))
            >>> gallery = Gallery.build(Embeddings(samples, np.eye(2, dtype=np.float32), "f00d"))
            >>> gallery.remove("camera = 'door'"), len(gallery)
            (1, 1)
        """
        chosen = parse_where(where) if isinstance(where, str) else where
        if self._folder is None:
            gone = rows_where(chosen, self._rows.table)
            self._rows = self._rows.select(~gone)
            return int(np.count_nonzero(gone))
        from reid.retrieval.erasure import erase_rows

        erased = erase_rows(self._folder, chosen, forget=forget, known=self._rows.segments)
        self.reload()
        return int(erased[0].rows or 0)

    def compact(self) -> int:
        """Write the gallery anew without removed rows, as few segments, and remove the files that held them.

        An approximate index that held removed rows is built again.

        Returns:
            By how many bytes the files have become smaller.

        Raises:
            GalleryError: The gallery is damaged, or the folder cannot be written to.
        """
        from reid.retrieval.upkeep import compact_gallery

        if self._folder is None:
            return 0
        freed = compact_gallery(self._folder, self._rows.segments)
        self.reload()
        return freed

    def verify(self) -> None:
        """Check every byte of the gallery's files.

        Raises:
            GalleryError: A file is damaged or missing; the message names it.
        """
        from reid.retrieval.upkeep import verify_gallery

        if self._folder is not None:
            verify_gallery(self._folder)

    def info(self) -> dict[str, Any]:
        """Return what the gallery holds: rows, cameras, identities, fingerprint, times, segments, bytes and more."""
        from reid.retrieval.upkeep import describe

        return describe(self._rows.table, self._fingerprint, self.dimension, self._folder)

    def erase(self, identity: str, category: str | None = None) -> int:
        """Remove every row of one identity, in memory and in all that the program keeps of it on disk.

        Where the gallery was opened from or saved to a folder, :func:`reid.retrieval.erasure.erase_identity` removes
        the identity from the files of this folder and from what the application derived from the same data. Names that
        differ only in their Unicode form (NFC, NFD) are one identity.

        Args:
            identity: The identity; it must not be empty.
            category: Erase it in this category only; None erases it in every category.

        Returns:
            The number of rows that were removed from this gallery.

        Raises:
            GalleryError: The identity is empty, the folder cannot be written to, or another program changed it.

        Example:
            >>> from reid.records import Sample
            >>> samples = (Sample(Path("1.jpg"), "anna"), Sample(Path("2.jpg"), "ben"))
            >>> gallery = Gallery.build(Embeddings(samples, np.eye(2, dtype=np.float32), "f00d"))
            >>> gallery.erase("anna"), len(gallery)
            (1, 1)
        """
        if not identity:
            raise GalleryError("erase: expected an identity, got an empty one; unlabelled rows belong to no identity")
        if self._folder is not None:
            from reid.retrieval.erasure import erase_identity

            erased = erase_identity(
                self._folder, identity, category, replaces=self._generation, known=self._rows.segments
            )
            self._generation, self._stamp, self._looked_up = erased[0].generation, None, None
            for line in (line for one in erased for line in one.remaining):
                warnings.warn(f"{line}; it still holds erased rows", stacklevel=2)
        rows = self._rows
        gone = Tombstones().with_identity(identity, category).hidden_rows(rows.table)
        if gone.any():
            self._rows = rows.select(~gone)
        return int(np.count_nonzero(gone))
