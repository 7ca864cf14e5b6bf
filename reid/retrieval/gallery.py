"""The gallery: vectors and what is known about them, searched exactly by inner product (FAISS).

The only file that imports faiss.  The gallery knows vectors and metadata; it knows nothing of
images or networks, except the fingerprint of the one that made its vectors.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# torch before faiss: the other order leaves two OpenMP runtimes, and forked workers hang.
# isort: off
import torch  # noqa: F401
import faiss as _faiss

# isort: on
import numpy as np
import numpy.typing as npt

from reid.errors import DataError, GalleryError
from reid.files import Writer
from reid.records import Embeddings, FloatArray, IntArray, Ranking, Sample
from reid.retrieval.exact import best_first, empty_ranking, scores_of
from reid.retrieval.storage import commit, decode_samples, encode_samples, reading

BoolArray = npt.NDArray[np.bool_]

faiss: Any = _faiss  # its type stubs describe C++ signatures, not the Python ones

OWN_FILES = ("index", "samples")
SPARE = 16  # candidates beyond k: usually enough to prove that none of the k best was missed
FEW_QUERIES = 16  # up to here one thread is quicker: waking others costs more than the search
GATHER_BYTES = 256 * 2**20  # vectors copied out at a time when only some rows may answer
UNIT_ROUNDOFF = 2.0**-24  # of float32


@dataclass(frozen=True)
class _GalleryRows:
    """One state of a gallery; replaced as a whole, so that a running search never sees half an erasure."""

    samples: tuple[Sample, ...]
    index: Any  # faiss.IndexFlatIP
    vectors: FloatArray  # (G, D), a view of the index's memory


class Gallery:
    """Samples and vectors that answer queries of the same fingerprint, and only those.

    Row i of every ranking is ``samples[i]``.  Scores are inner products of unit vectors, -1..1,
    larger is nearer; equal scores put the lower row first.  Answers are exact.
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
        """A gallery in memory of all rows of ``embeddings``."""
        if not len(embeddings):
            raise GalleryError("no embeddings to build a gallery from; embed at least one image")
        return cls(_rows(embeddings.samples, embeddings.vectors), embeddings.fingerprint)

    @classmethod
    def open(cls, folder: Path | str) -> Gallery:
        """The gallery saved in ``folder``; GalleryError when it is missing, half written or damaged."""
        folder = Path(folder)
        with reading(folder) as (header, files):
            try:
                samples = decode_samples(files["samples"].read_bytes(), files["samples"])
                index = faiss.read_index(str(files["index"]))
                count, dimension, fingerprint = header["count"], header["dimension"], header["fingerprint"]
            except (KeyError, RuntimeError, DataError) as error:
                raise GalleryError(f"{folder}: the gallery is damaged ({_line(error)}); build it again") from error
            attached = {suffix: path for suffix, path in files.items() if suffix not in OWN_FILES}
        flat = isinstance(index, faiss.IndexFlat) and index.metric_type == faiss.METRIC_INNER_PRODUCT
        if not flat or (index.ntotal, index.d, len(samples)) != (count, dimension, count):
            raise GalleryError(
                f"{folder}: the gallery is damaged, its header says {count} x {dimension} vectors, there are"
                f" {index.ntotal} x {index.d} and {len(samples)} samples; build it again"
            )
        rows = _GalleryRows(samples, index, _view(index))
        return cls(rows, str(fingerprint), folder, header["generation"], attached)

    def save(self, folder: Path | str, attach: Mapping[str, Writer] | None = None) -> None:
        """Write the gallery to ``folder``, replacing a gallery that is there; all of it or nothing.

        ``attach`` writes further files (suffix -> writer) that belong to it, such as the network that made it.
        """
        self._write(Path(folder), self._rows, replaces=None, attach=attach or {})

    def erase(self, identity: str) -> int:
        """Remove every row of ``identity``; the number of rows removed.

        Where the gallery was opened from or saved to, the index and the table of samples are written
        anew without these rows and the old files deleted, before this returns.
        """
        if not identity:
            raise GalleryError("erase: expected an identity, got an empty one; unlabelled rows have no owner to erase")
        rows = self._rows
        stay = np.array([sample.identity != identity for sample in rows.samples], dtype=np.bool_)
        gone = int(np.count_nonzero(~stay))
        if gone:
            samples = tuple(rows.samples[i] for i in np.flatnonzero(stay))
            left = _rows(samples, rows.vectors[stay])
            if self._folder is not None:
                stay_too = {suffix: partial(shutil.copyfile, path) for suffix, path in self._attached.items()}
                self._write(self._folder, left, replaces=self._generation, attach=stay_too)
            self._rows = left
        return gone

    def search(self, vectors: FloatArray, k: int, *, fingerprint: str, keep: BoolArray | None = None) -> Ranking:
        """The ``k`` nearest rows for each of ``vectors`` (Q, D) float32 of unit length.

        ``fingerprint`` is that of the network that made ``vectors``; another one than the gallery's is
        an error.  ``keep`` (G,) bool says which rows may answer; the ranking has min(k, number of
        those) places, all of them filled.
        """
        rows = self._rows
        self._check(rows, vectors, k, fingerprint, keep)
        allowed = None if keep is None or keep.all() else np.flatnonzero(keep)
        size = len(rows.samples) if allowed is None else len(allowed)
        ranking = empty_ranking(len(vectors), min(k, size))
        if not len(vectors) or not size:
            return ranking
        candidates, worst = _candidates(rows, vectors, min(k + SPARE, size), allowed)
        for i, query in enumerate(vectors):
            found, scores = _settle(rows.vectors, query, candidates[i], float(worst[i]), min(k, size), allowed)
            ranking.rows[i], ranking.scores[i] = found, scores
        ranking.counts[:] = min(k, size)
        return Ranking(ranking.rows, ranking.scores, ranking.counts)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """What is known about each row."""
        return self._rows.samples

    @property
    def fingerprint(self) -> str:
        """Of the weights, transform and camera statistics that made the vectors."""
        return self._fingerprint

    @property
    def dimension(self) -> int:
        """D of the vectors."""
        return int(self._rows.index.d)

    @property
    def embeddings(self) -> Embeddings:
        """Samples and a copy of their vectors."""
        rows = self._rows
        return Embeddings(rows.samples, rows.vectors.copy(), self._fingerprint)

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
        if vectors.ndim != 2 or vectors.dtype != np.float32 or vectors.shape[1] != rows.index.d:
            raise DataError(
                f"search: expected float32 queries (Q, {rows.index.d}), got {vectors.dtype} {vectors.shape}"
            )
        if not np.isfinite(vectors).all():
            raise DataError("search: a query vector holds NaN or infinity")
        if k < 1:
            raise DataError(f"search: expected k of at least 1, got {k}")
        if keep is not None and (keep.shape != (len(rows.samples),) or keep.dtype != np.bool_):
            raise DataError(f"search: expected keep ({len(rows.samples)},) bool, got {keep.dtype} {keep.shape}")

    def _write(self, folder: Path, rows: _GalleryRows, replaces: str | None, attach: Mapping[str, Writer]) -> None:
        table = encode_samples(rows.samples)
        header = commit(
            folder,
            {
                "index": lambda path: faiss.write_index(rows.index, str(path)),
                "samples": lambda path: path.write_bytes(table),
                **attach,
            },
            {"fingerprint": self._fingerprint, "dimension": int(rows.index.d), "count": len(rows.samples)},
            replaces,
        )
        self._folder, self._generation = folder, str(header["generation"])
        self._attached = {suffix: folder / header["files"][suffix]["name"] for suffix in attach}


def _rows(samples: tuple[Sample, ...], vectors: FloatArray) -> _GalleryRows:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    return _GalleryRows(samples, index, _view(index))


def _view(index: Any) -> FloatArray:
    """The vectors (G, D) of a flat index without a copy; valid as long as the index lives unchanged."""
    if not index.ntotal:
        return np.zeros((0, index.d), np.float32)
    flat: FloatArray = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return flat.reshape(index.ntotal, index.d)


def _candidates(
    rows: _GalleryRows, queries: FloatArray, n: int, allowed: IntArray | None
) -> tuple[IntArray, FloatArray]:
    """About the ``n`` best rows (Q, n) int64 by FAISS' float32 arithmetic, and the last one's score (Q,)."""
    queries = np.ascontiguousarray(queries)
    with _threads(1 if len(queries) <= FEW_QUERIES else None):
        if allowed is None:
            scores, found = rows.index.search(queries, n)
        elif len(queries) <= FEW_QUERIES:
            bitmap = np.zeros(len(rows.samples), np.bool_)
            bitmap[allowed] = True
            selector = faiss.IDSelectorBitmap(np.packbits(bitmap, bitorder="little"))
            scores, found = rows.index.search(queries, n, params=faiss.SearchParameters(sel=selector))
        else:
            scores, found = _search_copies(rows.vectors, queries, n, allowed)
    return found, scores[:, -1]


def _search_copies(vectors: FloatArray, queries: FloatArray, n: int, allowed: IntArray) -> tuple[FloatArray, IntArray]:
    """Like a search of ``allowed`` rows by a selector, several times quicker for a batch.

    A selector scores pair by pair; a contiguous copy of the rows goes through one matrix product.
    """
    step = max(n, GATHER_BYTES // (4 * vectors.shape[1]))
    scores = np.empty((len(queries), 0), np.float32)
    found = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(allowed), step):
        part = allowed[start : start + step]
        part_scores, places = faiss.knn(queries, vectors[part], min(n, len(part)), metric=faiss.METRIC_INNER_PRODUCT)
        scores = np.concatenate([scores, part_scores], axis=1)
        found = np.concatenate([found, part[places]], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :n]
        scores, found = np.take_along_axis(scores, best, 1), np.take_along_axis(found, best, 1)
    return scores, found


def _settle(
    vectors: FloatArray, query: FloatArray, found: IntArray, worst: float, k: int, allowed: IntArray | None
) -> tuple[IntArray, FloatArray]:
    """The exact ``k`` best rows and scores, (k,) each, from the candidates ``found`` (n,).

    A row that is no candidate scored at most ``worst`` in float32, so at most ``worst`` plus the
    rounding error of a float32 inner product (Higham, 2002: D u |x| |y|).  If the k-th best beats
    that, no row was missed; else all rows that might belong are scored again.
    """
    size = len(vectors) if allowed is None else len(allowed)
    slack = 2 * (len(query) + 1) * UNIT_ROUNDOFF * max(1.0, float(np.linalg.norm(query)))
    scores = scores_of(query, vectors[found])
    best = best_first(found, scores, k)
    if len(found) < size and scores[best[-1]] <= worst + slack:
        rough = vectors @ query if allowed is None else vectors[allowed] @ query
        bar = np.partition(rough, size - k)[size - k] - 2 * slack
        near = np.flatnonzero(rough >= bar)
        found = near if allowed is None else allowed[near]
        scores = scores_of(query, vectors[found])
        best = best_first(found, scores, k)
    return found[best], scores[best]


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let FAISS use ``count`` threads from this thread of ours (None: as many as it likes)."""
    before = faiss.omp_get_max_threads()
    if count is not None:
        faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _line(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{json.dumps(str(error.args[0]))} is missing from the header"
    return (str(error).splitlines() or [type(error).__name__])[0]
