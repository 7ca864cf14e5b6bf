"""The folder that an ingest writes: its settings, the boxes found in each frame, the crops, and a manifest.

The crops show people, so only the owner may read the files.  A file appears whole or not at all, except the log of
detections: it grows by a line for each frame, and a broken last line is dropped when the ingest continues.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from reid.data.label_text import defuse
from reid.data.manifest import COLUMNS, read_manifest
from reid.data.manifest_columns import name_columns
from reid.data.video.frames import Retiming
from reid.data.video.tracking import FrameDetections
from reid.errors import ConfigError, DataError
from reid.files import is_part, locked, remove_partial_files, write_whole
from reid.structured_text import parse_json, read_json

SETTINGS = "ingest.json"
DETECTIONS = "found.jsonl"
MANIFEST = "manifest.csv"
LOCK = f".{MANIFEST}.lock"
FORMAT = "reid-ingest-1"
HEADER = (*COLUMNS, "time", "track")
VIDEO_NAME = "film"  # the key of the video's name in the settings file; a renamed video is still the same video
_DIFFERENCES = {  # descriptions of settings that differ, where an option and its values do not describe it
    "fingerprint": "of {name}, not of this video",
    "stamped": "with other times of frames (--source-fps)",
    "pixel_aspect": "with pixels of another shape",
    "every": "to look at one frame of {old}, not of {new} (--every, --fps)",
}


@contextmanager
def hold_folder(folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Reserve a folder for one ingest while the ``with`` block runs.

    A new folder is created, and the settings are written into it.

    Args:
        folder: A folder that is new, empty, or was begun with the same settings.
        settings: What the crops depend on.

    Raises:
        ConfigError: Another ingest uses the folder, it was begun with other settings, or it holds something else.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{folder}: expected a folder for the crops, this is a file; choose another name") from None
    except OSError as error:
        raise ConfigError(
            f"{folder}: this folder cannot be made ({error.strerror}); choose another place as --out"
        ) from error
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, wait=False))
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another ingest is at work in it; wait for it, or choose another --out"
            ) from None
        _check_settings(folder, settings)
        _remove_partial_files(folder)
        if not (folder / SETTINGS).exists():
            folder.chmod(0o700)
            write_private(folder / SETTINGS, (json.dumps({"format": FORMAT, **settings}, indent=2) + "\n").encode())
        yield


def option(name: str) -> str:
    """Return the option of the command line for a setting.

    Example:
        >>> option("min_score")
        '--min-score'
    """
    return {"max_crops": "--max-crops-per-track", "rate": "--source-fps"}.get(name, f"--{name.replace('_', '-')}")


def _remove_partial_files(folder: Path) -> None:
    """Remove what a killed run left; the lock waits for an ingest that may be writing the manifest of the folder."""
    with locked(folder / LOCK) if any(map(is_part, folder.iterdir())) else nullcontext():
        remove_partial_files(folder)
        for part in filter(is_part, folder.iterdir()):
            if part.is_file():
                part.unlink()


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / SETTINGS
    if not path.exists():
        others = [file.name for file in folder.iterdir() if not (is_part(file) or file.name == LOCK)]
        if others:
            raise ConfigError(f'{folder}: holds "{min(others)}" and is no ingest; choose an empty folder as --out')
        return
    try:
        before = read_json(path)
        known = before.pop("format") == FORMAT
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise ConfigError(f"{path}: damaged or of another version; choose another --out, or delete the folder")
    for name in (*settings, *before):
        old, new = before.get(name), settings.get(name)
        if name != VIDEO_NAME and old != new:
            difference = _DIFFERENCES.get(name, "with {option} {old}, not {new}").format(
                option=option(name), old=old, new=new, name=before.get(VIDEO_NAME)
            )
            raise ConfigError(f"{folder}: was begun {difference}; choose another --out, or delete the folder")


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only the owner can read.

    Raises:
        DataError: The file cannot be written; the message tells how to continue.
    """
    try:
        write_whole(path, lambda part: part.write_bytes(content))
    except OSError as error:
        raise DataError(_not_writable(path, error)) from error


def _not_writable(path: Path, error: OSError) -> str:
    return f"{path}: cannot be written ({error.strerror}); mend that, then the same command goes on where it stopped"


class DetectionLog:
    """The boxes of each frame, one line a frame; a last line tells how many frames the video has.

    ``detections`` holds the frames that the log has, and ``frames`` the number of frames, or None until all of them
    have been searched.  ``retiming`` tells then which times were mended.

    Args:
        folder: The folder of the ingest; an existing log is read and continued.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / DETECTIONS
        self.detections: list[FrameDetections] = []
        self.frames: int | None = None
        self.retiming = Retiming()
        length = self._read()
        descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600)
        self._file: IO[bytes] = os.fdopen(descriptor, "r+b", buffering=0)
        self._file.truncate(length)
        self._file.seek(length)

    def _read(self) -> int:
        """Read complete lines and return their length in bytes."""
        length = 0
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else ():
            try:
                row = parse_json(line.decode("utf-8"))
                if not line.endswith(b"\n"):
                    break
                if "frames" in row:
                    self.frames = int(row["frames"])
                    self.retiming = Retiming(int(row.get("retimed", 0)), int(row.get("restarts", 0)))
                else:
                    boxes = np.array(row["boxes"], np.float32).reshape(-1, 5)
                    self.detections.append(FrameDetections(int(row["frame"]), float(row["seconds"]), boxes))
            except (ValueError, KeyError, TypeError):
                break
            length += len(line)
        return length

    def add(self, found: FrameDetections) -> None:
        """Append the boxes of a frame, rounded to a tenth of a pixel and scores to four digits."""
        boxes = [[*(round(v, 1) for v in box[:4]), round(box[4], 4)] for box in found.boxes.astype(float).tolist()]
        self._write({"frame": found.frame, "seconds": found.seconds, "boxes": boxes})
        rounded = np.array(boxes, np.float32).reshape(-1, 5)
        self.detections.append(FrameDetections(found.frame, found.seconds, rounded))

    def finish(self, frames: int, retiming: Retiming) -> None:
        """Record that all ``frames`` frames of the video have been searched, and what was mended in their times."""
        mended = {"retimed": retiming.frames, "restarts": retiming.restarts} if retiming.frames else {}
        self._write({"frames": frames, **mended})
        self.retiming = replace(retiming)  # reading the frames again, to cut out crops, begins to count anew
        os.fsync(self._file.fileno())
        self.frames = frames

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        content = (json.dumps(row, separators=(",", ":")) + "\n").encode()
        try:
            while content:  # a full disk may take only a part of it
                content = content[self._file.write(content) :]
        except OSError as error:
            raise DataError(_not_writable(self.path, error)) from error


def read_columns(path: Path) -> list[str]:
    """Read the header of a manifest that rows will be appended to.

    Raises:
        ConfigError: It is not a CSV, or lacks a column of an ingest.
        DataError: It is no manifest.
    """
    if path.suffix.lower() != ".csv":
        raise ConfigError(f"--append-to {path}: expected a CSV manifest")
    read_manifest(path)  # so that errors in it are found before frames are searched
    with path.open(newline="", encoding="utf-8-sig") as file:
        names = next(csv.reader(file, skipinitialspace=True))
    header = list(name_columns(str(path), names).names)
    if sorted(header) != sorted(HEADER):
        raise ConfigError(
            f"--append-to {path}: columns {', '.join(header)}; expected those of an ingest: {', '.join(HEADER)}"
        )
    return header


def add_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> int:
    """Append rows to a manifest, or begin it, except those whose image it already lists.

    The rows that the manifest already has stay byte for byte, because the user may have labelled them.

    Args:
        path: The manifest.
        rows: Cells by column.

    Returns:
        How many rows were added.

    Raises:
        ConfigError: The manifest is not one that rows can be appended to.
        DataError: It cannot be read or written.
    """
    with locked(path.parent / LOCK):
        text, header, known = "", list(HEADER), set()
        if path.exists():
            header = read_columns(path)
            known = {os.path.realpath(sample.path) for sample in read_manifest(path)}
            text = path.read_bytes().decode("utf-8")
            text += "" if text.endswith("\n") else "\n"
        new = [row for row in rows if os.path.realpath(path.parent / row["path"]) not in known]
        stream = io.StringIO()
        writer = csv.DictWriter(stream, header, lineterminator="\n")
        if not text:
            writer.writeheader()
        # A path begins with a dot or the number of a track, so only labels can look like a formula.
        writer.writerows({name: defuse(cell) for name, cell in row.items()} for row in new)
        if new:
            write_private(path, (text + stream.getvalue()).encode("utf-8"))
        return len(new)
