"""Read the frames of a video file or of a folder of images in order, each with its time.

OpenCV (the extra ``video``) decodes video files.  It always starts at the first frame, because jumping to a frame is
not exact in most formats.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reid.data.images import IMAGE_SUFFIXES, read_image
from reid.errors import ConfigError, DataError

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3) uint8, RGB."""

_HASHED_BYTES = 2**20  # at the start and at the end of a video; they distinguish it from others
_WIDEST = 8.0  # times that a pixel may be wider than high; some files state more by mistake
_SAME_TIME = 0.0005  # seconds
_FASTEST = 1000.0  # frames a second; some files state more by mistake


@dataclass(frozen=True)
class Frame:
    """One frame: its number in the video from 0, its time in seconds since the first frame, and its pixels."""

    number: int
    seconds: float
    pixels: Pixels


@dataclass
class Retiming:
    """What the last reading of a video had to mend in the times of its frames.

    Args:
        frames: How many frames have another time than the file states, or none there.
        restarts: How many times the stamps began again, as where videos were joined.
    """

    frames: int = 0
    restarts: int = 0


@dataclass(frozen=True)
class Video(ABC):
    """A video file or a folder of frames.

    Args:
        path: The file or folder.
        rate: Frames a second.
        count: About how many frames there are; 0 when unknown.
        fingerprint: A hash that distinguishes the video from others.  Of a file its size and its first and last MiB are
            hashed, of a folder the names and sizes of its images.
        stamped: The times of frames come from the file; otherwise they follow from the number and the rate.
        pixel_aspect: How many times wider than high a stored pixel is; frames are stretched to square pixels.
        remarks: What a user should know about the video, one sentence each.
        retiming: Is filled while the frames are read.
    """

    path: Path
    rate: float
    count: int
    fingerprint: str
    stamped: bool
    pixel_aspect: float = field(default=1.0, kw_only=True)
    remarks: tuple[str, ...] = field(default=(), kw_only=True)
    retiming: Retiming = field(default_factory=Retiming, kw_only=True, compare=False)

    @abstractmethod
    def frames(self, wanted: Callable[[int], bool]) -> Iterator[Frame]:
        """Yield in order the frames for whose number ``wanted`` returns true."""


def open_video(path: Path, rate: float | None = None) -> Video:
    """Open a video file, or a folder of images in the natural order of their names.

    Args:
        path: The file or folder.
        rate: Frames a second.  A folder needs it; for a file it replaces the rate and the time stamps of the file.

    Returns:
        The video.

    Raises:
        ConfigError: The rate is missing or out of range, or OpenCV is not installed.
        DataError: There is no such video, or it has no frame.
    """
    if rate is not None and not 0 < rate <= _FASTEST:
        raise ConfigError(f"--source-fps {rate:g}: expected frames a second, above 0 and at most {_FASTEST:g}")
    if path.is_dir():
        return _open_frame_folder(path, rate)
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a video file or a folder of images")
    return _open_video_file(path, rate)


def load_cv2() -> Any:
    """Import OpenCV, which only reading videos needs.

    Raises:
        ConfigError: It is not installed.
    """
    # OpenCV reads these variables when it opens a file: the first keeps the libraries below it from printing messages
    # beside ours, the second keeps a playlist from opening network addresses.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file")
    try:
        import cv2
    except ImportError:
        raise ConfigError('this needs OpenCV, which is not installed: pip install ".[video]"') from None
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


@dataclass(frozen=True)
class _FrameFolder(Video):
    files: tuple[Path, ...]
    moments: tuple[int, ...]  # the position of each file in the video, which is not its number where frames are missing

    def frames(self, wanted: Callable[[int], bool]) -> Iterator[Frame]:
        for number, (file, moment) in enumerate(zip(self.files, self.moments, strict=True)):
            if wanted(number):
                yield Frame(number, moment / self.rate, np.asarray(read_image(file)))


def _open_frame_folder(path: Path, rate: float | None) -> Video:
    files = sorted(
        (file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")),
        key=lambda file: _natural_order(file.name),
    )
    if not files:
        raise DataError(f"{path}: no images in it; expected frames that end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    if rate is None:
        raise ConfigError(f"{path}: a folder does not say how many frames a second it shows; give it by --source-fps")
    listing = "\n".join(f"{file.name}\t{file.stat().st_size}" for file in files)
    digest = hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()
    moments, remarks = _moments([file.stem for file in files])
    by_number = moments != tuple(range(len(files)))
    return _FrameFolder(path, rate, len(files), digest, by_number, tuple(files), moments, remarks=remarks)


def _moments(names: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Find the position of each frame in the video by the numbers in the names, and say where frames are missing."""
    matches = [re.fullmatch(r"(.*?)(\d+)(\D*)", name, re.DOTALL) for name in names]
    numbers = [int(match[2]) for match in matches if match is not None]
    order = tuple(range(len(names)))
    one_series = len({(match[1], match[3]) for match in matches if match is not None}) == 1
    steps = [later - earlier for earlier, later in pairwise(numbers)]
    if len(numbers) < len(names) or not one_series or not steps or min(steps) < 1:
        return order, ()
    step = math.gcd(*steps)  # every fifth frame may have been stored
    moments = tuple((number - numbers[0]) // step for number in numbers)
    missing = moments[-1] + 1 - len(moments)
    if not missing:
        return order, ()
    first = next(row for row, size in enumerate(steps) if size > step)
    gap = f"the names skip {missing} numbers, first after {names[first]}"
    if missing > len(names):  # they may be times, or the numbers of something else
        return order, (f"{gap}; times follow the order of the files, as if nothing were missing",)
    return moments, (f"{gap}; times follow the numbers",)


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Make a key that sorts frame2 before frame10; the whole name at the end separates frame2 from frame02."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
    return [*parts, (-1, name)]


@dataclass(frozen=True)
class _VideoFile(Video):
    def frames(self, wanted: Callable[[int], bool]) -> Iterator[Frame]:
        cv2 = load_cv2()
        capture = _capture(cv2, self.path)
        try:
            clock = _Clock(self.rate, self.retiming)
            number = 0
            while capture.grab():
                seconds = clock.read(capture.get(cv2.CAP_PROP_POS_MSEC)) if self.stamped else number / self.rate
                if wanted(number):
                    decoded, pixels = capture.retrieve()
                    if not decoded:
                        return
                    square = _stretched(cv2, pixels, self.pixel_aspect)
                    yield Frame(number, round(seconds, 3), cv2.cvtColor(square, cv2.COLOR_BGR2RGB))
                number += 1
        finally:
            capture.release()


class _Clock:
    """Turns time stamps into rising times; where videos were joined, the stamps begin again."""

    def __init__(self, rate: float, retiming: Retiming) -> None:
        self._retiming = retiming
        retiming.frames = retiming.restarts = 0
        self._frame = 1 / rate
        self._offset = 0.0
        self._last = -self._frame

    def read(self, milliseconds: float) -> float:
        """Return the seconds of the next frame; a frame without a stamp follows the last one."""
        seconds = milliseconds / 1000 + self._offset if milliseconds > 0 else self._last + self._frame
        if seconds < self._last - self._frame:
            self._retiming.restarts += 1
            self._offset += self._last + self._frame - seconds
            seconds = self._last + self._frame
        elif seconds <= self._last:
            seconds = self._last + 0.001
        self._retiming.frames += abs(seconds - milliseconds / 1000) > _SAME_TIME
        self._last = seconds
        return seconds


def _stretched(cv2: Any, pixels: Any, aspect: float) -> Any:
    """Enlarge a frame (H, W, 3) so that its pixels are square."""
    if aspect == 1.0:
        return pixels
    height, width = pixels.shape[:2]
    size = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)


def _pixel_aspect(wide: float, high: float) -> float:
    """Return the aspect of a pixel; 1 where the file does not state a possible one."""
    if not (math.isfinite(wide) and math.isfinite(high) and wide > 0 and high > 0):
        return 1.0
    return wide / high if 1 / _WIDEST <= wide / high <= _WIDEST else 1.0


def _open_video_file(path: Path, rate: float | None) -> Video:
    cv2 = load_cv2()
    capture = _capture(cv2, path)
    try:
        stated_rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        aspect = _pixel_aspect(capture.get(cv2.CAP_PROP_SAR_NUM), capture.get(cv2.CAP_PROP_SAR_DEN))
        if not capture.grab():
            raise DataError(f"{path}: the video shows no frame; it is empty, cut off or of an unknown format")
    finally:
        capture.release()
    if rate is None and not (math.isfinite(stated_rate) and 0 < stated_rate <= _FASTEST):
        raise ConfigError(f"{path}: the video does not say how many frames a second it shows; give it by --source-fps")
    number = int(count) if math.isfinite(count) and count > 0 else 0
    rate_used = rate or float(stated_rate)
    return _VideoFile(path, rate_used, number, _fingerprint(path), rate is None, pixel_aspect=aspect)


def _capture(cv2: Any, path: Path) -> Any:
    try:
        path.open("rb").close()
    except PermissionError:
        raise DataError(f"{path}: no permission to read the video") from None
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise DataError(
            f"{path}: not a video in a known format (MP4, AVI, MKV, ...) or cut off; expected one or a folder of frames"
        )
    return capture


def _fingerprint(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_HASHED_BYTES))
        file.seek(max(0, size - _HASHED_BYTES))
        digest.update(file.read(_HASHED_BYTES))
    return digest.hexdigest()
