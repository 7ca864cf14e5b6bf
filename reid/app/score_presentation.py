"""The HTML of scores: tables and CMC curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reid.app.presentation import TEMPLATE_CHARACTERS, escape, message_html
from reid.evaluation.reports.charts import COLOURS, Curve, cmc_chart

CMC_RANKS = 20


@dataclass(frozen=True)
class ScoreRow:
    """A line of the score table. Scores are fractions in 0..1; ``cmc[k - 1]`` is rank-k, up to rank-10 at least."""

    title: str
    direction: str
    mean_average_precision: float
    cmc: Sequence[float]
    queries: int
    gallery: int


def score_table_html(rows: Sequence[ScoreRow], title: str = "Scores") -> str:
    """Return a table of scores in percent; the best of each direction are bold, and ``title`` names the table."""
    if not rows:
        return message_html("No scores for this selection.")
    heads = ("Direction", "Network", "mAP", "rank-1", "rank-5", "rank-10", "queries", "gallery")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(_table_row(row, [other for other in rows if other.direction == row.direction]) for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="reid-table" tabindex="0" role="region" aria-label="{escape(title)}, table">{table}</div>'


def _table_row(row: ScoreRow, rivals: Sequence[ScoreRow]) -> str:
    cells = []
    for k, score in enumerate(_scores(row)):
        best = any(_scores(rival)[k] < score for rival in rivals) and not any(_scores(r)[k] > score for r in rivals)
        text = f"{100 * score:.1f}"
        cells.append(f"<td>{f'<b>{text}</b>' if best else text}</td>")
    names = f'<th scope="row">{escape(arrow(row.direction))}</th><td>{escape(row.title)}</td>'
    return f"<tr>{names}{''.join(cells)}<td>{row.queries:,}</td><td>{row.gallery:,}</td></tr>"


def _scores(row: ScoreRow) -> tuple[float, float, float, float]:
    return row.mean_average_precision, row.cmc[0], row.cmc[4], row.cmc[9]


def arrow(direction: str) -> str:
    """Write a direction with an arrow.

    Example:
        >>> arrow("visible->infrared")
        'visible → infrared'
    """
    return direction.replace("->", " → ")


def cmc_html(title: str, rows: Sequence[ScoreRow], ranks: int = CMC_RANKS) -> str:
    """Draw the CMC curves of ``rows`` under a title, one line for each row.

    Args:
        title: The title, which also names the chart to those who cannot see it.
        rows: At least one row; rows beyond the number of ``COLOURS`` are not drawn.
        ranks: The last rank of the curves.

    Returns:
        A figure with an inline SVG and a legend that gives rank-1 and mAP.
    """
    curves = [
        Curve(f"{row.title}: {_percent_words(row)}", np.asarray(row.cmc[:ranks], np.float64), colour)
        for row, colour in zip(rows, COLOURS, strict=False)
    ]
    chart = cmc_chart(title, curves).translate(TEMPLATE_CHARACTERS)
    return f'<div class="reid-card reid-cmc">{chart}</div>'


def _percent_words(row: ScoreRow) -> str:
    return f"rank-1 {100 * row.cmc[0]:.1f}, mAP {100 * row.mean_average_precision:.1f}"
