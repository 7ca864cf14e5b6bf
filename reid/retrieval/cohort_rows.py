"""The rows of a gallery that a vector is compared with: the cohort of each camera.

A cohort is chosen so that neither the order of rows nor the other rows decide whether a row belongs to it, except for
how many smaller keys there are.  So it is the same for a gallery that grew and for one that was built at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.records import FloatArray, IntArray, Sample
from reid.retrieval.row_table import RowTable

HashArray = npt.NDArray[np.uint64]
LabelArray = npt.NDArray[np.str_]
BoolArray = npt.NDArray[np.bool_]

COHORT_LIMIT = 2048  # crops of a camera, the most that measuring compares a vector with
PATH_PARTS = 2  # the folder and the name of a file tell crops apart and are the same on every machine


@dataclass(frozen=True, eq=False)
class PathHashes:
    """What :class:`CohortRows` computes from paths; kept, because it takes most of the time of a small change.

    Attributes:
        row_ids: (N,) int64, the ids of the rows, ascending.
        keys: (N,) uint64.
        images: (N,) uint64.
    """

    row_ids: IntArray
    keys: HashArray
    images: HashArray


@dataclass(frozen=True, eq=False)
class CohortRows:
    """Vectors with what decides about their cohort.

    Args:
        vectors: (N, D) float32 of unit length.
        cameras: (N,) strings, "<category>/<camera>"; "<category>/" where the camera is unknown.
        keys: (N,) uint64; of a large camera, the rows with the smallest keys are its cohort.
        images: (N,) uint64; rows of equal numbers show the same image and are not compared.

    Raises:
        DataError: The lengths differ.
    """

    vectors: FloatArray
    cameras: LabelArray
    keys: HashArray
    images: HashArray

    def __post_init__(self) -> None:
        lengths = {len(self.vectors), len(self.cameras), len(self.keys), len(self.images)}
        if self.vectors.ndim != 2 or len(lengths) != 1:
            raise DataError(
                f"cohort: expected vectors (N, D) and a camera, a key and an image for each, got"
                f" {self.vectors.shape}, {len(self.cameras)}, {len(self.keys)} and {len(self.images)}"
            )

    @classmethod
    def of_samples(
        cls, samples: Sequence[Sample], vectors: FloatArray, files: Mapping[Path, object] | None = None
    ) -> CohortRows:
        """Return the rows of samples; neither the order nor the other rows change the keys.

        Args:
            samples: The samples (N,).
            vectors: Their vectors (N, D) float32 of unit length.
            files: What is equal for paths of one file, as :func:`reid.files.file_keys` returns it; None: the path.
        """
        cameras = np.array([cohort_camera(sample) for sample in samples], dtype=np.str_)
        keys = [_hash("/".join(sample.path.parts[-PATH_PARTS:])) for sample in samples]
        images = [_hash(str(sample.path if files is None else files[sample.path])) for sample in samples]
        return cls(vectors, cameras, np.array(keys, np.uint64), np.array(images, np.uint64))

    @classmethod
    def of_table(cls, table: RowTable, vectors: FloatArray, kept: PathHashes | None = None) -> CohortRows:
        """Return what :meth:`of_samples` returns for the rows of a gallery, without making their samples.

        ``kept`` may hold the hashes of many of the rows.
        """
        (categories, names), (cameras, words) = table.codes("category"), table.codes("camera")
        labels = np.array([f"{name}/{word}" for name in names for word in words] or [""], dtype=np.str_)
        keys, images = np.empty(len(table), np.uint64), np.empty(len(table), np.uint64)
        missing = np.ones(len(table), np.bool_)
        if kept is not None and len(kept.row_ids):
            places = np.minimum(np.searchsorted(kept.row_ids, table.row_ids), len(kept.row_ids) - 1)
            missing = kept.row_ids[places] != table.row_ids
            keys[~missing], images[~missing] = kept.keys[places[~missing]], kept.images[places[~missing]]
        paths = table.column("path").filter(missing).to_pylist()
        keys[missing] = np.array([_hash(_end_of(path)) for path in paths], np.uint64)
        images[missing] = np.array([_hash(path) for path in paths], np.uint64)
        return cls(vectors, labels[categories.astype(np.int64) * len(words) + cameras], keys, images)

    @classmethod
    def of_cameras(cls, cameras: Sequence[str] | npt.NDArray[np.generic], vectors: FloatArray) -> CohortRows:
        """Return the rows of vectors of one category, each of another image; "" is an unknown camera.

        Example:
            >>> CohortRows.of_cameras(["door", ""], np.eye(2, dtype=np.float32)).cameras.tolist()
            ['/door', '/']
        """
        names = np.array([f"/{camera}" for camera in np.asarray(cameras).tolist()], dtype=np.str_)
        numbers = np.arange(len(names), dtype=np.uint64)
        return cls(vectors, names, np.array([_hash(str(i)) for i in numbers], np.uint64), numbers)

    @classmethod
    def joined(cls, *parts: CohortRows) -> CohortRows:
        """Return the rows of all parts, one part after the other."""
        fields = ("vectors", "cameras", "keys", "images")
        vectors, cameras, keys, images = (np.concatenate([getattr(part, name) for part in parts]) for name in fields)
        return cls(vectors, cameras, keys, images)

    def select(self, rows: IntArray | BoolArray) -> CohortRows:
        """Return some of the rows, by position or by a mask."""
        return CohortRows(self.vectors[rows], self.cameras[rows], self.keys[rows], self.images[rows])


def _end_of(path: str) -> str:
    """Return the last parts of a path, as ``Path.parts`` does in several times the time."""
    parts = path.rsplit("/", PATH_PARTS)
    if len(parts) > PATH_PARTS and "" not in parts[1:] and "." not in parts[1:] and os.sep == "/":
        return "/".join(parts[1:])
    return "/".join(Path(path).parts[-PATH_PARTS:])


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def cohort_camera(sample: Sample) -> str:
    """Return the name of the camera of a sample, with the category of what it shows.

    Example:
        >>> cohort_camera(Sample(Path("1.jpg"), camera="door"))
        'person/door'
    """
    return f"{sample.category}/{sample.camera}"


def inner_products(queries: FloatArray, vectors: FloatArray) -> FloatArray:
    """Compute the inner products (Q, N) of queries (Q, D) with vectors (N, D).

    A single query is limited by reading the vectors, which ``einsum`` does at twice the speed of a matrix product.
    """
    if len(queries) == 1:
        single: FloatArray = np.einsum("nd,d->n", vectors, queries[0])[None]
        return single
    products: FloatArray = queries @ vectors.T
    return products


def pool_of(camera: str) -> str:
    """Return the name of all cameras of the category of a camera.

    Example:
        >>> pool_of("person/door")
        'person/'
    """
    return camera.split("/", 1)[0] + "/"


@dataclass(frozen=True, eq=False)
class Cohort:
    """The rows of a gallery that vectors are compared with.

    Args:
        members: For each camera and each pool its positions (M,) int64 in the gallery, ascending.  A pool joins its
            cameras.
        parts: For each pool its cameras with copies of their rows; the rows of unknown cameras have the name of the
            pool.
    """

    members: Mapping[str, IntArray]
    parts: Mapping[str, Sequence[tuple[str, CohortRows]]]

    @cached_property
    def images(self) -> dict[str, HashArray]:
        """The images of each part, sorted, by its name."""
        return {name: np.sort(part.images) for parts in self.parts.values() for name, part in parts}


def cohort_of(rows: CohortRows, limit: int = COHORT_LIMIT) -> Cohort:
    """Choose the cohort of every camera: all its rows, or those with the smallest keys where it has more than a limit.

    Args:
        rows: The rows of a gallery.
        limit: The most crops of a camera; rows whose keys are equal to the last one are taken as well.

    Returns:
        The cohort of each camera and of each category.
    """
    order = np.argsort(rows.cameras, kind="stable")
    names, starts = np.unique(rows.cameras[order], return_index=True)
    members: dict[str, IntArray] = {}
    pools: dict[str, list[IntArray]] = {}
    parts: dict[str, list[tuple[str, CohortRows]]] = {}
    for name, found in zip(names.tolist(), np.split(order, starts[1:]), strict=True):
        if len(found) > limit:
            bound = np.partition(rows.keys[found], limit - 1)[limit - 1]
            found = found[rows.keys[found] <= bound]
        chosen, pool = np.sort(found).astype(np.int64), pool_of(name)
        pools.setdefault(pool, []).append(chosen)
        parts.setdefault(pool, []).append((name, rows.select(chosen)))
        members[name] = chosen
    members |= {pool: np.sort(np.concatenate(found)) for pool, found in pools.items()}
    return Cohort(dict(sorted(members.items())), parts)
