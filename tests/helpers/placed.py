"""Score published protocols whose images have an angle each instead of an embedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from helpers.angles import at
from reid.data.protocols.data_sets import open_data
from reid.evaluation import Report, evaluate, report_table
from reid.evaluation.metrics import Metrics
from reid.records import Embeddings, Sample, Split

DATASETS = Path(__file__).parents[2] / "datasets"
Q, G = Split.QUERY, Split.GALLERY


def scored(spec: str, root: Path, degrees: Callable[[Sample], float]) -> Report:
    """Score the data set in ``root`` with each image that is not for training at ``degrees``."""
    data = open_data(spec, root)
    kept = tuple(sample for sample in data.samples if sample.split is not Split.TRAIN)
    vectors = at([degrees(sample) for sample in kept])
    return evaluate(Embeddings(kept, vectors, "f00d"), protocol=data.name, scoring=data.scoring)


def only(report: Report) -> Metrics:
    """Return the metrics of a report with a single result."""
    (result,) = report.results
    return result.metrics


def assert_stamped(report: Report, *stamps: str) -> None:
    """Assert that the lines under the table name the protocol, its variant and its rule."""
    text = " ".join(report_table(report).split())
    for stamp in stamps:
        assert stamp in text
