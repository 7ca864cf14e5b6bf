"""A report as a text table of 80 columns; scores in percent with one decimal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from reid.evaluation.results import Report, Result
from reid.retrieval.score_normalization import NONE

WIDTH = 80
_ROW = "{:<9.9} {:<18.18}{:>7}{:>7}{:>8}{:>7}{:>7}{:>8}{:>8}"
_SCORES = ("rank1", "rank5", "rank10", "mAP", "mINP")  # in the order of the columns
_HEADINGS = ("category", "direction", "rank-1", "rank-5", "rank-10", "mAP", "mINP", "queries", "gallery")


def report_table(report: Report) -> str:
    """Write a report as lines of at most 80 columns.

    One line for each result is followed by what was evaluated and how, and by the notes.
    """
    lines = [_ROW.format(*_HEADINGS), "-" * WIDTH]
    for result in report.results:
        lines += _result_lines(result)
    if any("±" in line for line in lines):
        lines.append("±: half the width of the 95 % interval, from resampled identities")
    lines += ["-" * WIDTH, *stamp_lines(report)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _result_lines(result: Result) -> list[str]:
    """Write the line of a result, and below it half the width of the 95 % interval of each score that has one."""
    metrics = result.metrics
    values = (metrics.rank(1), metrics.rank(5), metrics.rank(10), metrics.mAP, metrics.mINP)
    percents = (f"{100 * value:.1f}" for value in values)
    direction = result.direction if result.is_plain else f"  {result.change}"
    category = result.category if result.is_plain else ""
    if result.corruption:
        category, direction = f"  {result.corruption}", f"  {result.change.removeprefix(result.corruption + ' ')}"
    lines = [_ROW.format(category, direction, *percents, metrics.queries, metrics.gallery)]
    if deviations := result.deviations():
        shown = [f"{100 * deviations[name]:.1f}" if name in deviations else "" for name in _SCORES]
        lines.append(_ROW.format("", f"    sd of {len(result.trials)}", *shown, "", ""))
    elif intervals := result.intervals():
        half = {name: f"±{50 * (interval.high - interval.low):.1f}" for name, interval in intervals.items()}
        shown = [half.get(name, "") for name in _SCORES]
        lines.append(_ROW.format("", "", *shown, "", ""))
    return lines


def stamp_lines(report: Report) -> list[str]:
    """Write what a reader must know before comparing the scores with others."""
    variant = "".join(f", {name} {choice}" for name, choice in report.variant.items())
    provenance = "".join(f"; {name} {_in_words(value)}" for name, value in report.provenance.items())
    lines = [
        f"percent; protocol {report.protocol}{variant}, rule {report.rule}, ties {report.ties}",
        f"fingerprint {report.fingerprint}{provenance}; version {report.version}",
        f"gallery: {' | '.join(dict.fromkeys(result.gallery_source for result in report.results))}",
        *dict.fromkeys(
            f"{result.score_norm}: {result.score_norm_stamp}" for result in report.results if result.score_norm != NONE
        ),
        *dict.fromkeys(f"re-ranked: {result.reranking}" for result in report.results if result.reranking),
        *dict.fromkeys(f"corrupted: {result.corruption_stamp}" for result in report.results if result.corruption),
    ]
    lines += [_open_set(result) for result in report.results if result.identification]
    plain = [result for result in report.results if result.is_plain]
    lines += _statements(report, plain)
    for category in dict.fromkeys(result.category for result in plain):
        lines.append(f"{category}: {_left_out([result for result in plain if result.category == category])}")
    lines += [f"not scored: {note}" for note in report.notes]
    return [piece for line in lines for piece in textwrap.wrap(line, WIDTH, subsequent_indent="  ")]


def _statements(report: Report, results: Sequence[Result]) -> list[str]:
    """Write what holds for each result; a statement is written once for all directions for which it holds."""
    directions: dict[tuple[str, str], list[str]] = {}  # of each category and statement
    for result in results:
        for text in _statements_of(report, result):
            directions.setdefault((result.category, text), []).append(result.direction)
    lines = []
    for (category, text), some in directions.items():
        everywhere = len(some) == sum(result.category == category for result in results)
        lines.append(f"{category}{'' if everywhere else ' ' + ', '.join(some)}: {text}")
    return lines


def _statements_of(report: Report, result: Result) -> list[str]:
    counts = f"{result.query_identities} query identities, {result.gallery_identities} in the gallery"
    use = "counted as 0" if report.settings.get("unmatched") == "zero" else "in no mean"
    lines = [f"{counts}; {len(result.unmatched)} queries without a right answer ({use})"]
    if result.trials:
        lines.append(_trials(result))
    if report.settings.get("ignore") == "itself":
        metrics = result.metrics
        lines.append(f"R-precision {100 * metrics.r_precision:.1f}, MAP@R {100 * metrics.map_at_r:.1f}")
    return lines


def _open_set(result: Result) -> str:
    rates = ", ".join(
        f"{100 * one.rate.value:.1f} at a false-alarm rate of {100 * one.wished:g} %" for one in result.identification
    )
    name = " ".join(filter(None, [result.category, result.direction, result.change]))
    return f"{name}: open-set identification {rates}"


def _left_out(results: Sequence[Result]) -> str:
    shown = [
        f"{result.direction} {result.left_out:,}" if len(results) > 1 else f"{result.left_out:,}"
        for result in results
        if result.left_out
    ]
    trials = " in all trials" if any(result.trials for result in results) else ""
    return f"pairs of a query and a gallery row left out{trials}: {', '.join(shown) or 'none'}"


def _in_words(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return "yes" if value else "no"
    return " ".join(f"{key}={part}" for key, part in value.items()) if isinstance(value, dict) else str(value)


def _trials(result: Result) -> str:
    scores = {"rank-1": [one.rank(1) for one in result.trials], "mAP": [one.mAP for one in result.trials]}
    spread = ", ".join(f"{name} {100 * min(values):.1f} to {100 * max(values):.1f}" for name, values in scores.items())
    return f"mean of {len(result.trials)} trials, {spread}"
