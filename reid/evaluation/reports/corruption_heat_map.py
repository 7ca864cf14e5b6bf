"""The heat map of a page that shows how queries are answered by the type and the severity of their corruption."""

from __future__ import annotations

import numpy as np

from reid.data.corruptions.corruption_types import SEVERITIES
from reid.evaluation.corruption_benchmark import BOTH, CorruptionMap
from reid.evaluation.reports.charts import escape, heat

NOTHING = "–"


def corruption_heat_map(found: CorruptionMap) -> str:
    """Write a map as a table: a row for each type, a column for each severity, and the mean of each row."""
    what = "queries and gallery corrupted" if found.role == BOTH else "queries corrupted"
    title = f"{found.category} {found.direction}: mAP in percent by the corruption of the query; {what}"
    head = "".join(f'<th scope="col">{severity}</th>' for severity in SEVERITIES)
    known = found.mAP[~np.isnan(found.mAP)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    body = []
    for name, values, counts in zip(found.names, found.mAP, found.queries, strict=True):
        cells = [_cell(float(value), int(count), low, high) for value, count in zip(values, counts, strict=True)]
        many = int(counts.sum())
        mean = float(np.nansum(values * counts) / many) if many else float("nan")
        cells.append(_cell(mean, many, low, high))
        body.append(f'<tr><th scope="row">{escape(name.replace("_", " "))}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="maps corruptions"><h3>{escape(title)}</h3><table class="heat"><caption>mAP, %</caption>'
        f'<thead><tr><th>type \\ severity</th>{head}<th scope="col">all</th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(value: float, count: int, low: float, high: float) -> str:
    if np.isnan(value):
        return f'<td class="none" title="no query with a right answer">{NOTHING}</td>'
    return f'<td style="{heat(value, low, high)}" title="{count:,} queries">{100 * value:.1f}</td>'
