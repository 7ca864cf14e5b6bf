"""Find out what a folder of somebody's cameras holds: crops, videos, or a manifest that was written before."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from reid.data.crop_folder import MANIFEST
from reid.data.file_times import read_time
from reid.data.folder_layouts import list_files
from reid.data.images import IMAGE_SUFFIXES
from reid.errors import DataError

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".avi", ".mkv", ".mov", ".m4v", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".3gp", ".ogv"}
)
_TIME = re.compile(r"\d{4}\D?\d\d\D?\d\d\D{0,3}\d\d\D?\d\d\D?\d\d([.,]\d+)?")  # year to second, in the name of a video


@dataclass(frozen=True)
class SiteFolder:
    """What a folder holds.

    Args:
        folder: The folder.
        images: The images below it, sorted.
        videos: The videos below it, sorted.
        manifest: Its manifest; None where it has none.
    """

    folder: Path
    images: tuple[Path, ...]
    videos: tuple[Path, ...]
    manifest: Path | None


@dataclass(frozen=True)
class VideoOrigin:
    """Where and when a video was recorded, as its place in the folder and its name tell.

    Args:
        path: The video.
        camera: The name of the camera.
        start: The time at which it begins, ISO 8601; "" where the name does not tell.
        name: A name that no other video of the folder has, for the folder of its crops.
    """

    path: Path
    camera: str
    start: str
    name: str


def find_in_folder(folder: Path) -> SiteFolder:
    """Look at all files below a folder.

    Args:
        folder: The folder; hidden files are left out and links are followed.

    Returns:
        What it holds.

    Raises:
        DataError: The folder is missing, or holds neither images nor videos nor a manifest.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with crops or videos of your cameras")
    files = [path for path in list_files(folder).files if path.is_file()]
    images = tuple(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES)
    videos = tuple(path for path in files if path.suffix.lower() in VIDEO_SUFFIXES)
    manifest = folder / MANIFEST if (folder / MANIFEST).is_file() else None
    if not (images or videos or manifest):
        raise DataError(
            f"{folder}: holds neither images nor videos; expected crops as camera/identity/*.jpg, or videos as"
            " camera.mp4 or camera/*.mp4"
        )
    return SiteFolder(folder, images, videos, manifest)


def origins_of(folder: Path, videos: Iterable[Path]) -> list[VideoOrigin]:
    """Read camera and time of each video from its path.

    The camera is the first folder below ``folder``, or the name of the video without a time in it.

    Args:
        folder: The folder.
        videos: Videos below it.

    Returns:
        One origin for each video, in the same order.

    Example:
        >>> for one in origins_of(Path("v"), [Path("v/north_20240531-162000.mp4"), Path("v/south/1.mp4")]):
        ...     one.camera, one.start, one.name
        ('north', '2024-05-31T16:20:00', 'north_20240531-162000')
        ('south', '', 'south-1')
    """
    origins: list[VideoOrigin] = []
    for path in videos:
        inside = path.relative_to(folder)
        match, start = _TIME.search(path.stem), ""
        if match:
            with suppress(ValueError):
                start = read_time(match[0]).isoformat()
        rest = path.stem.replace(match[0], " ") if match and start else path.stem
        camera = inside.parts[0] if len(inside.parts) > 1 else " ".join(rest.split()).strip(" _-.") or "camera"
        name = "-".join([*inside.parts[:-1], path.stem]).lstrip(".-") or "video"
        taken = {origin.name for origin in origins}
        number = 2
        while name in taken:
            name, number = f"{name.removesuffix(f'-{number - 1}')}-{number}", number + 1
        origins.append(VideoOrigin(path, camera, start, name))
    return origins
