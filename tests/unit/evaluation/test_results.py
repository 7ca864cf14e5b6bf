"""Reports as tables of pandas: the numbers are those of the metrics, and unmatched queries have no scores."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd
import pytest

from helpers.angles import embeddings, rows
from reid.evaluation import Report, Reranking, evaluate
from reid.records import Modality, Split

Q, G = Split.QUERY, Split.GALLERY


@pytest.fixture
def report() -> Report:
    """One query finds its right answer at rank 2, one has none; both directions are re-ranked too."""
    pairs = rows(Q, ("a", "1", 0), ("nobody", "1", 40))
    pairs += rows(G, ("b", "2", 5), ("a", "2", 10), ("c", "2", 90))
    pairs += rows(G, ("a", "3", 20), ("c", "3", 60), ("d", "3", 80), modality=Modality.INFRARED)
    return evaluate(embeddings(pairs), protocol="p", reranking=Reranking((2, 1, 0.5)))


def test_a_row_for_each_result(report: Report) -> None:
    frame = report.to_frame()
    assert list(frame.columns[:9]) == [
        "category", "direction", "score_norm", "reranking", "rank1", "rank5", "rank10", "mAP", "mINP"
    ]  # fmt: skip
    assert list(frame.index) == list(range(4))
    for (_, row), result in zip(frame.iterrows(), report.results, strict=True):
        metrics = result.metrics
        assert (row.category, row.direction, row.reranking) == ("person", result.direction, result.reranking)
        assert (row.rank1, row.rank5, row.rank10) == (metrics.rank(1), metrics.rank(5), metrics.rank(10))
        assert (row.mAP, row.mINP) == (metrics.mAP, metrics.mINP)
        assert (row.queries, row.unmatched_queries, row.gallery) == (2, 1, 3)
        assert (row.query_identities, row.gallery_identities) == (2, 3)
        assert (row.protocol, row.fingerprint) == ("p", "f00d")
    assert frame.mAP.dtype == float
    plain = frame[frame.reranking == ""].set_index("direction")
    assert plain.mAP["visible->visible"] == 0.5


def test_a_row_for_each_query_of_each_result(report: Report) -> None:
    frame = report.per_query_frame()
    assert list(frame.columns) == [
        "path", "identity", "camera", "modality", "category", "direction", "score_norm", "reranking",
        "average_precision", "inverse_negative_penalty", "first_rank", "rank1",
    ]  # fmt: skip
    assert len(frame) == 8
    visible = frame[(frame.direction == "visible->visible") & (frame.reranking == "")].set_index("identity")
    found = visible.loc["a"]
    assert (found.camera, found.modality, found.category) == ("1", "visible", "person")
    assert found.path.endswith("0.jpg")
    assert (found.average_precision, found.first_rank, found.rank1) == (0.5, 2, 0)
    unmatched = visible.loc["nobody", ["average_precision", "inverse_negative_penalty", "first_rank", "rank1"]]
    assert unmatched.isna().all()
    means = frame[frame.reranking == ""].groupby("direction").average_precision.mean()
    assert means.to_dict() == {r.direction: r.metrics.mAP for r in report.results if not r.reranking}
    assert frame.first_rank.dtype == pd.Int64Dtype()


def test_a_report_without_queries_has_an_empty_table() -> None:
    frame = Report("p", "f", ()).per_query_frame()
    assert len(frame) == 0
    assert "average_precision" in frame.columns


def test_reports_do_not_import_pandas() -> None:
    """Importing pandas takes time, so only the methods that make tables import it."""
    code = "import sys, reid.evaluation.results; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
