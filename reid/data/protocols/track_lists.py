"""The tracks that a data set's list puts its pictures into.

VeRi-776's ``test_track.txt``: a line names a track and then its images, with spaces between.  This
module reads such a list; it opens no picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reid.errors import DataError
from reid.records import Sample


def with_tracks(samples: Sequence[Sample], text: str, where: Path) -> list[Sample]:
    """``samples`` with the tracks of the list ``text``, which is called ``where`` in errors.

    The list names pictures without their folder.  One that is listed twice or is not among
    ``samples``, and a sample in no track, are :class:`DataError`.
    """
    tracks: dict[str, str] = {}
    known = {sample.path.name for sample in samples}
    for number, line in enumerate(text.splitlines(), start=1):
        track, *names = line.split() or [""]
        if track and not names:
            raise DataError(f"{where}, line {number}: expected the name of a track and its pictures, got {line!r}")
        for name in names:
            if name not in known:
                raise DataError(f"{where}, line {number}: {name} is not among the pictures; list and pictures differ")
            if name in tracks:
                raise DataError(f"{where}, line {number}: {name} is in another track already; keep one")
            tracks[name] = f"{number}:{track}"  # names may repeat, lines do not
    missing = [sample.path for sample in samples if sample.path.name not in tracks]
    if missing:
        raise DataError(f"{missing[0]} is in no track of {where} ({len(missing)} such pictures); is the list whole?")
    return [replace(sample, track=tracks[sample.path.name]) for sample in samples]
