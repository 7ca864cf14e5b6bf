"""Published protocols from the authors' files to a report: each picture is read by the table and given an angle."""

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
    """The report of the data set in ``root`` if each picture that is not for training is at ``degrees``."""
    data = open_data(spec, root)
    kept = tuple(sample for sample in data.samples if sample.split is not Split.TRAIN)
    vectors = at([degrees(sample) for sample in kept])
    return evaluate(Embeddings(kept, vectors, "f00d"), protocol=data.name, scoring=data.scoring)


def only(report: Report) -> Metrics:
    (result,) = report.results
    return result.metrics


def says(report: Report, *stamps: str) -> None:
    """The line under the table names the protocol, its variant and its rule."""
    text = " ".join(report_table(report).split())
    for stamp in stamps:
        assert stamp in text
