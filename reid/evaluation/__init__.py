"""How good an answer is: rules, metrics, protocols and reports."""

from reid.evaluation.analysis.breakdown import CameraBias, PairTable, camera_bias, pair_table
from reid.evaluation.analysis.details import Details, details_of
from reid.evaluation.analysis.intervals import Interval, PairedDifference, metric_intervals, paired_difference
from reid.evaluation.analysis.open_set import (
    BestScores,
    ScoreHistograms,
    best_scores,
    identification_rates,
    score_histograms,
)
from reid.evaluation.metrics import Metrics, NoMatchError, market_metrics, score_metrics
from reid.evaluation.reports.html_page import write_page
from reid.evaluation.reports.report import report_json, report_table, write_reports
from reid.evaluation.run import Report, Result, evaluate, mean_report
from reid.evaluation.trials import Reranking

__all__ = [
    "BestScores",
    "CameraBias",
    "Details",
    "Interval",
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
    "market_metrics",
    "mean_report",
    "metric_intervals",
    "pair_table",
    "paired_difference",
    "report_json",
    "report_table",
    "score_histograms",
    "score_metrics",
    "write_page",
    "write_reports",
]
