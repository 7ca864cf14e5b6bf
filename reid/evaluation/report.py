"""A report as a table of 80 columns for people and as JSON for machines.

Tables show percent with one decimal; JSON holds fractions in 0..1.  Nothing is computed here.
"""

from __future__ import annotations

import contextlib
import json
import os
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reid.errors import DataError
from reid.evaluation.protocols import Report, Result

WIDTH = 80
_ROW = "{:<9.9} {:<18}{:>7}{:>7}{:>8}{:>7}{:>7}{:>8}{:>8}"
_HEADINGS = ("domain", "direction", "rank-1", "rank-5", "rank-10", "mAP", "mINP", "queries", "gallery")


def report_table(report: Report) -> str:
    """Lines of at most 80 columns: one a result, then what was evaluated and how, then the notes."""
    lines = [_ROW.format(*_HEADINGS), "-" * WIDTH]
    lines += [_line(result) for result in report.results]
    lines += ["-" * WIDTH, *_stamp(report)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _line(result: Result) -> str:
    metrics = result.metrics
    values = (metrics.rank(1), metrics.rank(5), metrics.rank(10), metrics.mAP, metrics.mINP)
    percents = (f"{100 * value:.1f}" for value in values)
    return _ROW.format(result.domain, result.direction, *percents, metrics.queries, metrics.gallery)


def _stamp(report: Report) -> list[str]:
    """What a reader must know before comparing the numbers with others."""
    lines = [
        f"percent; protocol {report.protocol}, rule {report.rule}, ties {report.ties}",
        f"fingerprint {report.fingerprint}",
    ]
    for result in report.results:
        counts = f"{result.query_identities} identities asked, {result.gallery_identities} in the gallery"
        missing = f"{len(result.unmatched)} queries without a match (in no mean)"
        lines.append(f"{result.domain} {result.direction}: {counts}; {missing}")
    lines += [f"not scored: {note}" for note in report.notes]
    return [piece for line in lines for piece in textwrap.wrap(line, WIDTH, subsequent_indent="  ")]


def report_json(*reports: Report) -> dict[str, Any]:
    """``{"results": [...], "notes": [...]}``; every score a fraction, ``cmc`` the first 50 ranks."""
    return {
        "results": [_entry(report, result) for report in reports for result in report.results],
        "notes": [f"{report.protocol}: {note}" for report in reports for note in report.notes],
    }


def _entry(report: Report, result: Result) -> dict[str, Any]:
    metrics = result.metrics
    return {
        "protocol": report.protocol,
        "domain": result.domain,
        "direction": result.direction,
        "mAP": metrics.mAP,
        "mINP": metrics.mINP,
        "rank1": metrics.rank(1),
        "rank5": metrics.rank(5),
        "rank10": metrics.rank(10),
        "cmc": [float(value) for value in metrics.cmc],
        "queries": metrics.queries,
        "queries_without_match": metrics.queries_without_match,
        "unmatched_queries": [str(sample.path) for sample in result.unmatched],
        "gallery": metrics.gallery,
        "query_identities": result.query_identities,
        "gallery_identities": result.gallery_identities,
        "rule": report.rule,
        "ties": report.ties,
        "fingerprint": report.fingerprint,
    }


def write_reports(reports: Iterable[Report], path: Path) -> None:
    """Write the JSON of all ``reports`` to ``path``: the whole file appears or the old one stays."""
    text = json.dumps(report_json(*reports), indent=2) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise DataError(f"{path}: the report cannot be written there: {error.strerror}") from error
