"""Read and split animal data sets in the format of wildlife-datasets: a CSV with path, identity and date.

Images of one day look alike whichever animal they show.  Therefore the splits never divide a day: earlier days are the
gallery, later days are the queries (Papafitsoros et al., "SeaTurtleID", 2022; Cermak et al., "WildlifeDatasets", WACV
2024).
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path

import numpy as np

from reid.errors import DataError
from reid.records import Sample, Split

UNKNOWN_IDENTITIES = ("", "unknown")  # wildlife-datasets leaves such rows out


def read_metadata(path: Path, folder: Path | None = None) -> tuple[Sample, ...]:
    """Read the rows of a metadata CSV whose identity is known.

    Args:
        path: The CSV.  The columns ``path`` and ``identity`` are required, ``date`` (ISO 8601 or a year) is optional,
            others are not read.
        folder: The folder that the paths are relative to; by default that of the CSV.

    Returns:
        The samples in the order of the rows, all in the gallery split.

    Raises:
        DataError: The CSV is not readable, lacks a column, or holds a wrong date.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = {"path", "identity"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{path}: column {', '.join(sorted(missing))} is missing; expected path and identity")
            rows = [(number, row) for number, row in enumerate(reader, start=2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV ({error})") from error
    return tuple(
        Sample((folder or path.parent) / row["path"], row["identity"], category="animal", time=_date(row, path, number))
        for number, row in rows
        if (row["identity"] or "").strip().lower() not in UNKNOWN_IDENTITIES
    )


def time_split(samples: Sequence[Sample], share: float = 0.5) -> tuple[Sample, ...]:
    """Split samples by time: earlier days of each identity are gallery and train, later days are queries.

    Of D days the first min(D - 1, round(share * D)) are the gallery; a single day belongs to the gallery.

    Args:
        samples: The samples; those without a time are left out.
        share: The share of the days that are gallery.

    Returns:
        The split samples; those of the gallery appear twice, in the splits train and gallery.

    Raises:
        DataError: No sample has a time.
    """
    days: dict[str, dict[date, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        if sample.time is not None:
            days[sample.identity][sample.time.date()].append(sample)
    if not days:
        raise DataError("no row has a date; a time-aware split needs the column date")
    rows: list[Sample] = []
    for name in sorted(days):
        ordered = sorted(days[name])
        known = min(len(ordered) - 1, round(share * len(ordered))) if len(ordered) > 1 else 1
        for position, day in enumerate(ordered):
            rows += _in_splits(days[name][day], [Split.TRAIN, Split.GALLERY] if position < known else [Split.QUERY])
    return tuple(rows)


def open_split(samples: Sequence[Sample], unknown: float = 0.1, seed: int = 0) -> tuple[Sample, ...]:
    """Split samples by time, and leave some identities of the queries out of gallery and train.

    Args:
        samples: The samples.
        unknown: The share of the identities with queries that are left out, at least one identity.
        seed: Decides which ones.

    Returns:
        The split samples.

    Raises:
        DataError: Fewer than two identities have queries.
    """
    rows = time_split(samples)
    queried = sorted({sample.identity for sample in rows if sample.split is Split.QUERY})
    if len(queried) < 2:
        raise DataError(f"{len(queried)} individuals were seen on several days; an open-set split needs two")
    count = max(1, round(unknown * len(queried)))
    drawn = np.random.default_rng(seed).permutation(len(queried))[: min(count, len(queried) - 1)]
    left_out = {queried[i] for i in drawn}
    return tuple(sample for sample in rows if sample.split is Split.QUERY or sample.identity not in left_out)


def _in_splits(samples: Iterable[Sample], splits: Sequence[Split]) -> list[Sample]:
    return [replace(sample, split=split) for sample in samples for split in splits]


def _date(row: Mapping[str, str], path: Path, number: int) -> datetime | None:
    text = (row.get("date") or "").strip()
    if not text or text.lower() in ("nan", "nat", "none"):
        return None
    try:
        return datetime(int(text), 1, 1) if text.isdigit() and len(text) == 4 else datetime.fromisoformat(text)
    except ValueError:
        raise DataError(f'{path}, line {number}: date "{text}" is not ISO 8601 such as 2019-05-31') from None
