"""Cut the people out of a video: detect, track, cut out, list.

Each stage continues where it was stopped and ends in the same files.  Frames are decoded twice, first to detect people
and then to cut them out.  So the crops of a track are chosen when the whole track is known, and an interrupted run
needs nothing but the files.
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
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from reid.data.label_text import CONTROL, clean_label
from reid.data.loading import Progress
from reid.data.video.detectors import Detector
from reid.data.video.frames import Pixels, Retiming, Video
from reid.data.video.tracking import WEAK, FrameDetections, TrackedBox, select_boxes, track
from reid.data.video.video_folder import (
    MANIFEST,
    VIDEO_NAME,
    DetectionLog,
    add_rows,
    hold_folder,
    option,
    read_columns,
    write_private,
)
from reid.errors import ConfigError, DataError
from reid.records import Modality

Bar = Callable[[str, int], AbstractContextManager[Progress]]
"""Opens a progress bar with a title for a number of steps."""

EPOCH = datetime(1970, 1, 1)
QUALITY = 95
_LOW_RATE = 5.0  # frames a second below which the boxes of a walking person may not overlap
_COMPLETE = 0.98  # share of the announced frames; some formats announce a few too many
_CAMERA = re.compile(r"[^\s\x00-\x1f/\\](?:[^\x00-\x1f/\\]*[^\s\x00-\x1f/\\])?")


@dataclass(frozen=True)
class Settings:
    """What the crops depend on, beside the video and the detector.

    Args:
        camera: The camera that took the video.
        modality: The kind of light that it sees.
        every: Search one frame of so many.
        start: When the video begins.
        min_score: The score from which a box counts.
        min_height: Boxes of at least so many pixels are cut out.
        min_track: Tracks with fewer boxes are left out.
        max_crops: At most so many crops of a track are cut out, spread over the track.
        margin: Enlarge a box by so many times its size on each side.

    Raises:
        ConfigError: A value is out of range.
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
        if not _CAMERA.fullmatch(self.camera) or CONTROL.search(self.camera) or clean_label(self.camera) != self.camera:
            raise ConfigError(
                f"--camera {self.camera!a}: expected a name without slashes, invisible characters or blanks around it"
            )
        least = {"every": 1, "min_height": 1, "min_track": 1, "max_crops": 1, "margin": 0}
        for name, bound in least.items():
            if not bound <= getattr(self, name) < math.inf:
                raise ConfigError(f"{option(name)}: expected {bound} or more, got {getattr(self, name):g}")
        if not 0 < self.min_score < math.inf:
            raise ConfigError(f"{option('min_score')}: expected more than 0, got {self.min_score:g}")


@dataclass(frozen=True)
class IngestResult:
    """The result of an ingest.

    Args:
        manifest: The manifest that lists the crops.
        detector: The name of the detector.
        frames: Number of frames of the video.
        searched: Number of frames that the detector searched.
        crops: Number of crops.
        tracks: Number of tracks that the crops belong to.
        added: Number of rows that are new in the manifest.
        warnings: What a user should know before using the crops, one sentence each.
        doubts: What is wrong with the times of the video and was mended, one sentence each.
    """

    manifest: Path
    detector: str
    frames: int
    searched: int
    crops: int
    tracks: int
    added: int
    warnings: tuple[str, ...]
    doubts: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Describe the result for the user, one finding a line; the doubts are told apart from these."""
        known = self.crops - self.added
        before = f", {known} of them listed before" if known else ""
        return [
            f"{self.manifest}: {self.crops} crops of {self.tracks} tracks{before}",
            f"searched {self.searched} of {self.frames} frames with {self.detector}",
            *self.warnings,
        ]


def ingest(
    video: Video, detector: Detector, out: Path, settings: Settings, *, bar: Bar, append_to: Path | None = None
) -> IngestResult:
    """Cut the people of a video out and list the crops in a manifest.

    After an interruption the same call continues and ends in the same bytes.

    Args:
        video: The video.
        detector: Finds people in a frame.
        out: The folder for the crops; a folder serves one video and one set of settings.
        settings: What the crops depend on.
        bar: Opens a progress bar.
        append_to: The manifest of an earlier ingest to which the rows are added; by default ``out``/manifest.csv.

    Returns:
        What was found and written.

    Raises:
        ConfigError: The folder was begun with another video or other settings, or is in use.
        DataError: No person was found, or a file cannot be read or written.
    """
    if append_to is not None:
        read_columns(append_to)
    plain = {key: str(value) if isinstance(value, datetime) else value for key, value in asdict(settings).items()}
    state = {
        VIDEO_NAME: video.path.name, "fingerprint": video.fingerprint, "rate": video.rate, "stamped": video.stamped,
        "detector": detector.name, **plain,
    }  # fmt: skip
    if video.pixel_aspect != 1:
        state["pixel_aspect"] = video.pixel_aspect
    with hold_folder(out, state):
        log = DetectionLog(out)
        try:
            _detect(video, detector, settings, log, bar)
        finally:
            log.close()
        selected = select_boxes(
            track(log.detections, settings.min_score), min_score=settings.min_score, min_height=settings.min_height,
            min_track=settings.min_track, most=settings.max_crops,
        )  # fmt: skip
        if not selected:
            raise DataError(_nobody_found(video, detector, settings, log.detections))
        _write_crops(video, out, selected, settings.margin, bar)
        manifest = append_to or out / MANIFEST
        added = add_rows(manifest, [_manifest_row(box, out, manifest, video, settings) for box in selected])
    frames = log.frames or 0
    return IngestResult(
        manifest, detector.name, frames, len(log.detections), len(selected), len({box.track for box in selected}),
        added, _warnings(video, settings, frames, log.detections), _doubts(log.retiming, frames),
    )  # fmt: skip


def crop_name(box: TrackedBox) -> str:
    """Name the file of a crop by the numbers of its track and its frame.

    Example:
        >>> crop_name(TrackedBox(3, 120, 4.8, (0.0, 0.0, 40.0, 100.0), 0.9))
        '00003_0000120.jpg'
    """
    return f"{box.track:05d}_{box.frame:07d}.jpg"


def _detect(video: Video, detector: Detector, settings: Settings, log: DetectionLog, bar: Bar) -> None:
    """Search every frame that the settings ask for and that the log does not have yet."""
    if log.frames is not None:
        return
    begin = log.detections[-1].frame + 1 if log.detections else 0
    last = -1

    def is_due(number: int) -> bool:
        nonlocal last
        last = number
        return number >= begin and number % settings.every == 0

    left = max(0, -(-video.count // settings.every) - len(log.detections))
    with bar("looking for people", left) as progress:
        for frame in video.frames(is_due):
            boxes = detector(frame.pixels)
            log.add(FrameDetections(frame.number, frame.seconds, boxes[boxes[:, 4] >= WEAK * settings.min_score]))
            progress(1)
    log.finish(last + 1, video.retiming)


def _write_crops(video: Video, out: Path, selected: Sequence[TrackedBox], margin: float, bar: Bar) -> None:
    """Write the crops that do not exist yet."""
    missing: dict[int, list[TrackedBox]] = defaultdict(list)
    for box in selected:
        if not (out / crop_name(box)).exists():
            missing[box.frame].append(box)
    if not missing:
        return
    with bar("cutting out", sum(map(len, missing.values()))) as progress:
        for frame in video.frames(missing.__contains__):
            for box in missing.pop(frame.number):
                stream = io.BytesIO()
                Image.fromarray(cut_out(frame.pixels, box.box, margin)).save(stream, "JPEG", quality=QUALITY)
                write_private(out / crop_name(box), stream.getvalue())
                progress(1)
            if not missing:
                break
    if missing:
        raise DataError(
            f"{video.path}: frame {min(missing)} could be read before and cannot be now; was the video changed?"
        )


def cut_out(pixels: Pixels, box: Sequence[float], margin: float) -> Pixels:
    """Cut a box and its margin out of an image.

    Args:
        pixels: (H, W, 3) uint8.
        box: Left, top, right, bottom in pixels.
        margin: Share of the box's size that is added on each side, within the image.

    Returns:
        The pixels that the enlarged box touches.

    Example:
        >>> cut_out(np.zeros((100, 50, 3), np.uint8), (10.5, 20.0, 29.5, 60.0), margin=0.0).shape
        (40, 20, 3)
    """
    across, down = margin * (box[2] - box[0]), margin * (box[3] - box[1])
    left, top = max(0, math.floor(box[0] - across)), max(0, math.floor(box[1] - down))
    right, bottom = math.ceil(box[2] + across), math.ceil(box[3] + down)
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def _manifest_row(box: TrackedBox, out: Path, manifest: Path, video: Video, settings: Settings) -> dict[str, str]:
    folder = os.path.relpath(out.resolve(), manifest.parent.resolve())
    return {
        "path": Path(folder, crop_name(box)).as_posix(),
        "identity": "",
        "camera": settings.camera,
        "modality": str(settings.modality),
        "category": "person",
        "split": "gallery",
        "time": (settings.start + timedelta(seconds=box.seconds)).isoformat(timespec="milliseconds"),
        # The fingerprint distinguishes tracks of several videos in one manifest.
        "track": f"{video.fingerprint[:8]}-{box.track:05d}",
    }


def _nobody_found(video: Video, detector: Detector, settings: Settings, detections: Sequence[FrameDetections]) -> str:
    boxes = [box for found in detections for box in found.boxes.tolist()]
    best = f"; the best of {len(boxes)} boxes scores {max(box[4] for box in boxes):.2f}" if boxes else ""
    tall = f" and is at most {max(box[3] - box[1] for box in boxes):.0f} pixels tall" if boxes else ""
    return (
        f"{video.path}: {detector.name} found nobody in {len(detections)} frames (--min-score {settings.min_score:g},"
        f" --min-height {settings.min_height:g} pixels, --min-track {settings.min_track}){best}{tall};"
        " try lower bounds or another --detector, in another --out"
    )


def _reaches_end(video: Video, detections: Sequence[FrameDetections]) -> bool:
    """Say whether the last frame stands at the end of the announced time.

    Where the rate varies, the announced number of frames is only an estimate from the time.
    """
    if not video.stamped or len(detections) < 2:
        return False
    longest = max(later.seconds - earlier.seconds for earlier, later in pairwise(detections))
    return detections[-1].seconds + longest >= _COMPLETE * video.count / video.rate


def _doubts(retiming: Retiming, frames: int) -> tuple[str, ...]:
    if not retiming.frames:
        return ()
    joined = (
        f"begin again, as in joined videos (joins: {retiming.restarts})"
        if retiming.restarts
        else "are missing or equal"
    )
    return (
        f"the time stamps of the video {joined}: the times of {retiming.frames} of {frames} frames were changed so that"
        " they rise; check them before using time",
    )


def _warnings(video: Video, settings: Settings, frames: int, detections: Sequence[FrameDetections]) -> tuple[str, ...]:
    warnings = list(video.remarks)
    if frames < _COMPLETE * video.count and not _reaches_end(video, detections):
        warnings.append(f"the file announces {video.count} frames, {frames} can be read: it is cut off or damaged")
    if video.rate / settings.every < _LOW_RATE:
        warnings.append(
            f"{video.rate / settings.every:.2g} frames a second were searched: fast people may become several tracks;"
            " search more frames (--every, --fps)"
        )
    if settings.start == EPOCH:
        warnings.append("times count from 1970-01-01, because the start of the video is unknown (--start)")
    warnings.append("identities are unknown: search and calibration work, nothing can be scored")
    return tuple(warnings)
