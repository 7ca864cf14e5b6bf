"""The records that travel through the program: samples, embeddings and rankings.

Each record is frozen and is checked once, when it is created, so that all other code can rely on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from reid.errors import DataError, unknown_name

if TYPE_CHECKING:
    import pandas as pd

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

PriorFrom = Literal["cameras", "network"]  # toward what statistics are shrunk: other cameras, or the network's own

CELLS_AT_ONCE = 2**20  # of a ranking that are checked at a time, which bounds the memory
UNIT_TOLERANCE = 1e-3  # how far the length of an embedding may be from 1

_Name = TypeVar("_Name", bound=StrEnum)


class Modality(StrEnum):
    """The light that a camera records."""

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
    """What a sample is for."""

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
        modality: The light that the camera records: visible or infrared.
        category: What the crop shows: "person", "vehicle", "animal", ...
        split: What the sample is for.
        time: When the crop was taken; None when unknown.
        track: Name of the track, the crops that follow one object through a video; "" when unknown.
        generated: Whether a network wrote the crop and no camera took it. Such a crop is for training only.
        domain: The name that version 0.1.0 used for ``category``; it is still accepted and readable.

    Raises:
        DataError: The modality or the split is unknown, or a generated crop is a query or in the gallery.

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
    generated: bool

    def __init__(
        self,
        path: Path | str,
        identity: str = "",
        camera: str = "",
        modality: Modality | str = Modality.VISIBLE,
        category: str = "person",
        split: Split | str = Split.GALLERY,
        time: datetime | None = None,
        track: str = "",
        *,
        generated: bool = False,
        domain: str | None = None,
    ) -> None:
        category = category if domain is None else domain
        path = path if isinstance(path, Path) else Path(path)
        modality = modality if isinstance(modality, Modality) else _member(Modality, modality, path)
        split = split if isinstance(split, Split) else _member(Split, split, path)
        if generated and split is not Split.TRAIN:
            raise DataError(f"{path}: {describe_generated(split)}")
        values = (path, identity, camera, modality, category, split, time, track, generated)
        for name, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, name, value)

    @property
    def domain(self) -> str:
        """The category, under the name that version 0.1.0 used."""
        return self.category


def describe_generated(split: str) -> str:
    """Say why a generated crop cannot be in a split, and what to do."""
    return (
        f"a generated crop is for training only, got split {split}; set its split to train, or leave out the row"
        " (column generated)"
    )


def require_recorded(samples: Sequence[Sample], where: str) -> None:
    """Refuse generated crops where only crops that cameras recorded belong.

    Args:
        samples: The samples.
        where: What they are meant for, such as "a gallery".

    Raises:
        DataError: A sample is generated.
    """
    for sample in samples:
        if sample.generated:
            raise DataError(f"{sample.path}: a generated crop is for training only and cannot enter {where}")


def _member(names: type[_Name], name: str, path: Path) -> _Name:
    try:
        return names(name)
    except ValueError:
        raise DataError(f"{path}: {unknown_name(names.__name__.lower(), name, names)}") from None


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


SAMPLE_FIELDS = tuple(name for name in Sample.__slots__ if name != "generated")  # the columns of queries and galleries


def sample_columns(samples: Sequence[Sample]) -> dict[str, list[object]]:
    """Return the fields of samples as the columns of a table.

    Args:
        samples: The samples.

    Returns:
        For each field its values, in the order of the samples: times as ``datetime`` or None, all others as text.

    Example:
        >>> sample_columns([Sample(Path("0001.jpg")), Sample(Path("0002.jpg"))])["path"]
        ['0001.jpg', '0002.jpg']
    """
    return {
        name: [value if name == "time" else str(value) for value in (getattr(sample, name) for sample in samples)]
        for name in SAMPLE_FIELDS
    }


@dataclass(frozen=True)
class Embeddings:
    """Samples and their embeddings.

    Args:
        samples: The samples.
        vectors: Array (N, D) float32; row i belongs to ``samples[i]`` and has unit length.
        fingerprint: Names the weights, the image preparation and the statistics that made the vectors.

    Raises:
        DataError: The shapes differ, or a row has no unit length.

    Example:
        >>> vectors = np.eye(2, dtype=np.float32)
        >>> len(Embeddings((Sample(Path("0001.jpg")), Sample(Path("0002.jpg"))), vectors, "0123abcd"))
        2
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
        """Return some of the rows.

        Args:
            rows: Positions (K,) int64, which also give the order, or a mask (N,) bool.

        Returns:
            The embeddings of these rows, with the same fingerprint.
        """
        positions = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return replace(self, samples=tuple(self.samples[i] for i in positions), vectors=self.vectors[positions])

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a pandas table.

        Returns:
            The columns of a manifest, and the column ``vector`` with an array (D,) float32 in each row.
        """
        import pandas as pd

        return pd.DataFrame({**sample_columns(self.samples), "vector": list(self.vectors)}, dtype=object)


@dataclass(frozen=True)
class Ranking:
    """The ranked answers to Q queries.

    A query with fewer answers than K has a smaller count.  Behind its last answer, its rows are 0 and its scores
    -inf; they mean nothing.

    Args:
        rows: Array (Q, K) int64; ``rows[i, j]`` is the gallery row at rank j + 1 for query i, each at most once.
        scores: Array (Q, K) float32; the similarities of these rows, which descend along j.
        counts: Array (Q,) int64; the number of answers of each query, 0..K.

    Raises:
        DataError: The shapes differ, a row is negative or repeated, or scores do not descend.

    Example:
        >>> rows, scores = np.array([[3, 1]]), np.array([[0.75, 0.5]], dtype=np.float32)
        >>> Ranking(rows, scores, np.array([2])).answers(0)
        [(3, 0.75), (1, 0.5)]
    """

    rows: IntArray
    scores: FloatArray
    counts: IntArray

    def __post_init__(self) -> None:
        if self.rows.shape != self.scores.shape or self.rows.ndim != 2:
            raise DataError(f"ranking: rows {self.rows.shape} and scores {self.scores.shape} differ")
        if self.counts.shape != (len(self.rows),):
            raise DataError(f"ranking: expected counts ({len(self.rows)},), got {self.counts.shape}")
        step = max(1, CELLS_AT_ONCE // max(1, self.rows.shape[1]))
        for start in range(0, len(self.rows), step):
            self._check(slice(start, start + step))

    def _check(self, part: slice) -> None:
        rows, scores, ranks = self.rows[part], self.scores[part], np.arange(self.rows.shape[1])
        if self._is_full_and_right(part):
            return
        valid = ranks < self.counts[part, None]
        in_order = np.sort(np.where(valid, rows, -1 - ranks), axis=1)  # what is not valid has negative numbers, once
        wrong = np.any((rows < 0) & valid, axis=1) | np.any(in_order[:, 1:] == in_order[:, :-1], axis=1)
        if wrong.any():
            raise DataError(f"ranking: query {part.start + int(np.argmax(wrong))} has a negative or repeated row")
        wrong = np.any(valid & np.isnan(scores), axis=1)
        wrong |= np.any(valid[:, 1:] & (scores[:, 1:] > scores[:, :-1]), axis=1)
        if wrong.any():
            raise DataError(f"ranking: scores of query {part.start + int(np.argmax(wrong))} are not descending")

    def _is_full_and_right(self, part: slice) -> bool:
        """Whether every query has all answers and nothing is wrong, which few operations tell."""
        rows, scores = self.rows[part], self.scores[part]
        if not rows.size or (self.counts[part] != rows.shape[1]).any() or rows.min() < 0:
            return False
        in_order = np.sort(rows, axis=1)
        is_descending = (scores[:, 1:] <= scores[:, :-1]).all()  # which nothing that is not a number can be
        return bool(is_descending and not np.isnan(scores[:, 0]).any() and (in_order[:, 1:] != in_order[:, :-1]).all())

    def answers(self, query: int) -> list[tuple[int, float]]:
        """Return the pairs (gallery row, score) of one query, best first."""
        count = int(self.counts[query])
        return [(int(r), float(s)) for r, s in zip(self.rows[query, :count], self.scores[query, :count], strict=True)]
