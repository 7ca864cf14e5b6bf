"""Which crops of the gallery an attack goes to or from, for each query."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from reid.errors import ConfigError, unknown_name
from reid.records import Embeddings, FloatArray, Sample


def aim_vectors(method: str, queries: Embeddings, gallery: Embeddings, *, target: str = "", seed: int = 0) -> Tensor:
    """Compute the mean vector of the crops that each query is pushed away from, or pulled to.

    "push" takes the gallery crops of the query's identity; where there are none, or it has no identity, the most
    similar other crop.  "pull" takes the crops of ``target``, or of an identity drawn by chance for each query; where
    the gallery has no identities, a crop drawn by chance.

    Args:
        method: "push" or "pull".
        queries: The clean queries.
        gallery: The gallery, of the same network.
        target: The identity that all queries are pulled to; "" draws one for each.
        seed: Decides the draws, with the path of the query.

    Returns:
        (Q, D) float32.

    Raises:
        ConfigError: The gallery has no crop of ``target``, or nothing that a query can be pulled to.

    Example:
        >>> from pathlib import Path
        >>> rows = [Sample(Path(f"{name}.jpg"), name) for name in ("anna", "ben")]
        >>> gallery = Embeddings(tuple(rows), np.eye(2, dtype=np.float32), "f00d")
        >>> query = Embeddings((Sample(Path("q.jpg"), "anna"),), np.float32([[0.6, 0.8]]), "f00d")
        >>> aim_vectors("push", query, gallery).tolist(), aim_vectors("pull", query, gallery).tolist()
        ([[1.0, 0.0]], [[0.0, 1.0]])
    """
    rows_of = defaultdict[str, list[int]](list)
    for row, sample in enumerate(gallery.samples):
        if sample.identity:
            rows_of[sample.identity].append(row)
    if target and target not in rows_of:
        raise ConfigError(
            f"--target: the gallery has no such crops: {unknown_name('identity', target, sorted(rows_of))}"
        )
    found = []
    for sample, vector in zip(queries.samples, queries.vectors, strict=True):
        if method == "push":
            rows = _own_rows(sample, rows_of, gallery.samples) or [_nearest_row(sample, vector, gallery)]
        else:
            rows = rows_of[target] if target else _drawn_rows(sample, rows_of, gallery.samples, seed)
        found.append(gallery.vectors[rows].mean(0))
    return torch.from_numpy(np.stack(found))


def _own_rows(sample: Sample, rows_of: dict[str, list[int]], gallery: Sequence[Sample]) -> list[int]:
    return [row for row in rows_of.get(sample.identity, []) if gallery[row].path != sample.path]


def _nearest_row(sample: Sample, vector: FloatArray, gallery: Embeddings) -> int:
    scores = gallery.vectors @ vector
    scores[[row for row, one in enumerate(gallery.samples) if one.path == sample.path]] = -np.inf
    return int(scores.argmax())


def _drawn_rows(sample: Sample, rows_of: dict[str, list[int]], gallery: Sequence[Sample], seed: int) -> list[int]:
    random = np.random.default_rng([seed, zlib.crc32(str(sample.path).encode("utf-8", "surrogateescape"))])
    others = sorted(name for name in rows_of if name != sample.identity)
    if others:
        return rows_of[others[int(random.integers(len(others)))]]
    rows = [row for row, one in enumerate(gallery) if not one.identity and one.path != sample.path]
    if not rows:
        raise ConfigError(
            f"attack: the gallery shows nobody else whom {sample.path} could be pulled to; add crops to it"
        )
    return [rows[int(random.integers(len(rows)))]]
