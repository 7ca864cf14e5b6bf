"""The gallery: samples with embeddings that can be searched, saved and erased."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from reid.errors import DataError, GalleryError
from reid.files import Writer
from reid.records import Embeddings, FloatArray, Ranking, Sample
from reid.retrieval.exact import empty_ranking
from reid.retrieval.faiss_index import FlatIndex
from reid.retrieval.storage import (
    decode_samples,
    encode_samples,
    first_line,
    open_gallery_folder,
    write_gallery_folder,
)

if TYPE_CHECKING:
    import pandas as pd

BoolArray = npt.NDArray[np.bool_]

OWN_FILES = ("index", "samples")


@dataclass(frozen=True)
class _GalleryRows:
    """One state of a gallery. It is replaced as a whole, so that a running search never reads half an erasure."""

    samples: tuple[Sample, ...]
    index: FlatIndex


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

    def __init__(
        self,
        rows: _GalleryRows,
        fingerprint: str,
        folder: Path | None = None,
        generation: str | None = None,
        attached: Mapping[str, Path] | None = None,
    ):
        self._rows = rows
        self._attached = dict(attached or {})
        self._fingerprint = fingerprint
        self._folder = folder
        self._generation = generation

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
        return cls(_GalleryRows(embeddings.samples, FlatIndex.build(embeddings.vectors)), embeddings.fingerprint)

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
            try:
                samples = decode_samples(files["samples"].read_bytes(), files["samples"])
                index = FlatIndex.read(files["index"])
                count, dimension, fingerprint = header["count"], header["dimension"], header["fingerprint"]
            except (KeyError, RuntimeError, DataError) as error:
                raise GalleryError(f"{folder}: the gallery is damaged ({_describe(error)}); build it again") from error
            attached = {suffix: path for suffix, path in files.items() if suffix not in OWN_FILES}
        if (*index.vectors.shape, len(samples)) != (count, dimension, count):
            raise GalleryError(
                f"{folder}: the gallery is damaged, its header says {count} x {dimension} vectors, there are"
                f" {index.vectors.shape[0]} x {index.vectors.shape[1]} and {len(samples)} samples; build it again"
            )
        return cls(_GalleryRows(samples, index), str(fingerprint), folder, header["generation"], attached)

    def save(self, folder: Path | str, attach: Mapping[str, Writer] | None = None) -> None:
        """Write the gallery to a folder, as a whole or not at all.

        Args:
            folder: The folder; it is made if it is missing, and a gallery in it is replaced.
            attach: Writers of further files that belong to the gallery, by the suffix of their names, such as the
                network that made it.

        Raises:
            GalleryError: The folder cannot be written to, or it holds files of something else.
        """
        self._write(Path(folder), self._rows, replaces=None, attach=attach or {})

    def erase(self, identity: str) -> int:
        """Remove every row of one identity, in memory and on disk.

        Where the gallery was opened from or saved to a folder, its files are written anew without these rows, and the
        old files are deleted before this method returns.

        Args:
            identity: The identity; it must not be empty.

        Returns:
            The number of removed rows.

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
        rows = self._rows
        kept = np.array([sample.identity != identity for sample in rows.samples], dtype=np.bool_)
        removed = int(np.count_nonzero(~kept))
        if removed:
            samples = tuple(rows.samples[i] for i in np.flatnonzero(kept))
            remaining = _GalleryRows(samples, FlatIndex.build(rows.index.vectors[kept]))
            if self._folder is not None:
                attached = {suffix: partial(shutil.copyfile, path) for suffix, path in self._attached.items()}
                self._write(self._folder, remaining, replaces=self._generation, attach=attached)
            self._rows = remaining
        return removed

    def search(self, vectors: FloatArray, k: int, *, fingerprint: str, keep: BoolArray | None = None) -> Ranking:
        """Find the ``k`` nearest rows of each query.

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

    def _check(self, rows: _GalleryRows, vectors: FloatArray, k: int, fingerprint: str, keep: BoolArray | None) -> None:
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

    def _write(self, folder: Path, rows: _GalleryRows, replaces: str | None, attach: Mapping[str, Writer]) -> None:
        table = encode_samples(rows.samples)
        header = write_gallery_folder(
            folder,
            {
                "index": rows.index.write,
                "samples": lambda path: path.write_bytes(table),
                **attach,
            },
            {"fingerprint": self._fingerprint, "dimension": rows.index.vectors.shape[1], "count": len(rows.samples)},
            replaces,
        )
        self._folder, self._generation = folder, str(header["generation"])
        self._attached = {suffix: folder / header["files"][suffix]["name"] for suffix in attach}


def _describe(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{json.dumps(str(error.args[0]))} is missing from the header"
    return first_line(error)
