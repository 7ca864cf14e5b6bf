"""How good an answer is: rules, metrics, protocols and reports."""

from reid.evaluation.metrics import Metrics, NoMatchError, market_metrics
from reid.evaluation.protocols import Report, Result, evaluate
from reid.evaluation.report import report_json, report_table, write_reports

__all__ = [
    "Metrics",
    "NoMatchError",
    "Report",
    "Result",
    "evaluate",
    "market_metrics",
    "report_json",
    "report_table",
    "write_reports",
]
