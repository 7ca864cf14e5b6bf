"""Projections of vectors to a plane, for the map: principal components, and UMAP as an extra."""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from importlib.util import find_spec
from threading import Lock, Thread
from typing import Any

import numpy as np

from reid.errors import ConfigError, DataError, unknown_name
from reid.records import FloatArray

SEED = 0
NEIGHBOURS = 15  # of a point, which UMAP keeps together
FEWEST = 10  # points, of which UMAP makes a map
MOST_RUNNING = 4  # maps that wait or are computed
KEPT = 8  # maps of UMAP that are remembered: colours change more often than points
MISSING = 'the projection umap needs umap-learn, which is not installed: pip install "reid-multidomain[umap]"'

UMAP = "umap"

_known: OrderedDict[str, FloatArray] = OrderedDict()
_running: dict[str, Future[FloatArray]] = {}
_lock, _computing = Lock(), Lock()


def project(vectors: FloatArray, name: str) -> FloatArray:
    """Return vectors (N, D) as points (N, 2) of a plane.

    Args:
        vectors: The vectors.
        name: A key of ``PROJECTIONS``.

    Raises:
        ConfigError: The projection is unknown, or its package is not installed.
        DataError: There are too few vectors for it.
    """
    if name not in PROJECTIONS:
        raise ConfigError(unknown_name("projection", name, PROJECTIONS))
    return PROJECTIONS[name](vectors)


def principal_components(vectors: FloatArray) -> FloatArray:
    """Return the first two principal components (N, 2) of vectors (N, D); each points to its largest loading.

    Example:
        >>> principal_components(np.float32([[0, 0], [2, 0], [4, 0]]))[:, 0].tolist()
        [-2.0, 0.0, 2.0]
    """
    centered = vectors - vectors.mean(axis=0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    axes = axes[:2]
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    points = centered @ (axes * signs[:, None]).T
    if points.shape[1] < 2:
        points = np.concatenate([points, np.zeros((len(points), 2 - points.shape[1]), points.dtype)], axis=1)
    found: FloatArray = points.astype(np.float32)
    return found


def neighbour_map(vectors: FloatArray) -> FloatArray:
    """Return points (N, 2) that keep the nearest neighbours together, by cosine (UMAP, McInnes et al. 2018).

    The same vectors give the same points.

    Raises:
        ConfigError: The package umap-learn is not installed.
        DataError: There are fewer than ``FEWEST`` vectors.
    """
    if len(vectors) < FEWEST:
        raise DataError(f"UMAP needs {FEWEST} crops at least, and there are {len(vectors)}; take principal components")
    key = _key_of(vectors)
    with _computing:  # numba compiles once, and one map at a time keeps searches quick
        known = _known.get(key)
        if known is None:
            reducer = _umap().UMAP(
                n_components=2, n_neighbors=min(NEIGHBOURS, len(vectors) - 1), metric="cosine", random_state=SEED,
                n_jobs=1,
            )  # fmt: skip
            known = np.asarray(reducer.fit_transform(vectors), np.float32)
        _remember(key, known)
    return known


class NotDrawnYetError(Exception):
    """Points are still computed in the background; ask for them again in a moment."""


def project_later(vectors: FloatArray, name: str) -> FloatArray:
    """Return points as :func:`project` does, if nobody has to wait for them.

    UMAP compiles itself for half a minute or more at its first use, for which no visitor can wait, so its points are
    computed in the background.

    Raises:
        NotDrawnYetError: They are computed now.
        ConfigError: As :func:`project`, also for what has failed in the background.
        DataError: As :func:`project`, or too many maps wait.
    """
    if name != UMAP or len(vectors) < FEWEST:
        return project(vectors, name)
    _umap_is_there()
    key = _key_of(vectors)
    with _lock:
        if key in _known:
            _known.move_to_end(key)
            return _known[key]
        found = _running.pop(key, None)
        for other in [other for other, one in _running.items() if one.done()]:
            del _running[other]  # nobody has asked for it again
        if found is None or not found.done():
            if found is None and len(_running) >= MOST_RUNNING:
                raise DataError("many maps are computed at the moment; try it again in a minute")
            _running[key] = found or _begin(vectors)
            raise NotDrawnYetError
    return found.result()


def _begin(vectors: FloatArray) -> Future[FloatArray]:
    """Compute a map in a thread that does not keep the program from ending."""
    points: Future[FloatArray] = Future()

    def compute() -> None:
        try:
            points.set_result(neighbour_map(vectors))
        except Exception as error:  # noqa: BLE001 - whoever asks for the points gets it
            points.set_exception(error)

    Thread(target=compute, name="map", daemon=True).start()
    return points


def _key_of(vectors: FloatArray) -> str:
    return hashlib.sha256(vectors.tobytes()).hexdigest() + str(vectors.shape)


def _remember(key: str, points: FloatArray) -> None:
    with _lock:
        _known[key] = points
        _known.move_to_end(key)
        while len(_known) > KEPT:
            _known.popitem(last=False)


def _umap_is_there() -> None:
    is_there = sys.modules[UMAP] is not None if UMAP in sys.modules else find_spec(UMAP) is not None
    if not is_there:
        raise ConfigError(MISSING)


def _umap() -> Any:
    try:
        import umap
    except ImportError as error:
        raise ConfigError(MISSING) from error
    return umap


PROJECTIONS: dict[str, Callable[[FloatArray], FloatArray]] = {"pca": principal_components, UMAP: neighbour_map}
