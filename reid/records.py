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


class UnseenCameraPolicy(StrEnum):
    """What a network does with images of an unknown camera."""

    ERROR = "error"
    """Refuse the images."""
    CALIBRATE = "calibrate"
    """Measure statistics for the camera on its unlabelled images first."""
    PRIOR = "prior"
    """Give the camera the mixture of the statistics of all known cameras."""
    NEAREST = "nearest"
    """Use for each image the known camera whose statistics are most like the image's own."""
    MIXTURE = "mixture"
    """Embed each image as every known camera, and add the embeddings, weighted by likeness."""


class Split(StrEnum):
    """What a row of a data set is for."""

    TRAIN = "train"
    QUERY = "query"
    GALLERY = "gallery"


@dataclass(frozen=True, slots=True, init=False)
class Sample:
    """One crop and its labels.

    Args:
        path: The image file.
        identity: Who or which object the crop shows; "" when unknown.
        camera: The camera that took the crop; "" when unknown.
        modality: The kind of light that the camera sees.
        category: What the crop shows: "person", "vehicle", "animal", ...
        split: What the row is for in a data set.
        time: When the crop was taken; None when unknown.
        track: Name of the track, the crops that follow one object through a video; "" when unknown.
        domain: The name that version 0.1.0 used for ``category``; it is still accepted and readable.

    Example:
        >>> Sample(Path("0001.jpg"), identity="anna", camera="door").category
        'person'
    """

    path: Path
    identity: str
    camera: str
    modality: Modality
    category: str
    split: Split
    time: datetime | None
    track: str

    def __init__(
        self,
        path: Path,
        identity: str = "",
        camera: str = "",
        modality: Modality = Modality.VISIBLE,
        category: str = "person",
        split: Split = Split.GALLERY,
        time: datetime | None = None,
        track: str = "",
        *,
        domain: str | None = None,
    ) -> None:
        category = category if domain is None else domain
        values = (path, identity, camera, modality, category, split, time, track)
        for name, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, name, value)

    @property
    def domain(self) -> str:
        """The category, under the name that version 0.1.0 used."""
        return self.category


def domain_of(sample: Sample, domain_fields: Sequence[str]) -> str:
    """Name the normalization domain that a sample belongs to.

    Args:
        sample: The sample.
        domain_fields: Fields of the sample that name a domain together, among "camera", "modality" and "category".

    Returns:
        The values of these fields joined by "/"; "" when there are no fields.

    Example:
        >>> domain_of(Sample(Path("0001.jpg"), camera="door"), ("category", "camera"))
        'person/door'
    """
    return "/".join(str(getattr(sample, field)) for field in domain_fields)


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
