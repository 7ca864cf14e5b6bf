"""Projections of vectors to a plane, for the map: principal components, and UMAP as an extra."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np

from reid.errors import ConfigError, DataError, unknown_name
from reid.records import FloatArray

SEED = 0
NEIGHBOURS = 15  # of a point, which UMAP keeps together
FEWEST = 10  # points, of which UMAP makes a map
KEPT = 8  # maps of UMAP that are remembered: colours change more often than points
MISSING = 'the projection umap needs umap-learn, which is not installed: pip install "reid-multidomain[umap]"'

_known: OrderedDict[str, FloatArray] = OrderedDict()
_lock = Lock()


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
    key = hashlib.sha256(vectors.tobytes()).hexdigest() + str(vectors.shape)
    with _lock:  # numba compiles once, and one map at a time keeps searches quick
        if key not in _known:
            reducer = _umap().UMAP(
                n_components=2, n_neighbors=min(NEIGHBOURS, len(vectors) - 1), metric="cosine", random_state=SEED
            )
            _known[key] = np.asarray(reducer.fit_transform(vectors), np.float32)
        _known.move_to_end(key)
        while len(_known) > KEPT:
            _known.popitem(last=False)
        return _known[key]


def _umap() -> Any:
    try:
        import umap
    except ImportError as error:
        raise ConfigError(MISSING) from error
    return umap


PROJECTIONS: dict[str, Callable[[FloatArray], FloatArray]] = {"pca": principal_components, "umap": neighbour_map}
