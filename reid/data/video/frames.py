"""Frames of a video file or of a folder of pictures, one after the other, each with its time.

Knows files and time stamps; what a frame shows is others' business.  Videos are decoded by OpenCV (extra ``video``),
always from the start: jumping to a frame is not exact in most formats.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reid.data.crop_folder import IMAGE_SUFFIXES
from reid.data.images import read_image
from reid.errors import ConfigError, DataError

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3) uint8, RGB."""

_ENDS = 2**20  # bytes at the start and at the end of a video that tell it from others
_FASTEST = 1000.0  # frames a second; what some files claim beyond it is a mistake


@dataclass(frozen=True)
class Frame:
    """``number`` counts all frames of the film from 0; ``seconds`` since the film began."""

    number: int
    seconds: float
    pixels: Pixels


@dataclass(frozen=True)
class Film(ABC):
    """A video file or folder: ``rate`` frames a second, about ``count`` frames (0: unknown).

    ``fingerprint`` tells it from other films: of a video its length in bytes and the first and last MiB, of a
    folder the names and lengths of its pictures.  With ``stamped`` a frame's time is what the file says, else
    its number by the rate.
    """

    path: Path
    rate: float
    count: int
    fingerprint: str
    stamped: bool

    @abstractmethod
    def frames(self, wanted: Callable[[int], bool]) -> Iterator[Frame]:
        """The frames whose number is ``wanted``, in order."""


def open_film(path: Path, rate: float | None = None) -> Film:
    """The film at ``path``, a video file or a folder of pictures in the natural order of their names.

    ``rate`` (frames a second) replaces what a video says, time stamps too; a folder needs it.
    """
    if rate is not None and not 0 < rate <= _FASTEST:
        raise ConfigError(f"--source-fps {rate:g}: expected frames a second, above 0 and at most {_FASTEST:g}")
    if path.is_dir():
        return _open_folder(path, rate)
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a video file or a folder of pictures")
    return _open_video(path, rate)


def load_cv2() -> Any:
    """OpenCV, which only this feature needs."""
    # Read by OpenCV when it opens a file: no library's own complaints beside ours, and a playlist opens no address.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file")
    try:
        import cv2
    except ImportError:
        raise ConfigError('this needs OpenCV, which is not installed: pip install ".[video]"') from None
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


@dataclass(frozen=True)
class _Pictures(Film):
    files: tuple[Path, ...]

    def frames(self, wanted: Callable[[int], bool]) -> Iterator[Frame]:
        for number, file in enumerate(self.files):
            if wanted(number):
                yield Frame(number, number / self.rate, np.asarray(read_image(file)))


def _open_folder(path: Path, rate: float | None) -> Film:
    files = sorted(
        (file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")),
        key=lambda file: _natural(file.name),
    )
    if not files:
        raise DataError(f"{path}: no pictures in it; expected frames that end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    if rate is None:
        raise ConfigError(f"{path}: a folder does not say how many frames a second it shows; tell it by --source-fps")
    told = "\n".join(f"{file.name}\t{file.stat().st_size}" for file in files)
    digest = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()
    return _Pictures(path, rate, len(files), digest, False, tuple(files))


def _natural(name: str) -> list[tuple[int, str]]:
    """frame2 before frame10; names that differ in zeros before a number only keep an order, too."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
    return [*parts, (-1, name)]


@dataclass(frozen=True)
class _Video(Film):
    def frames(self, wanted: Callable[[int], bool]) -> Iterator[Frame]:
        cv2 = load_cv2()
        capture = _capture(cv2, self.path)
        try:
            number = 0
            while capture.grab():
                if wanted(number):
                    decoded, pixels = capture.retrieve()
                    if not decoded:
                        return
                    milliseconds = capture.get(cv2.CAP_PROP_POS_MSEC) if self.stamped else 0.0
                    seconds = milliseconds / 1000 if milliseconds > 0 else number / self.rate
                    yield Frame(number, round(seconds, 3), cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
                number += 1
        finally:
            capture.release()


def _open_video(path: Path, rate: float | None) -> Film:
    cv2 = load_cv2()
    capture = _capture(cv2, path)
    try:
        told, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        if not capture.grab():
            raise DataError(f"{path}: the video shows no frame; it is empty, cut off or of an unknown kind")
    finally:
        capture.release()
    if rate is None and not (math.isfinite(told) and 0 < told <= _FASTEST):
        raise ConfigError(f"{path}: the video does not say how many frames a second it shows; tell it by --source-fps")
    number = int(count) if math.isfinite(count) and count > 0 else 0
    return _Video(path, rate or float(told), number, _ends(path), rate is None)


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


def _ends(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_ENDS))
        file.seek(max(0, size - _ENDS))
        digest.update(file.read(_ENDS))
    return digest.hexdigest()
