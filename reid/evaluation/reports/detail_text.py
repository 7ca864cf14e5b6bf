"""The details of a report as text of 80 columns: thresholds, open set, pairs of cameras and camera bias.

Tables show percent with one decimal; thresholds are scores.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import numpy as np

from reid.evaluation.analysis.breakdown import CameraBias, PairTable
from reid.evaluation.analysis.details import Details, ResultDetails, Verification
from reid.evaluation.analysis.intervals import Interval
from reid.evaluation.ranks import Float64Array
from reid.evaluation.reports.report_text import WIDTH

NAME = 11  # columns for the name of a camera


def details_table(details: Details) -> str:
    """Write details as lines of at most 80 columns, a block for each plain result; "" without details."""
    lines = [line for result in details.results for line in _result_lines(result)]
    for category, table in details.modalities:
        lines += ["", f"{category}, by modality", *_pair_lines("mAP", table.mAP, table)]
        lines += _pair_lines("rank-1", table.rank1, table)
    return "".join(line.rstrip() + "\n" for line in lines)


def _result_lines(details: ResultDetails) -> Iterator[str]:
    yield ""
    yield " ".join(filter(None, [details.result.category, details.result.direction, details.result.change]))
    if details.gallery != details.result.metrics.gallery:
        yield f"  over all {details.gallery:,} gallery images, whatever trials draw or tracks join"
    if details.verification:
        yield from _threshold_lines(details.verification)
    yield from _open_set_lines(details)
    if details.bias:
        yield from _bias_lines(details.bias)
    if details.cameras:
        yield from _pair_lines("mAP by camera", details.cameras.mAP, details.cameras)


def _threshold_lines(found: Verification) -> Iterator[str]:
    counts = f"{found.same.sum():,} pairs of one identity, {found.different.sum():,} of two"
    yield from textwrap.wrap(f"same identity or not: {counts}", WIDTH, initial_indent="  ", subsequent_indent="    ")
    yield f"  {'wished false-match rate':<26}{'threshold':>11}{'true-match rate':>18}{'95 % interval':>18}"
    for point in found.points:
        wished = f"{100 * point.wished:g} %"
        yield f"  {wished:<26}{point.threshold:>11.4f}{_rate(point.true_match_rate)}"
    rate, threshold = found.equal_error
    yield f"  {'equal error rate':<26}{threshold:>11.4f}{100 * rate:>17.1f}%"


def _open_set_lines(details: ResultDetails) -> Iterator[str]:
    queries = details.result.metrics.queries
    if not details.identification:
        yield f"  open set: {details.unmatched:,} of {queries:,} queries are unmatched, so there is no rate"
        return
    yield f"  open set: {details.unmatched:,} of {queries:,} queries are unmatched"
    yield f"  {'wished false-alarm rate':<26}{'threshold':>11}{'identified':>18}{'95 % interval':>18}"
    for one in details.identification:
        wished = f"{100 * one.wished:g} % ({100 * one.false_alarm_rate:.1f} reached)"
        yield f"  {wished:<26}{one.threshold:>11.4f}{_rate(one.rate)}"


def _rate(rate: Interval) -> str:
    span = f"{100 * rate.low:.1f} to {100 * rate.high:.1f}"
    return f"{100 * rate.value:>18.1f}{span:>18}"


def _bias_lines(bias: CameraBias) -> Iterator[str]:
    times = "unknown" if np.isnan(bias.factor) else f"{bias.factor:.2f}"
    yield f"  camera bias {times}: how many times as often as by chance the nearest row of"
    yield "    another identity has the query's camera"


def _pair_lines(title: str, values: Float64Array, table: PairTable) -> Iterator[str]:
    """Write ``values`` of a pair table in percent, as many columns at a time as fit."""
    at_once = (WIDTH - 2 - NAME) // 8
    for start in range(0, len(table.gallery_groups), at_once):
        columns = range(start, min(start + at_once, len(table.gallery_groups)))
        yield f"  {title}, percent; query in the row, gallery in the column"
        names = [table.gallery_groups[column] for column in columns]
        width = min(max(8, *(len(name) + 2 for name in names)), (WIDTH - 2 - NAME) // len(names))
        yield f"  {'':<{NAME}}" + "".join(f"{name[: width - 1]:>{width}}" for name in names)
        for row, name in enumerate(table.query_groups):
            cells = (values[row, column] for column in columns)
            shown = (f"{'-' if np.isnan(cell) else f'{100 * cell:.1f}':>{width}}" for cell in cells)
            yield f"  {name[:NAME]:<{NAME}}" + "".join(shown)
