"""What lies behind the scores as text of 80 columns: thresholds, strangers, pairs of cameras, camera bias.

Tables show percent with one decimal, thresholds are scores.  Nothing is computed here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import numpy as np

from reid.evaluation.analysis.breakdown import CameraBias, PairTable
from reid.evaluation.analysis.details import Details, ResultDetails, Verification
from reid.evaluation.analysis.intervals import Interval
from reid.evaluation.ranks import Float64Array
from reid.evaluation.reports.report import WIDTH

NAME = 11  # columns of a camera's name


def details_table(details: Details) -> str:
    """Lines of at most 80 columns, a block for each plain result; "" where nothing was asked for."""
    lines = [line for part in details.parts for line in _part(part)]
    for category, table in details.modalities:
        lines += ["", f"{category}, by modality", *_pairs("mAP", table.mAP, table)]
        lines += _pairs("rank-1", table.rank1, table)
    return "".join(line.rstrip() + "\n" for line in lines)


def _part(part: ResultDetails) -> Iterator[str]:
    yield ""
    yield f"{part.result.category} {part.result.direction}"
    if part.gallery != part.result.metrics.gallery:
        yield f"  over all {part.gallery:,} gallery images, whatever trials draw or tracks join"
    if part.verification:
        yield from _thresholds(part.verification)
    yield from _strangers(part)
    if part.bias:
        yield from _bias(part.bias)
    if part.cameras:
        yield from _pairs("mAP by camera", part.cameras.mAP, part.cameras)


def _thresholds(found: Verification) -> Iterator[str]:
    counts = f"{found.same.sum():,} pairs of one identity, {found.different.sum():,} of two"
    yield from textwrap.wrap(f"the same or not, {counts}", WIDTH, initial_indent="  ", subsequent_indent="    ")
    yield f"  {'wished false-match rate':<26}{'threshold':>11}{'true-match rate':>18}{'95 % interval':>18}"
    for point in found.points:
        wished = f"{100 * point.wished:g} %"
        yield f"  {wished:<26}{point.threshold:>11.4f}{_rate(point.true_match_rate)}"
    rate, threshold = found.equal_error
    yield f"  {'equal errors':<26}{threshold:>11.4f}{100 * rate:>17.1f}%"


def _strangers(part: ResultDetails) -> Iterator[str]:
    asked = part.result.metrics.queries
    if not part.identification:
        yield f"  strangers: {part.strangers:,} of {asked:,} queries, so no open-set identification rate"
        return
    yield f"  open set: {part.strangers:,} of {asked:,} queries show a stranger"
    yield f"  {'wished false-alarm rate':<26}{'threshold':>11}{'identified':>18}{'95 % interval':>18}"
    for one in part.identification:
        wished = f"{100 * one.wished:g} % ({100 * one.false_alarm_rate:.1f} reached)"
        yield f"  {wished:<26}{one.threshold:>11.4f}{_rate(one.rate)}"


def _rate(rate: Interval) -> str:
    span = f"{100 * rate.low:.1f} to {100 * rate.high:.1f}"
    return f"{100 * rate.value:>18.1f}{span:>18}"


def _bias(bias: CameraBias) -> Iterator[str]:
    times = "unknown" if np.isnan(bias.factor) else f"{bias.factor:.2f}"
    yield f"  camera bias {times}: how much more often than by chance the nearest stranger"
    yield "    has the query's camera"


def _pairs(title: str, values: Float64Array, table: PairTable) -> Iterator[str]:
    """``values`` of a pair table, percent; as many columns at a time as fit."""
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
