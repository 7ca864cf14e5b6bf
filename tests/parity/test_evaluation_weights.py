"""Published weights on real vehicles give the figures measured with other code.

The tests run where the published weights lie beside the checkout, and are skipped with a reason elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reid.data.manifest import read_manifest
from reid.evaluation import evaluate
from reid.models.checkpoint import load_checkpoint
from reid.records import Embeddings, Sample, Split
from reid.retrieval.embed import embed
from reid.retrieval.gallery import Gallery

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
MANIFEST = SHARED / "data" / "vehicles" / "manifest.csv"

pytestmark = pytest.mark.skipif(
    not MANIFEST.is_file(), reason="no shared folder with the real vehicles beside the checkout"
)


@pytest.fixture(scope="module")
def samples() -> tuple[Sample, ...]:
    return tuple(sample for sample in read_manifest(MANIFEST) if sample.split is not Split.TRAIN)


@pytest.fixture(scope="module", params=[("msmt17", 71.7, 81.8), ("market1501", 55.0, 66.5)], ids=lambda p: p[0])
def embedded(request, samples) -> tuple[Embeddings, float, float]:
    name, rank1, mean_precision = request.param
    weights = SHARED / "weights" / f"osnet_x0_25_{name}.pth"
    return embed(load_checkpoint(weights, "osnet_x0_25"), samples), rank1, mean_precision


def test_reference_figures(embedded):
    embeddings, rank1, mean_precision = embedded
    (result,) = evaluate(embeddings).results
    assert result.direction == "all"
    assert (result.metrics.queries, result.metrics.gallery, result.metrics.queries_without_match) == (60, 60, 0)
    assert 100 * result.metrics.rank(1) == pytest.approx(rank1, abs=0.05)
    assert 100 * result.metrics.mAP == pytest.approx(mean_precision, abs=0.05)


def test_the_gallery_answers_with_the_same_rank_one(embedded):
    """Search and evaluation are two ways to the same numbers."""
    embeddings, rank1, _ = embedded
    queries, gallery = (embeddings.select(_rows(embeddings, split)) for split in (Split.QUERY, Split.GALLERY))
    built = Gallery.build(gallery)
    ranking = built.search(queries.vectors, 1, fingerprint=embeddings.fingerprint)
    right = [
        built.samples[ranking.answers(q)[0][0]].identity == sample.identity for q, sample in enumerate(queries.samples)
    ]
    assert 100 * sum(right) / len(right) == pytest.approx(rank1, abs=0.05)


def _rows(embeddings: Embeddings, split: Split) -> np.ndarray:
    return np.array([sample.split is split for sample in embeddings.samples])
