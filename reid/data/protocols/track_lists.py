"""Read the list that assigns the images of a data set to tracks.

In VeRi-776's ``test_track.txt`` a line names a track and then its images, with spaces between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reid.errors import DataError
from reid.records import Sample


def with_tracks(samples: Sequence[Sample], text: str, where: Path) -> list[Sample]:
    """Give samples the tracks of a list.

    Args:
        samples: The samples; the list names their images without the folder.
        text: The list.
        where: The file of the list, for errors.

    Returns:
        The samples with their tracks, in the same order.

    Raises:
        DataError: An image is listed twice, is not among the samples, or is in no track.

    Example:
        >>> samples = [Sample(Path("test/1.jpg")), Sample(Path("test/2.jpg"))]
        >>> [sample.track for sample in with_tracks(samples, "car 1.jpg 2.jpg", Path("list.txt"))]
        ['1:car', '1:car']
    """
    tracks: dict[str, str] = {}
    known = {sample.path.name for sample in samples}
    for number, line in enumerate(text.splitlines(), start=1):
        track, *names = line.split() or [""]
        if track and not names:
            raise DataError(f"{where}, line {number}: expected the name of a track and its images, got {line!r}")
        for name in names:
            if name not in known:
                raise DataError(f"{where}, line {number}: {name} is not among the images; list and images differ")
            if name in tracks:
                raise DataError(f"{where}, line {number}: {name} is in another track already; keep one")
            tracks[name] = f"{number}:{track}"  # the line, because names of tracks may repeat
    missing = [sample.path for sample in samples if sample.path.name not in tracks]
    if missing:
        raise DataError(f"{missing[0]} is in no track of {where} ({len(missing)} such images); is the list complete?")
    return [replace(sample, track=tracks[sample.path.name]) for sample in samples]
