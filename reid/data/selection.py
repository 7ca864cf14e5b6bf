"""Selecting samples: by what they are used for, by domain, one of each track, or with a minimal gap in time.

Neighbouring crops of a track are nearly the same image.  Leaving most of them out lets each passing person count once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from reid.errors import DataError, unknown_name
from reid.files import file_keys
from reid.records import Sample, Split, domain_of

EPOCH = datetime(1970, 1, 1)
EPOCH_UTC = EPOCH.replace(tzinfo=UTC)

if TYPE_CHECKING:
    from reid.data.protocols.data_sets import DataSet


def select_domains(samples: Sequence[Sample], domain_fields: Sequence[str], domains: Sequence[str]) -> list[Sample]:
    """Select the samples of some domains.

    Args:
        samples: The samples to select from.
        domain_fields: The fields of a sample that name its domain.
        domains: Names of the domains to keep.  The label of a camera stands for its domain where it has only one.

    Returns:
        The samples of these domains, in their order.

    Raises:
        DataError: If no sample has one of the names, or a label stands for several domains.

    Example:
        >>> from pathlib import Path
        >>> samples = [Sample(Path("0001.jpg"), camera="door"), Sample(Path("0002.jpg"), camera="yard")]
        >>> [sample.camera for sample in select_domains(samples, ("camera",), ["yard"])]
        ['yard']
    """
    cameras = {domain_of(sample, domain_fields): sample.camera for sample in samples}
    chosen = {_domain_of_name(name, cameras, domain_fields) for name in domains}
    return [sample for sample in samples if domain_of(sample, domain_fields) in chosen]


def _domain_of_name(name: str, cameras: Mapping[str, str], domain_fields: Sequence[str]) -> str:
    """Return the domain that a name or the label of a camera means; ``cameras`` holds the camera of each domain."""
    if name in cameras:
        return name
    known = sorted(cameras)
    of_camera = [domain for domain in known if "camera" in domain_fields and cameras[domain] == name != ""]
    if not of_camera:
        raise DataError(unknown_name("/".join(domain_fields), name, known))
    if len(of_camera) > 1:
        raise DataError(f'camera "{name}": expected one domain, it has {", ".join(of_camera)}; name one of these')
    return of_camera[0]


def keep_one_of_each_track(samples: Sequence[Sample], domain_fields: Sequence[str]) -> list[Sample]:
    """Keep the middle crop of every track of a domain.

    The middle is taken in the order of time where all crops of the track have one, otherwise in the order of the list.

    Args:
        samples: The samples to select from.
        domain_fields: The fields of a sample that name its domain; tracks of two domains never mix.

    Returns:
        One sample for each track of each domain, in the order of ``samples``.

    Raises:
        DataError: If a sample has no track, or some times of a track have a zone and others have none.

    Example:
        >>> from pathlib import Path
        >>> samples = [Sample(Path(f"{number}.jpg"), camera="door", track="t1") for number in (1, 2, 3)]
        >>> [sample.path.name for sample in keep_one_of_each_track(samples, ("camera",))]
        ['2.jpg']
    """
    rows: dict[tuple[str, str], list[int]] = {}
    for row, sample in enumerate(samples):
        if not sample.track:
            raise DataError(
                f"{sample.path}: no track, so which crops are of one passing is unknown; fill the column track, which"
                ' "reid ingest" does, or keep crops some seconds apart (--min-gap)'
            )
        rows.setdefault((domain_of(sample, domain_fields), sample.track), []).append(row)
    kept = set()
    for (domain, _), track in rows.items():
        times = _seconds([samples[row] for row in track], domain)
        order = np.argsort(times, kind="stable") if len(times) == len(track) else None
        middle = (len(track) - 1) // 2
        kept.add(track[middle if order is None else int(order[middle])])
    return [sample for row, sample in enumerate(samples) if row in kept]


def keep_min_gap(samples: Sequence[Sample], domain_fields: Sequence[str], seconds: float) -> list[Sample]:
    """Keep samples of a domain that are at least some seconds apart.

    The earliest sample of each domain stays, then the next one that is ``seconds`` or more later, and so on.

    Args:
        samples: The samples to select from.
        domain_fields: The fields of a sample that name its domain; gaps count within a domain.
        seconds: The minimal gap.

    Returns:
        The samples that stay, in the order of ``samples``.

    Raises:
        DataError: If a sample has no time, or some times of a domain have a zone and others have none.

    Example:
        >>> from datetime import datetime
        >>> times = [datetime(2024, 5, 1, 9, 0, second) for second in (0, 5, 30)]
        >>> from pathlib import Path
        >>> samples = [Sample(Path(f"{time.second}.jpg"), camera="door", time=time) for time in times]
        >>> [sample.path.name for sample in keep_min_gap(samples, ("camera",), 10)]
        ['0.jpg', '30.jpg']
    """
    for sample in samples:
        if sample.time is None:
            raise DataError(f"{sample.path}: no time, so how far apart crops are is unknown; fill the column time")
    domains: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        domains.setdefault(domain_of(sample, domain_fields), []).append(row)
    kept: set[int] = set()
    for domain, rows in domains.items():
        times = _seconds([samples[row] for row in rows], domain)
        last = -np.inf
        for position in np.argsort(times, kind="stable").tolist():
            if times[position] - last >= seconds:
                last = times[position]
                kept.add(rows[position])
    return [sample for row, sample in enumerate(samples) if row in kept]


def _seconds(samples: Sequence[Sample], domain: str) -> list[float]:
    """Count seconds from a common moment; times without a zone never depend on the zone of this machine."""
    known = [(sample, sample.time) for sample in samples if sample.time is not None]
    naive = [sample for sample, time in known if time.tzinfo is None]
    if naive and len(naive) < len(known):
        zoned = next(sample for sample, time in known if time.tzinfo is not None)
        raise DataError(
            f'"{domain}": {zoned.path} has a time with a zone and {naive[0].path} one without; write all times of a'
            " camera in the same way"
        )
    return [(time - (EPOCH if time.tzinfo is None else EPOCH_UTC)).total_seconds() for _, time in known]


def evaluated_samples(data: DataSet) -> list[Sample]:
    """Return the queries and the gallery of a data set, or each image once where the rule makes it both.

    Raises:
        DataError: There are no queries, or there is no gallery.
    """
    samples = [sample for sample in data.samples if sample.split is not Split.TRAIN]
    if data.scoring.rule.ignore == "itself":
        keys = file_keys(sample.path for sample in samples)
        return list({keys[sample.path]: sample for sample in reversed(samples)}.values())[::-1]
    for split in (Split.QUERY, Split.GALLERY):
        if not any(sample.split is split for sample in samples):
            raise DataError(f'{data.name}: no row of split "{split}"; evaluation needs queries and a gallery')
    return samples


def gallery_samples(samples: Iterable[Sample]) -> list[Sample]:
    """Return the samples of split gallery; DataError where there is none."""
    rows = [sample for sample in samples if sample.split is Split.GALLERY]
    if not rows:
        raise DataError('no row of split "gallery" to build a gallery from')
    return rows


def calibration_samples(samples: Sequence[Sample], split: Split | None = None) -> list[Sample]:
    """Return the samples whose images statistics are measured on.

    Args:
        samples: All samples.
        split: The split to measure; None takes split train if it has samples, else each image of any split once.

    Returns:
        The samples; generated crops are left out, because they say nothing about what a camera records.

    Raises:
        DataError: The split has no samples.
    """
    recorded = [s for s in samples if not s.generated]
    rows = [s for s in recorded if s.split is (split or Split.TRAIN)]
    if split is not None and not rows:
        raise DataError(f'no row of split "{split}" to measure')
    if samples and not recorded:
        raise DataError("every row is a generated crop; statistics are measured on crops that cameras recorded")
    return rows or list({s.path: s for s in recorded}.values())


def keep_balanced(samples: Sequence[Sample], domain_fields: Sequence[str], most: int) -> list[Sample]:
    """Keep some samples, as many of each domain as there are, in turns.

    Those of a domain are spread evenly over its list, so that neighbouring crops of a track rarely both stay.

    Args:
        samples: The samples to select from.
        domain_fields: The fields of a sample that name its domain.
        most: The largest number of samples to keep.

    Returns:
        At most ``most`` samples: one of each domain, then the next of each, and so on.

    Example:
        >>> from pathlib import Path
        >>> cameras = ("door", "door", "door", "door", "yard")
        >>> samples = [Sample(Path(f"{row}.jpg"), camera=camera) for row, camera in enumerate(cameras)]
        >>> [sample.path.name for sample in keep_balanced(samples, ("camera",), 3)]
        ['0.jpg', '4.jpg', '2.jpg']
    """
    rows: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        rows.setdefault(domain_of(sample, domain_fields), []).append(row)
    kept = dict.fromkeys(rows, 0)
    left = min(most, len(samples))
    while left > 0:
        for domain in [domain for domain in rows if kept[domain] < len(rows[domain])][:left]:
            kept[domain] += 1
            left -= 1
    chosen = {domain: [rows[domain][i * len(rows[domain]) // n] for i in range(n)] for domain, n in kept.items() if n}
    return [
        samples[own[turn]]
        for turn in range(max(kept.values(), default=0))
        for own in chosen.values()
        if turn < len(own)
    ]
