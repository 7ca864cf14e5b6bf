"""The gallery: samples with embeddings that can be searched, saved and erased."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reid.errors import DataError, GalleryError
from reid.files import Writer
from reid.records import Embeddings, FloatArray, Ranking, Sample
from reid.retrieval.exact import empty_ranking
from reid.retrieval.faiss_index import FlatIndex
from reid.retrieval.sample_table import decode_samples, encode_samples, first_line
from reid.retrieval.storage import open_gallery_folder, stamp_of, write_gallery
from reid.retrieval.tombstones import (
    BoolArray,
    Tombstones,
    is_identity,
    read_tombstones,
    write_tombstones,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class GalleryRows:
    """One state of a gallery. It is replaced as a whole, so that a running search never reads half an erasure."""

    samples: tuple[Sample, ...]
    index: FlatIndex

    def select(self, mask: BoolArray) -> GalleryRows:
        """Return the rows where ``mask`` (G,) is true."""
        if mask.all():
            return self
        samples = tuple(self.samples[i] for i in np.flatnonzero(mask))
        return GalleryRows(samples, FlatIndex.build(self.index.vectors[mask]))

    def writers(self) -> dict[str, Writer]:
        """Return the writers of the data files."""
        table = encode_samples(self.samples)
        return {"index": self.index.write, "samples": lambda path: path.write_bytes(table)}

    def facts(self, fingerprint: str) -> dict[str, object]:
        """Return what the header says about the rows."""
        return {"fingerprint": fingerprint, "dimension": self.index.vectors.shape[1], "count": len(self.samples)}


def read_rows(folder: Path, header: Mapping[str, Any], files: Mapping[str, Path]) -> GalleryRows:
    """Read the rows of a gallery from files whose checksums are right.

    Args:
        folder: The folder, for the message of an error.
        header: The header of the gallery.
        files: The data files by their suffixes.

    Raises:
        GalleryError: The files are damaged, or do not fit the header.
    """
    try:
        samples = decode_samples(files["samples"].read_bytes(), files["samples"])
        index = FlatIndex.read(files["index"])
        count, dimension, _ = header["count"], header["dimension"], header["fingerprint"]
    except (KeyError, RuntimeError, DataError) as error:
        raise GalleryError(f"{folder}: the gallery is damaged ({_describe(error)}); build it again") from error
    if (*index.vectors.shape, len(samples)) != (count, dimension, count):
        raise GalleryError(
            f"{folder}: the gallery is damaged, its header says {count} x {dimension} vectors, there are"
            f" {index.vectors.shape[0]} x {index.vectors.shape[1]} and {len(samples)} samples; build it again"
        )
    return GalleryRows(samples, index)


class Gallery:
    """Embeddings that answer queries of the same network.

    Row i of every ranking is ``samples[i]``. Scores are inner products of unit vectors in -1..1, and a larger score
    means more similar; of equal scores, the lower row comes first. Answers are exact. Use :meth:`build` or
    :meth:`open` to get a gallery.

    Example:
        >>> from reid.records import Sample
        >>> samples = (Sample(Path("1.jpg"), "anna"), Sample(Path("2.jpg"), "ben"))
        >>> gallery = Gallery.build(Embeddings(samples, np.eye(2, dtype=np.float32), "f00d"))
        >>> ranking = gallery.search(np.float32([[0.6, 0.8]]), k=1, fingerprint="f00d")
        >>> [gallery.samples[row].identity for row, score in ranking.answers(0)]
        ['ben']
    """

    def __init__(self, rows: GalleryRows, fingerprint: str, folder: Path | None = None):
        self._rows = rows
        self._fingerprint = fingerprint
        self._folder = folder
        self._generation: str | None = None  # of the files in the folder that hold these rows
        self._stamp: tuple[object, ...] | None = None  # of the folder when its erased identities were last looked up
        self._erased: tuple[GalleryRows, BoolArray] | None = None  # (G,) of rows that another program erased

    @classmethod
    def build(cls, embeddings: Embeddings) -> Gallery:
        """Build a gallery in memory.

        Args:
            embeddings: At least one embedding; every row becomes a row of the gallery.

        Returns:
            The gallery, with the fingerprint of the embeddings.

        Raises:
            GalleryError: There are no embeddings.
        """
        if not len(embeddings):
            raise GalleryError("no embeddings to build a gallery from; embed at least one image")
        return cls(GalleryRows(embeddings.samples, FlatIndex.build(embeddings.vectors)), embeddings.fingerprint)

    @classmethod
    def open(cls, folder: Path | str) -> Gallery:
        """Open a gallery that :meth:`save` wrote.

        Args:
            folder: The folder of the gallery.

        Returns:
            The gallery in memory; :meth:`erase` also writes to the folder.

        Raises:
            GalleryError: The gallery is missing, incomplete or damaged.
        """
        folder = Path(folder)
        with open_gallery_folder(folder) as (header, files):
            rows, stamp, tombstones = read_rows(folder, header, files), stamp_of(folder), read_tombstones(folder)
        gallery = cls(rows.select(~tombstones.hidden(rows.samples)), str(header["fingerprint"]), folder)
        gallery._generation, gallery._stamp = header["generation"], stamp
        return gallery

    def save(self, folder: Path | str, attach: Mapping[str, Writer] | None = None) -> None:
        """Write the gallery to a folder, as a whole or not at all.

        Rows of identities that were erased from the folder are left out, of this object as well.

        Args:
            folder: The folder; it is made if it is missing, and a gallery in it is replaced.
            attach: Writers of further files that belong to the gallery, by the suffix of their names, such as the
                network that made it.

        Raises:
            GalleryError: The folder cannot be written to, or it holds files of something else.
        """
        folder = Path(folder)
        with write_gallery(folder) as writer:
            rows = self._rows.select(~writer.tombstones.hidden(self._rows.samples))
            writer.commit({**rows.writers(), **(attach or {})}, rows.facts(self._fingerprint))
            if writer.tombstones.lifted:
                write_tombstones(folder, replace(writer.tombstones, lifted=False))
            writer.sweep()  # the next writer removes what remains
            self._rows, self._folder, self._stamp = rows, folder, stamp_of(folder)
            self._generation = str((writer.header or {})["generation"])

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

            erased = erase_identity(self._folder, identity, category, replaces=self._generation)
            self._generation, self._stamp = erased[0].generation, None
            for line in (line for one in erased for line in one.remaining):
                warnings.warn(f"{line}; it still holds erased rows", stacklevel=2)
        rows = self._rows
        gone = np.array([is_identity(sample, identity, category) for sample in rows.samples], dtype=np.bool_)
        if gone.any():
            self._rows = rows.select(~gone)
        return int(np.count_nonzero(gone))

    def search(self, vectors: FloatArray, k: int, *, fingerprint: str, keep: BoolArray | None = None) -> Ranking:
        """Find the ``k`` nearest rows of each query.

        Rows that another program has erased from the folder in the meantime do not answer.

        Args:
            vectors: (Q, D) float32 of unit length.
            k: The number of answers, at least 1.
            fingerprint: The fingerprint of the network that made ``vectors``.
            keep: (G,) bool, which rows may answer; None allows all.

        Returns:
            A ranking with min(k, number of rows that may answer) answers for every query.

        Raises:
            GalleryError: Another network made the gallery, or the gallery is empty.
            DataError: The vectors, ``k`` or ``keep`` have a wrong type or shape.
        """
        rows = self._rows
        self._check(rows, vectors, k, fingerprint, keep)
        erased = self._rows_erased_since(rows)
        if erased.any():
            keep = ~erased if keep is None else keep & ~erased
        allowed = None if keep is None or keep.all() else np.flatnonzero(keep)
        size = len(rows.samples) if allowed is None else len(allowed)
        ranking = empty_ranking(len(vectors), min(k, size))
        if not len(vectors) or not size:
            return ranking
        ranking.rows[:], ranking.scores[:] = rows.index.search(vectors, min(k, size), allowed)
        ranking.counts[:] = min(k, size)
        return Ranking(ranking.rows, ranking.scores, ranking.counts)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The sample of each row."""
        return self._rows.samples

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the network that made the vectors."""
        return self._fingerprint

    @property
    def dimension(self) -> int:
        """The length D of a vector."""
        return int(self._rows.index.vectors.shape[1])

    @property
    def embeddings(self) -> Embeddings:
        """The samples and a copy of their vectors."""
        rows = self._rows
        return Embeddings(rows.samples, rows.index.vectors.copy(), self._fingerprint)

    def to_frame(self) -> pd.DataFrame:
        """Return the samples as a pandas table, for example to count the crops of each camera.

        Returns:
            One row for each gallery row, in the same order, and one column for each field of a sample. Paths,
            modalities and splits are strings; an unknown time is a missing value.

        Example:
            >>> from reid.records import Sample
            >>> samples = (Sample(Path("1.jpg"), "anna", "door"), Sample(Path("2.jpg"), "ben", "door"))
            >>> gallery = Gallery.build(Embeddings(samples, np.eye(2, dtype=np.float32), "f00d"))
            >>> gallery.to_frame().groupby("camera").identity.nunique()["door"].item()
            2
        """
        import pandas as pd  # takes most of a second, and a search does not need it

        samples = self._rows.samples
        columns = {field.name: [getattr(sample, field.name) for sample in samples] for field in fields(Sample)}
        columns |= {name: [str(value) for value in columns[name]] for name in ("path", "modality", "split")}
        return pd.DataFrame(columns)

    def __len__(self) -> int:
        return len(self._rows.samples)

    def _check(self, rows: GalleryRows, vectors: FloatArray, k: int, fingerprint: str, keep: BoolArray | None) -> None:
        if fingerprint != self._fingerprint:
            raise GalleryError(
                f'the query was embedded by "{fingerprint}" and the gallery by "{self._fingerprint}"; their scores'
                ' mean nothing: embed both with the same weights and profiles, then "reid index build"'
            )
        if not rows.samples:
            raise GalleryError("the gallery is empty; build it again with at least one image")
        dimension = rows.index.vectors.shape[1]
        if vectors.ndim != 2 or vectors.dtype != np.float32 or vectors.shape[1] != dimension:
            raise DataError(f"search: expected float32 queries (Q, {dimension}), got {vectors.dtype} {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise DataError("search: a query vector holds NaN or infinity")
        if k < 1:
            raise DataError(f"search: expected k of at least 1, got {k}")
        if keep is not None and (keep.shape != (len(rows.samples),) or keep.dtype != np.bool_):
            raise DataError(f"search: expected keep ({len(rows.samples)},) bool, got {keep.dtype} {keep.shape}")

    def _rows_erased_since(self, rows: GalleryRows) -> BoolArray:
        """Return (G,) bool: the rows in memory whose identities were erased from the folder after it was read."""
        known = self._erased
        stamp = None if self._folder is None else stamp_of(self._folder)
        if known is None or known[0] is not rows or stamp != self._stamp:
            tombstones = Tombstones() if self._folder is None else read_tombstones(self._folder)
            known = rows, tombstones.hidden(rows.samples)
            self._erased, self._stamp = known, stamp
        return known[1]


def _describe(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{json.dumps(str(error.args[0]))} is missing from the header"
    return first_line(error)
