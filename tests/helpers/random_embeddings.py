"""Random embeddings for tests of galleries."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from reid.records import Embeddings, FloatArray, Modality, Ranking, Sample, Split


def random_rows(random: np.random.Generator, rows: int, dimension: int) -> FloatArray:
    """Return unit vectors (rows, dimension)."""
    vectors = random.standard_normal((rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def tied_rows(random: np.random.Generator, rows: int) -> FloatArray:
    """Return unit vectors (rows, 16) with exact inner products and 17 different scores, so that many are equal."""
    return random.choice(np.float32([-0.25, 0.25]), size=(rows, 16))


def embeddings_of(vectors: FloatArray, identities: int = 7) -> Embeddings:
    """Return the vectors as embeddings of samples whose fields all vary."""
    samples = tuple(
        Sample(
            Path("crops") / f"{i}.jpg",
            f"id{i % identities}",
            f"c{i % 3}",
            Modality.INFRARED if i % 2 else Modality.VISIBLE,
            "vehicle",
            Split.QUERY if i % 5 == 0 else Split.GALLERY,
            datetime(2024, 5, 1, 12, i % 60, tzinfo=UTC if i % 4 else None) if i % 3 else None,
        )
        for i in range(len(vectors))
    )
    return Embeddings(samples, vectors, "f00d")


def assert_same_ranking(ranking: Ranking, expected: Ranking) -> None:
    """Compare two rankings exactly."""
    np.testing.assert_array_equal(ranking.rows, expected.rows)
    np.testing.assert_array_equal(ranking.scores, expected.scores)
    np.testing.assert_array_equal(ranking.counts, expected.counts)
