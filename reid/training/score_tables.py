"""Tables of the scores of several trainings: one row for each method, with mean and deviation over the seeds.

A table is Markdown that is also aligned for a terminal. It shows percent; JSON holds fractions (0..1).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Score:
    """The scores of one network of one seed, at one site, for one category and direction.

    Attributes:
        row: The row of the table: a variation, perhaps with its statistics.
        site: The name of the site.
        category: What the crops show.
        direction: Modality of the queries and of the gallery, such as "infrared->visible", or "all".
        seed: The seed of the training.
        rank1: The fraction (0..1) of the queries whose first answer is right.
        mAP: Mean average precision, 0..1.
        queries: The number of queries.
        gallery: The number of gallery crops.
    """

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
    """The scores of every seed for one row, site, category and direction; see :class:`Score` for the fields."""

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
    """Collect the scores of all seeds, in the order in which their rows, sites and directions first appear."""
    found: dict[tuple[str, str, str, str], Entry] = {}
    for score in scores:
        key = (score.row, score.site, score.category, score.direction)
        entry = found.setdefault(key, Entry(*key, score.queries, score.gallery))
        entry.seeds.append(score.seed)
        entry.rank1.append(score.rank1)
        entry.mAP.append(score.mAP)
    return list(found.values())


def spread(values: Sequence[float]) -> str:
    """Write fractions as percent: mean ± standard deviation of a sample (n - 1), or the only value.

    Example:
        >>> spread([0.1, 0.2, 0.6]), spread([0.5])
        ('30.0 ± 26.5', '50.0')
    """
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def site_table(found: Sequence[Entry], site: str, seeds: int) -> str:
    """Make a Markdown table of rank-1 / mAP at one site, with a column for each category and direction.

    A cell without a score is "-". A row names its number of seeds if it is not ``seeds``.
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
    """Make a Markdown table with columns of even width.

    Example:
        >>> print(markdown(["method", "mAP"], [["BN", 31.5]]))
        | method | mAP  |
        |--------|------|
        | BN     | 31.5 |
    """
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
