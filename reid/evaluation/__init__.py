"""Evaluation: right answers (:mod:`.labels`), their ranks (:mod:`.ranks`) and metrics (:mod:`.metrics`).

:func:`evaluate` (:mod:`.run`) joins them; :mod:`.results` holds what it finds.  ``analysis`` explains scores, and
``reports`` writes them.
"""

from reid.evaluation.analysis.breakdown import CameraBias, PairTable, camera_bias, pair_table
from reid.evaluation.analysis.details import Details, details_of
from reid.evaluation.analysis.intervals import Interval, PairedDifference, metric_intervals, paired_difference
from reid.evaluation.analysis.match_rates import ScoreHistograms, score_histograms
from reid.evaluation.analysis.open_set import BestScores, best_scores, identification_rates
from reid.evaluation.labels import Labels, market_labels
from reid.evaluation.metrics import (
    MetricOptions,
    Metrics,
    NoMatchError,
    market_metrics,
    score_metrics,
    vector_metrics,
)
from reid.evaluation.reports.html_page import write_page
from reid.evaluation.reports.report_json import report_json, write_reports
from reid.evaluation.reports.report_text import report_table
from reid.evaluation.results import Report, Result, mean_report
from reid.evaluation.run import evaluate
from reid.evaluation.trial_scores import Reranking

__all__ = [
    "BestScores",
    "CameraBias",
    "Details",
    "Interval",
    "Labels",
    "MetricOptions",
    "Metrics",
    "NoMatchError",
    "PairTable",
    "PairedDifference",
    "Report",
    "Reranking",
    "Result",
    "ScoreHistograms",
    "best_scores",
    "camera_bias",
    "details_of",
    "evaluate",
    "identification_rates",
    "market_labels",
    "market_metrics",
    "mean_report",
    "metric_intervals",
    "pair_table",
    "paired_difference",
    "report_json",
    "report_table",
    "score_histograms",
    "score_metrics",
    "vector_metrics",
    "write_page",
    "write_reports",
]
