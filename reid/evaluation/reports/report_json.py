"""A report as JSON for programs; every score is a fraction in 0..1."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from reid.evaluation.metrics import Metrics
from reid.evaluation.reports.text_file import write_text
from reid.evaluation.results import Report, Result
from reid.structured_text import read_json


def report_json(*reports: Report) -> dict[str, Any]:
    """Turn reports into plain values for JSON.

    Returns:
        ``{"results": [...], "notes": [...]}``; the keys are those of version 0.1.0, where
        ``domain`` means the category.  Every score is a fraction; ``cmc`` has the first 50 ranks.
    """
    return {
        "results": [_entry(report, result) for report in reports for result in report.results],
        "notes": [f"{report.protocol}: {note}" for report in reports for note in report.notes],
    }


def _entry(report: Report, result: Result) -> dict[str, Any]:
    metrics = result.metrics
    return {
        "protocol": report.protocol,
        "variant": dict(report.variant),
        "domain": result.category,
        "direction": result.direction,
        **_scores(metrics),
        "r_precision": metrics.r_precision,
        "map_at_r": metrics.map_at_r,
        "cmc": [float(value) for value in metrics.cmc],
        "queries": metrics.queries,
        "queries_valid": metrics.queries - metrics.queries_without_match,
        "queries_without_match": metrics.queries_without_match,
        "unmatched_queries": [str(sample.path) for sample in result.unmatched],
        "gallery": metrics.gallery,
        "gallery_source": result.gallery_source,
        "pairs_left_out": result.left_out,
        "query_identities": result.query_identities,
        "gallery_identities": result.gallery_identities,
        "intervals": {name: [i.low, i.high] for name, i in result.intervals().items()},
        "per_query": _per_query(result),
        "trials": [{**_scores(one), "queries": one.queries, "gallery": one.gallery} for one in result.trials],
        "score_norm": result.score_norm,
        "score_norm_stamp": result.score_norm_stamp,
        "reranking": result.reranking,
        "corruption": result.corruption,
        "corruption_stamp": result.corruption_stamp,
        "deviations": result.deviations(),
        "identification": [
            {
                "false_alarm_rate": one.wished,
                "reached_false_alarm_rate": one.false_alarm_rate,
                "threshold": one.threshold,
                "rate": one.rate.value,
                "interval": [one.rate.low, one.rate.high],
                "known": one.known,
                "unmatched": one.unmatched,
            }
            for one in result.identification
        ],
        "rule": report.rule,
        "settings": dict(report.settings),
        "ties": report.ties,
        "fingerprint": report.fingerprint,
        "made": dict(report.provenance),
        "version": report.version,
    }


def _per_query(result: Result) -> dict[str, list[Any]]:
    """Return a column for each value of the queries: image (below the folder of all), identity and scores.

    Scores of unmatched queries are null.
    """
    if not result.query_samples:
        return {}
    folder = os.path.commonpath([sample.path.parent for sample in result.query_samples])
    metrics = result.metrics
    return {
        "picture": [Path(os.path.relpath(sample.path, folder)).as_posix() for sample in result.query_samples],
        "identity": [sample.identity for sample in result.query_samples],
        "average_precision": [None if np.isnan(value) else float(value) for value in metrics.average_precision],
        "first_match": [int(rank) or None for rank in metrics.first_match],
    }


def _scores(metrics: Metrics) -> dict[str, float]:
    ranks = {f"rank{k}": metrics.rank(k) for k in (1, 5, 10)}
    return {"mAP": metrics.mAP, "mINP": metrics.mINP, **ranks}


def write_reports(reports: Iterable[Report], path: Path) -> None:
    """Write the JSON of all ``reports``, with a checksum, to ``path``: the whole file appears, or the old one stays."""
    table = report_json(*reports)
    text = json.dumps({**table, "check": _checksum(json.dumps(table))}, indent=2) + "\n"
    write_text(text, path, "report")


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read the results that :func:`write_reports` wrote, or version 0.1.0, which wrote no checksum.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, was changed, or is something else.
    """
    table = read_json(path)
    try:
        check = table.pop("check", None)
        if check not in (None, _checksum(json.dumps(table))):
            raise ValueError("the results are not what was written")
        return list(table["results"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(repr(error)) from error


def _checksum(text: str) -> str:
    """Return SHA-256 in hex of JSON, whatever its layout and however it writes whole numbers."""
    return hashlib.sha256(json.dumps(json.loads(text, parse_int=float), sort_keys=True).encode()).hexdigest()
