"""The records that travel through the program: samples, embeddings, rankings.

Each is frozen and checked once, at birth; everything downstream relies on it.  Records know
nothing of files, networks or indexes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reid.errors import DataError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

UNIT_TOLERANCE = 1e-3


class Modality(StrEnum):
    """What kind of light the camera sees."""

    VISIBLE = "visible"
    INFRARED = "infrared"


class Split(StrEnum):
    """What a row of a data set is for."""

    TRAIN = "train"
    QUERY = "query"
    GALLERY = "gallery"


@dataclass(frozen=True, slots=True)
class Sample:
    """One crop and what is known about it.

    ``identity`` and ``camera`` may be empty: unknown.  ``domain`` is the kind of object
    ("person", "vehicle", ...).  ``time`` is when the crop was taken, ``track`` names the crops that follow one
    passer-by through a film; None and "": unknown.
    """

    path: Path
    identity: str = ""
    camera: str = ""
    modality: Modality = Modality.VISIBLE
    domain: str = "person"
    split: Split = Split.GALLERY
    time: datetime | None = None
    track: str = ""


def label_of(sample: Sample, by: Sequence[str]) -> str:
    """Name of the normalization domain of a sample, e.g. by ("domain", "camera") "person/a1".

    ``by`` lists fields of the sample among "camera", "modality" and "domain"; () gives "".
    """
    return "/".join(str(getattr(sample, field)) for field in by)


@dataclass(frozen=True)
class Embeddings:
    """Samples and their vectors.

    ``vectors`` (N, D) float32, rows of unit length, row i belongs to ``samples[i]``;
    ``fingerprint`` names the weights, transform and camera statistics that made them.
    """

    samples: tuple[Sample, ...]
    vectors: FloatArray
    fingerprint: str

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32:
            raise DataError(
                f"embeddings: expected float32 vectors (N, D), got {self.vectors.dtype} {self.vectors.shape}"
            )
        if len(self.samples) != len(self.vectors):
            raise DataError(f"embeddings: {len(self.samples)} samples but {len(self.vectors)} vectors")
        norms = np.linalg.norm(self.vectors, axis=1)
        if not np.all(np.abs(norms - 1.0) <= UNIT_TOLERANCE):  # also false for NaN
            worst = int(np.argmax(np.nan_to_num(np.abs(norms - 1.0), nan=np.inf)))
            raise DataError(f"embeddings: row {worst} has length {norms[worst]:.4g}, expected unit length")

    def __len__(self) -> int:
        return len(self.samples)

    def select(self, rows: IntArray | npt.NDArray[np.bool_]) -> Embeddings:
        """The rows at ``rows`` (int64 positions or a bool mask of length N), in that order."""
        where = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return replace(self, samples=tuple(self.samples[i] for i in where), vectors=self.vectors[where])


@dataclass(frozen=True)
class Ranking:
    """The answer to Q queries.

    ``rows`` (Q, K) int64: ``rows[i, j]`` is the gallery row in place j for query i, each at most
    once; ``scores`` (Q, K) float32: its similarity, descending along j.  A query with fewer
    answers than K has a shorter ``counts[i]``; places from ``counts[i]`` on hold row 0 and
    score -inf and mean nothing.
    """

    rows: IntArray
    scores: FloatArray
    counts: IntArray

    def __post_init__(self) -> None:
        if self.rows.shape != self.scores.shape or self.rows.ndim != 2:
            raise DataError(f"ranking: rows {self.rows.shape} and scores {self.scores.shape} differ")
        if self.counts.shape != (len(self.rows),):
            raise DataError(f"ranking: expected counts ({len(self.rows)},), got {self.counts.shape}")
        for i, count in enumerate(self.counts):
            rows, scores = self.rows[i, :count], self.scores[i, :count]
            if np.any(rows < 0) or len(np.unique(rows)) != count:
                raise DataError(f"ranking: query {i} has a negative or repeated row")
            if np.any(np.diff(scores) > 0) or np.any(np.isnan(scores)):
                raise DataError(f"ranking: scores of query {i} are not descending")

    def answers(self, query: int) -> list[tuple[int, float]]:
        """(gallery row, score) of one query, best first."""
        count = int(self.counts[query])
        return [(int(r), float(s)) for r, s in zip(self.rows[query, :count], self.scores[query, :count], strict=True)]
