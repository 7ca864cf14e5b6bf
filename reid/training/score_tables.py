"""Scores of several trainings as tables: a row a method, mean and spread over seeds.

Tables are Markdown that is also aligned for a terminal and show percent; JSON holds fractions of 0..1.  Nothing is
trained or evaluated here.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Score:
    """How one network of one seed fared: ``rank1`` and ``mAP`` in 0..1 of ``queries`` in a ``gallery`` of so many."""

    row: str
    site: str
    category: str
    direction: str
    seed: int
    rank1: float
    mAP: float  # noqa: N815 (the field's name for it)
    queries: int
    gallery: int


@dataclass(frozen=True)
class Entry:
    """The scores of every seed for one row, site, kind of object and direction."""

    row: str
    site: str
    category: str
    direction: str
    queries: int
    gallery: int
    seeds: list[int] = field(default_factory=list)
    rank1: list[float] = field(default_factory=list)
    mAP: list[float] = field(default_factory=list)  # noqa: N815 (the field's name for it)


def entries(scores: Iterable[Score]) -> list[Entry]:
    """The scores, seeds put together, in the order in which their rows, sites and directions first come."""
    found: dict[tuple[str, str, str, str], Entry] = {}
    for score in scores:
        key = (score.row, score.site, score.category, score.direction)
        entry = found.setdefault(key, Entry(*key, score.queries, score.gallery))
        entry.seeds.append(score.seed)
        entry.rank1.append(score.rank1)
        entry.mAP.append(score.mAP)
    return list(found.values())


def spread(values: Sequence[float]) -> str:
    """Fractions as percent: mean ± standard deviation over the seeds (n - 1), or the one value there is."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def site_table(found: Sequence[Entry], site: str, seeds: int) -> str:
    """Rank-1 / mAP at one site, a column for each kind of object and direction; "-" where there is no score.

    A row with another number of seeds than ``seeds`` says so.
    """
    here = [entry for entry in found if entry.site == site]
    categories = {entry.category for entry in here}
    columns = list(dict.fromkeys((entry.category, entry.direction) for entry in here))
    rows = []
    for row in dict.fromkeys(entry.row for entry in here):
        cells = {(e.category, e.direction): e for e in here if e.row == row}
        counts = {len(entry.seeds) for entry in cells.values()}
        few = "" if counts == {seeds} else f" ({min(counts)} of {seeds} seeds)"
        texts = [f"{spread(e.rank1)} / {spread(e.mAP)}" if (e := cells.get(key)) else "-" for key in columns]
        rows.append([row + few, *texts])
    heads = [direction if len(categories) == 1 else f"{category} {direction}" for category, direction in columns]
    return markdown([site, *heads], rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with columns of even width."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
