"""How well crops of different cameras find each other, without labels: the share of walks that return.

A walk goes from a crop to its most similar crop in another camera, from there to the most similar one in a third, and
back to the camera where it began.  It returns where it ends at the crop itself, or at one of its likes in its own
camera: those few crops that it has as mutual neighbours there before any training.  A single wrong step leads away, so
the share of returning walks falls where people are mixed up, and it does not saturate as the share of mutual nearest
neighbours does where a camera has several crops of a person.

Measured on crops that took no part in a training, it says without labels whether the training helped
(docs/adaptation.md, "When it declines").
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt

from reid.records import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]

LIKES = 3  # mutual neighbours in the own camera at which a walk may end
CAMERAS_OF_WALK = 3  # that a walk visits; 2 where there are no more
MOST_ROUTES = 240  # orders of cameras that are walked


@dataclass(frozen=True, eq=False)
class WalkPlan:
    """Where walks begin, which way they go and where they may end.

    Attributes:
        starts: (S,) int64, the crops at which walks begin.
        likes: (N, 3) int64, the mutual neighbours of each crop in its own camera, -1 for none.
        routes: (R, 3) int64, the cameras that walks visit, in their order; -1 for no third one.
    """

    starts: IntArray
    likes: IntArray
    routes: IntArray

    @classmethod
    def prepare(
        cls,
        vectors: FloatArray,
        cameras: IntArray,
        starts: IntArray,
        categories: IntArray | None = None,
        seed: int = 0,
    ) -> WalkPlan:
        """Plan walks on the embeddings of before a training.

        Args:
            vectors: (N, D) float32, unit rows, of the network before the training.
            cameras: (N,) int64, the camera of each crop.
            starts: (S,) int64, the crops at which walks begin.
            categories: (N,) int64, what each crop shows; walks stay among those of one.  None: all the same.
            seed: Decides which routes are taken where there are many.

        Example:
            >>> vectors = np.float32([[1, 0], [0.9, 0.435], [0, 1], [1, 0], [0, 1]])
            >>> plan = WalkPlan.prepare(vectors, np.array([0, 0, 0, 1, 1]), np.arange(5))
            >>> plan.routes.tolist()
            [[0, 1, -1], [1, 0, -1]]
        """
        categories = np.zeros(len(cameras), np.int64) if categories is None else categories
        routes = [
            route
            for category in np.unique(categories)
            for route in _routes(np.unique(cameras[categories == category]), seed)
        ]
        table = np.full((len(routes), CAMERAS_OF_WALK), -1, np.int64)
        for number, route in enumerate(routes):
            table[number, : len(route)] = route
        return cls(starts, _likes_of(vectors, cameras), table)

    def returning(self, vectors: FloatArray, cameras: IntArray) -> FloatArray:
        """Return the share (S,) of the walks of each start that return, 0..1; NaN where none begins in its camera.

        Args:
            vectors: (N, D) float32, unit rows, of the network that is judged.
            cameras: (N,) int64, the camera of each crop.

        Example:
            >>> vectors = np.float32([[1, 0], [0, 1], [0.9, 0.435], [0.3, 0.953]])
            >>> plan = WalkPlan.prepare(vectors, np.array([0, 0, 1, 1]), np.arange(4))
            >>> plan.returning(vectors, np.array([0, 0, 1, 1])).tolist()
            [1.0, 1.0, 1.0, 1.0]
        """
        nearest = {
            int(camera): _nearest_in(vectors, np.flatnonzero(cameras == camera)) for camera in np.unique(cameras)
        }
        returned, walked = np.zeros(len(self.starts)), np.zeros(len(self.starts))
        for route in self.routes.tolist():
            begin = np.flatnonzero(cameras[self.starts] == route[0])
            first = self.starts[begin]
            at = first
            for camera in (*(one for one in route[1:] if one >= 0), route[0]):
                at = nearest[camera][at]
            returned[begin] += (at == first) | (self.likes[first] == at[:, None]).any(axis=1)
            walked[begin] += 1
        with np.errstate(invalid="ignore"):
            shares: FloatArray = (returned / walked).astype(np.float32)
        return shares


def _routes(cameras: IntArray, seed: int) -> list[tuple[int, ...]]:
    """Return orders of cameras, all of them or so many that every camera begins some."""
    length = min(CAMERAS_OF_WALK, len(cameras))
    if length < 2:
        return []
    count = int(np.prod([len(cameras) - i for i in range(length)]))
    if count <= MOST_ROUTES:
        return list(permutations(cameras.tolist(), length))
    random = np.random.default_rng(seed)
    each = -(-MOST_ROUTES // len(cameras))
    found = set()
    for camera in cameras.tolist():
        others = cameras[cameras != camera]
        found |= {(camera, *random.choice(others, length - 1, replace=False).tolist()) for _ in range(each)}
    return sorted(found)


def _likes_of(vectors: FloatArray, cameras: IntArray) -> IntArray:
    """Return (N, 3) int64: those of the three nearest crops of the own camera that have a crop among theirs, or -1."""
    likes = np.full((len(vectors), LIKES), -1, np.int64)
    for camera in np.unique(cameras):
        rows = np.flatnonzero(cameras == camera)
        scores = vectors[rows] @ vectors[rows].T
        np.fill_diagonal(scores, -np.inf)
        near = np.argsort(-scores, axis=1, kind="stable")[:, : min(LIKES, len(rows) - 1)]
        mutual = (near[near] == np.arange(len(rows))[:, None, None]).any(axis=2)
        likes[rows, : near.shape[1]] = np.where(mutual, rows[near], -1)
    return likes


def _nearest_in(vectors: FloatArray, rows: IntArray) -> IntArray:
    """Return (N,) int64, the most similar of some crops for every crop."""
    found: IntArray = rows[(vectors @ vectors[rows].T).argmax(axis=1)]
    return found
