"""A report as a table of 80 columns for people and as JSON for machines.

Tables show percent with one decimal; JSON holds fractions in 0..1.  Nothing is computed here.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reid.errors import DataError
from reid.evaluation.metrics import Metrics
from reid.evaluation.run import Report, Result
from reid.files import write_whole

WIDTH = 80
_ROW = "{:<9.9} {:<18.18}{:>7}{:>7}{:>8}{:>7}{:>7}{:>8}{:>8}"
_HEADINGS = ("domain", "direction", "rank-1", "rank-5", "rank-10", "mAP", "mINP", "queries", "gallery")


def report_table(report: Report) -> str:
    """Lines of at most 80 columns: one a result, then what was evaluated and how, then the notes."""
    lines = [_ROW.format(*_HEADINGS), "-" * WIDTH]
    for result in report.results:
        lines += _lines(result)
    if any("±" in line for line in lines):
        lines.append("±: half the width of the 95 % interval, from resampled identities")
    lines += ["-" * WIDTH, *stamp_lines(report)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _lines(result: Result) -> list[str]:
    """The row of a result, and below it half the width of the 95 % interval of each score that has one."""
    metrics = result.metrics
    values = (metrics.rank(1), metrics.rank(5), metrics.rank(10), metrics.mAP, metrics.mINP)
    percents = (f"{100 * value:.1f}" for value in values)
    direction = "  re-ranked" if result.reranking else result.direction
    category = "" if result.reranking else result.category
    lines = [_ROW.format(category, direction, *percents, metrics.queries, metrics.gallery)]
    if intervals := result.intervals():
        half = {name: f"±{50 * (interval.high - interval.low):.1f}" for name, interval in intervals.items()}
        shown = [half.get(name, "") for name in ("rank1", "rank5", "rank10", "mAP", "mINP")]
        lines.append(_ROW.format("", "", *shown, "", ""))
    return lines


def stamp_lines(report: Report) -> list[str]:
    """What a reader must know before comparing the numbers with others."""
    variant = "".join(f", {name} {choice}" for name, choice in report.variant.items())
    made = "".join(f"; {name} {_word(value)}" for name, value in report.provenance.items())
    lines = [
        f"percent; protocol {report.protocol}{variant}, rule {report.rule}, ties {report.ties}",
        f"fingerprint {report.fingerprint}{made}; version {report.version}",
        f"gallery: {' | '.join(dict.fromkeys(result.gallery_source for result in report.results))}",
        *dict.fromkeys(f"re-ranked: {result.reranking}" for result in report.results if result.reranking),
    ]
    said: dict[tuple[str, str], list[str]] = {}  # (domain, what is said of it): the directions it is true of
    plain = [result for result in report.results if not result.reranking]
    for result in plain:
        for text in _said(report, result):
            said.setdefault((result.category, text), []).append(result.direction)
    for (category, text), directions in said.items():
        everywhere = len(directions) == sum(result.category == category for result in plain)
        lines.append(f"{category}{'' if everywhere else ' ' + ', '.join(directions)}: {text}")
    for category in dict.fromkeys(result.category for result in plain):
        lines.append(f"{category}: {_left_out([result for result in plain if result.category == category])}")
    lines += [f"not scored: {note}" for note in report.notes]
    return [piece for line in lines for piece in textwrap.wrap(line, WIDTH, subsequent_indent="  ")]


def _said(report: Report, result: Result) -> list[str]:
    counts = f"{result.query_identities} identities asked, {result.gallery_identities} in the gallery"
    fate = "counted as 0" if report.settings.get("unmatched") == "zero" else "in no mean"
    lines = [f"{counts}; {len(result.unmatched)} queries without a match ({fate})"]
    if result.trials:
        lines.append(_trials(result))
    if report.settings.get("ignore") == "itself":
        metrics = result.metrics
        lines.append(f"R-precision {100 * metrics.r_precision:.1f}, MAP@R {100 * metrics.map_at_r:.1f}")
    return lines


def _left_out(results: Sequence[Result]) -> str:
    shown = [
        f"{result.direction} {result.left_out:,}" if len(results) > 1 else f"{result.left_out:,}"
        for result in results
        if result.left_out
    ]
    trials = " in all trials" if any(result.trials for result in results) else ""
    return f"pairs of a query and a gallery row left out{trials}: {', '.join(shown) or 'none'}"


def _word(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return "yes" if value else "no"
    return " ".join(f"{key}={part}" for key, part in value.items()) if isinstance(value, dict) else str(value)


def _trials(result: Result) -> str:
    scores = {"rank-1": [one.rank(1) for one in result.trials], "mAP": [one.mAP for one in result.trials]}
    spread = ", ".join(f"{name} {100 * min(values):.1f} to {100 * max(values):.1f}" for name, values in scores.items())
    return f"mean of {len(result.trials)} trials, {spread}"


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
        "reranking": result.reranking or None,
        "rule": report.rule,
        "settings": dict(report.settings),
        "ties": report.ties,
        "fingerprint": report.fingerprint,
        "made": dict(report.provenance),
        "version": report.version,
    }


def _per_query(result: Result) -> dict[str, list[Any]]:
    """Columns of a row a query: its picture (below the folder of all), identity and scores; null without a match."""
    if not result.asked:
        return {}
    folder = os.path.commonpath([sample.path.parent for sample in result.asked])
    metrics = result.metrics
    return {
        "picture": [Path(os.path.relpath(sample.path, folder)).as_posix() for sample in result.asked],
        "identity": [sample.identity for sample in result.asked],
        "average_precision": [None if np.isnan(value) else float(value) for value in metrics.average_precision],
        "first_match": [int(place) or None for place in metrics.first_match],
    }


def _scores(metrics: Metrics) -> dict[str, float]:
    ranks = {f"rank{k}": metrics.rank(k) for k in (1, 5, 10)}
    return {"mAP": metrics.mAP, "mINP": metrics.mINP, **ranks}


def write_reports(reports: Iterable[Report], path: Path) -> None:
    """Write the JSON of all ``reports`` to ``path``: the whole file appears or the old one stays."""
    write_text(json.dumps(report_json(*reports), indent=2) + "\n", path, "report")


def write_text(text: str, path: Path, what: str, *, private: bool = False) -> None:
    """:func:`~reid.files.write_whole` of ``text``, such as a "report"; where it cannot be written a DataError says so.

    Missing folders are made.
    """
    try:
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8"), private=private)
    except OSError as error:
        raise DataError(f"{path}: the {what} cannot be written there: {error.strerror}") from error
