"""Animals by the convention of wildlife-datasets: one CSV with path, identity and, if known, date.

Pictures of one day look alike whoever they show, so the splits here keep days apart: earlier days are
the gallery, later ones ask (Papafitsoros et al., "SeaTurtleID", 2022; Cermak et al., "WildlifeDatasets", WACV
2024).  Nothing here knows networks.
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

NOBODY = ("", "unknown")  # identities that the convention leaves out


def read_metadata(path: Path, folder: Path | None = None) -> tuple[Sample, ...]:
    """The rows of a metadata CSV whose individual is known, all in split gallery, in file order.

    Columns ``path`` (relative to ``folder``, by default the CSV's own) and ``identity`` are needed,
    ``date`` (ISO 8601, or a year alone) is used if there; others are not read.
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
        if (row["identity"] or "").strip().lower() not in NOBODY
    )


def time_split(samples: Sequence[Sample], share: float = 0.5) -> tuple[Sample, ...]:
    """Gallery and train: the earlier ``share`` of each individual's days; query: the later ones.

    Of D days the first min(D - 1, round(share D)) are the gallery; with one day all of it.  Undated
    rows are left out.  Gallery rows come twice, for they are what one may train on, too.
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
            rows += _as(days[name][day], [Split.TRAIN, Split.GALLERY] if position < known else [Split.QUERY])
    return tuple(rows)


def open_split(samples: Sequence[Sample], unknown: float = 0.1, seed: int = 0) -> tuple[Sample, ...]:
    """The time-aware split, but a share of the individuals that ask is ``unknown`` to gallery and training.

    At least one is; they are drawn from ``seed``.  Their earlier days are left out.
    """
    rows = time_split(samples)
    asking = sorted({sample.identity for sample in rows if sample.split is Split.QUERY})
    if len(asking) < 2:
        raise DataError(f"{len(asking)} individuals were seen on several days; an open-set split needs two")
    count = max(1, round(unknown * len(asking)))
    drawn = np.random.default_rng(seed).permutation(len(asking))[: min(count, len(asking) - 1)]
    strangers = {asking[i] for i in drawn}
    return tuple(sample for sample in rows if sample.split is Split.QUERY or sample.identity not in strangers)


def _as(samples: Iterable[Sample], splits: Sequence[Split]) -> list[Sample]:
    return [replace(sample, split=split) for sample in samples for split in splits]


def _date(row: Mapping[str, str], path: Path, number: int) -> datetime | None:
    text = (row.get("date") or "").strip()
    if not text or text.lower() in ("nan", "nat", "none"):
        return None
    try:
        return datetime(int(text), 1, 1) if text.isdigit() and len(text) == 4 else datetime.fromisoformat(text)
    except ValueError:
        raise DataError(f'{path}, line {number}: date "{text}" is not ISO 8601 such as 2019-05-31') from None
