"""The stages of an ingest, one after the other; each goes on where it was stopped and ends in the same files.

Frames are decoded twice, once to be looked at and once to be cut, so that which boxes of a track are cut can be
chosen when the whole track is known, and so that nothing but files need survive an interruption.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image

from reid.data.loading import Progress
from reid.data.video.detectors import Detector
from reid.data.video.frames import Film, Pixels
from reid.data.video.tracking import WEAK, FrameDetections, Sighting, chosen, track
from reid.data.video.video_folder import MANIFEST, FoundFile, add_rows, claimed, keep, option, read_columns
from reid.errors import ConfigError, DataError
from reid.records import Modality

Bar = Callable[[str, int], AbstractContextManager[Progress]]
"""Opens a bar with a title for so many frames."""

EPOCH = datetime(1970, 1, 1)
QUALITY = 95
_SAMPLED = 5.0  # frames a second below which people move further between two looks than boxes overlap
_WHOLE = 0.98  # of the frames a file announces; a few less is how some formats count
_CAMERA = re.compile(r"[^\s\x00-\x1f/\\](?:[^\x00-\x1f/\\]*[^\s\x00-\x1f/\\])?")


@dataclass(frozen=True)
class Settings:
    """What the crops depend on, beside the film and the detector.

    Every ``every``-th frame is looked at.  ``start`` is when the film begins.  A box counts from ``min_score``
    and is cut out if it is ``min_height`` pixels tall; tracks of fewer than ``min_track`` boxes are left out;
    ``max_crops`` of a track are cut, spread over it, with ``margin`` times the box's size more on each side.
    """

    camera: str
    modality: Modality = Modality.VISIBLE
    every: int = 1
    start: datetime = EPOCH
    min_score: float = 0.5
    min_height: float = 64.0
    min_track: int = 2
    max_crops: int = 10
    margin: float = 0.0

    def __post_init__(self) -> None:
        if not _CAMERA.fullmatch(self.camera):
            raise ConfigError(f"--camera {self.camera!r}: expected a name without slashes or blanks around it")
        least = {"every": 1, "min_height": 1, "min_track": 1, "max_crops": 1, "margin": 0}
        for name, bound in least.items():
            if not bound <= getattr(self, name) < math.inf:
                raise ConfigError(f"{option(name)}: expected {bound} or more, got {getattr(self, name):g}")
        if not 0 < self.min_score < math.inf:
            raise ConfigError(f"{option('min_score')}: expected more than 0, got {self.min_score:g}")


@dataclass(frozen=True)
class Ingested:
    """What came of an ingest: ``crops`` of ``tracks`` in ``looked`` of ``frames`` frames; ``added`` rows are new."""

    manifest: Path
    detector: str
    frames: int
    looked: int
    crops: int
    tracks: int
    added: int
    doubts: tuple[str, ...]

    def lines(self) -> list[str]:
        """The findings for the user, one a line."""
        known = self.crops - self.added
        before = f", {known} of them listed before" if known else ""
        return [
            f"{self.manifest}: {self.crops} crops of {self.tracks} tracks{before}",
            f"looked at {self.looked} of {self.frames} frames with {self.detector}",
            *self.doubts,
        ]


def ingest(
    film: Film, detector: Detector, out: Path, settings: Settings, *, bar: Bar, append_to: Path | None = None
) -> Ingested:
    """Cut the people of ``film`` out into ``out`` and list them in ``out``/manifest.csv, or in ``append_to``.

    The same call goes on after an interruption and ends in the same bytes; other settings, or another film, in the
    same folder are a ConfigError.  Raises DataError where no person is found.
    """
    if append_to is not None:
        read_columns(append_to)
    told = {key: str(value) if isinstance(value, datetime) else value for key, value in asdict(settings).items()}
    state = {
        "film": film.path.name, "fingerprint": film.fingerprint, "rate": film.rate, "stamped": film.stamped,
        "detector": detector.name, **told,
    }  # fmt: skip
    with claimed(out, state):
        found = FoundFile(out)
        try:
            _look(film, detector, settings, found, bar)
        finally:
            found.close()
        sightings = track(found.looks, settings.min_score)
        wanted = chosen(
            sightings, min_score=settings.min_score, min_height=settings.min_height,
            min_track=settings.min_track, most=settings.max_crops,
        )  # fmt: skip
        if not wanted:
            raise DataError(_nobody(film, detector, settings, found.looks))
        _cut(film, out, wanted, settings.margin, bar)
        manifest = append_to or out / MANIFEST
        added = add_rows(manifest, [_row(sighting, out, manifest, film, settings) for sighting in wanted])
    frames = found.frames or 0
    return Ingested(
        manifest, detector.name, frames, len(found.looks), len(wanted), len({s.track for s in wanted}), added,
        _doubts(film, settings, frames),
    )  # fmt: skip


def crop_name(sighting: Sighting) -> str:
    """The file of a crop: the number of its track and of its frame."""
    return f"{sighting.track:05d}_{sighting.frame:07d}.jpg"


def _look(film: Film, detector: Detector, settings: Settings, found: FoundFile, bar: Bar) -> None:
    """Ask the detector about every frame that is due and was not looked at yet."""
    if found.frames is not None:
        return
    begin = found.looks[-1].frame + 1 if found.looks else 0
    last = -1

    def due(number: int) -> bool:
        nonlocal last
        last = number
        return number >= begin and number % settings.every == 0

    left = max(0, -(-film.count // settings.every) - len(found.looks))
    with bar("looking for people", left) as progress:
        for frame in film.frames(due):
            boxes = detector(frame.pixels)
            found.add(FrameDetections(frame.number, frame.seconds, boxes[boxes[:, 4] >= WEAK * settings.min_score]))
            progress(1)
    found.finish(last + 1)


def _cut(film: Film, out: Path, wanted: Sequence[Sighting], margin: float, bar: Bar) -> None:
    """Write the crops that are not there yet."""
    missing: dict[int, list[Sighting]] = defaultdict(list)
    for sighting in wanted:
        if not (out / crop_name(sighting)).exists():
            missing[sighting.frame].append(sighting)
    if not missing:
        return
    with bar("cutting out", sum(map(len, missing.values()))) as progress:
        for frame in film.frames(missing.__contains__):
            for sighting in missing.pop(frame.number):
                stream = io.BytesIO()
                Image.fromarray(cutout(frame.pixels, sighting.box, margin)).save(stream, "JPEG", quality=QUALITY)
                keep(out / crop_name(sighting), stream.getvalue())
                progress(1)
            if not missing:
                break
    if missing:
        raise DataError(
            f"{film.path}: frame {min(missing)} could be read before and cannot be now; was the film changed?"
        )


def cutout(pixels: Pixels, box: Sequence[float], margin: float) -> Pixels:
    """The part of ``pixels`` (H, W, 3) that ``box`` (left, top, right, bottom) and its margin touch, within it."""
    across, down = margin * (box[2] - box[0]), margin * (box[3] - box[1])
    left, top = max(0, math.floor(box[0] - across)), max(0, math.floor(box[1] - down))
    right, bottom = math.ceil(box[2] + across), math.ceil(box[3] + down)
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def _row(sighting: Sighting, out: Path, manifest: Path, film: Film, settings: Settings) -> dict[str, str]:
    """The film's mark before the track's number keeps tracks of several films apart."""
    folder = os.path.relpath(out.resolve(), manifest.parent.resolve())
    return {
        "path": Path(folder, crop_name(sighting)).as_posix(),
        "identity": "",
        "camera": settings.camera,
        "modality": str(settings.modality),
        "category": "person",
        "split": "gallery",
        "time": (settings.start + timedelta(seconds=sighting.seconds)).isoformat(timespec="milliseconds"),
        "track": f"{film.fingerprint[:8]}-{sighting.track:05d}",
    }


def _nobody(film: Film, detector: Detector, settings: Settings, looks: Sequence[FrameDetections]) -> str:
    boxes = [box for look in looks for box in look.boxes.tolist()]
    best = f"; the best of {len(boxes)} boxes scores {max(box[4] for box in boxes):.2f}" if boxes else ""
    tall = f" and is at most {max(box[3] - box[1] for box in boxes):.0f} pixels tall" if boxes else ""
    return (
        f"{film.path}: {detector.name} found nobody in {len(looks)} frames (--min-score {settings.min_score:g},"
        f" --min-height {settings.min_height:g} pixels, --min-track {settings.min_track}){best}{tall};"
        " try lower bounds or another --detector, in another --out"
    )


def _doubts(film: Film, settings: Settings, frames: int) -> tuple[str, ...]:
    """What a user should know before trusting the crops."""
    doubts = []
    if frames < _WHOLE * film.count:
        doubts.append(f"the file announces {film.count} frames, {frames} can be read: it is cut off or damaged")
    if film.rate / settings.every < _SAMPLED:
        doubts.append(
            f"{film.rate / settings.every:.2g} looks a second: who walks fast may become several tracks; look oftener"
        )
    if settings.start == EPOCH:
        doubts.append("times count from 1970-01-01, for nobody said when the film began (--start)")
    doubts.append("identities are unknown: search and calibration work, nothing can be scored")
    return tuple(doubts)
