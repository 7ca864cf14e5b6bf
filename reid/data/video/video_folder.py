"""What an ingest leaves on the disk: its settings, what was found in each frame, crops, and rows of a manifest.

Everything shows people, so only the owner may read it.  A file appears whole or not at all, except the list of what
was found, which grows by a line a frame and whose broken last line is dropped when work goes on.  Nothing here knows
films or detectors.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np

from reid.data.manifest import COLUMNS, read_manifest
from reid.data.video.tracking import FrameDetections
from reid.errors import ConfigError, DataError
from reid.files import is_part, write_whole
from reid.old_names import current_fields

SETTINGS = "ingest.json"
FOUND = "found.jsonl"
MANIFEST = "manifest.csv"
LOCK = f".{MANIFEST}.lock"
FORMAT = "reid-ingest-1"
HEADER = (*COLUMNS, "time", "track")
_DIFFERS = {  # what is said otherwise than by an option and its values
    "fingerprint": "of {film}, not of this film",
    "stamped": "with other times of frames (--source-fps)",
    "every": "to look at one frame of {old}, not of {new} (--every, --fps)",
}
_UNTOLD = "film"  # of the settings, what is told but may change: a film that was renamed is the same film


@contextmanager
def claimed(folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Hold ``folder`` for an ingest with ``settings``, alone; it is new, empty, or was begun with the same ones."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{folder}: expected a folder for the crops, this is a file; choose another name") from None
    except OSError as error:
        raise ConfigError(
            f"{folder}: this folder cannot be made ({error.strerror}); choose another place as --out"
        ) from error
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another ingest is at work in it; wait for it, or choose another --out"
            ) from None
        _check_settings(folder, settings)
        _sweep(folder)
        if not (folder / SETTINGS).exists():
            folder.chmod(0o700)
            keep(folder / SETTINGS, (json.dumps({"format": FORMAT, **settings}, indent=2) + "\n").encode())
        yield
    finally:
        os.close(descriptor)


def option(name: str) -> str:
    """How the command line calls a setting."""
    return {"max_crops": "--max-crops-per-track", "rate": "--source-fps"}.get(name, f"--{name.replace('_', '-')}")


def _sweep(folder: Path) -> None:
    """Remove what a run that was killed left half written; another one may be at work on the manifest there."""
    with _locked(folder) if any(map(is_part, folder.iterdir())) else nullcontext():
        for part in filter(is_part, folder.iterdir()):
            part.unlink()


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / SETTINGS
    if not path.exists():
        strangers = [file.name for file in folder.iterdir() if not (is_part(file) or file.name == LOCK)]
        if strangers:
            raise ConfigError(f'{folder}: holds "{min(strangers)}" and is no ingest; choose an empty folder as --out')
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        known = before.pop("format") == FORMAT
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise ConfigError(f"{path}: damaged or of another version; choose another --out, or delete the folder")
    for name in (*settings, *before):
        old, new = before.get(name), settings.get(name)
        if name != _UNTOLD and old != new:
            told = _DIFFERS.get(name, "with {option} {old}, not {new}").format(
                option=option(name), old=old, new=new, film=before.get(_UNTOLD)
            )
            raise ConfigError(f"{folder}: was begun {told}; choose another --out, or delete the folder")


def keep(path: Path, content: bytes) -> None:
    """Write ``path``, readable by the owner only; DataError that says how to go on where that is not possible."""
    try:
        write_whole(path, lambda part: part.write_bytes(content))
    except OSError as error:
        raise DataError(_unwritable(path, error)) from error


def _unwritable(path: Path, error: OSError) -> str:
    return f"{path}: cannot be written ({error.strerror}); mend that, then the same command goes on where it stopped"


class FoundFile:
    """The list of what was found, a line a frame that was looked at; a last line says how many frames there are."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FOUND
        self.looks: list[FrameDetections] = []
        self.frames: int | None = None
        length = self._read()
        descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600)
        self._file: IO[bytes] = os.fdopen(descriptor, "r+b", buffering=0)
        self._file.truncate(length)
        self._file.seek(length)

    def _read(self) -> int:
        """Read whole lines; how many bytes they have."""
        length = 0
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else ():
            try:
                row = json.loads(line)
                if not line.endswith(b"\n"):
                    break
                if "frames" in row:
                    self.frames = int(row["frames"])
                else:
                    boxes = np.array(row["boxes"], np.float32).reshape(-1, 5)
                    self.looks.append(FrameDetections(int(row["frame"]), float(row["seconds"]), boxes))
            except (ValueError, KeyError, TypeError):
                break
            length += len(line)
        return length

    def add(self, look: FrameDetections) -> None:
        """Append a look; positions are kept to a tenth of a pixel, scores to four digits."""
        boxes = [[*(round(v, 1) for v in box[:4]), round(box[4], 4)] for box in look.boxes.astype(float).tolist()]
        self._write({"frame": look.frame, "seconds": look.seconds, "boxes": boxes})
        self.looks.append(FrameDetections(look.frame, look.seconds, np.array(boxes, np.float32).reshape(-1, 5)))

    def finish(self, frames: int) -> None:
        """Say that all of the film was looked at, and how many frames it has."""
        self._write({"frames": frames})
        os.fsync(self._file.fileno())
        self.frames = frames

    def close(self) -> None:
        """Close the file; what was added stays."""
        self._file.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        content = (json.dumps(row, separators=(",", ":")) + "\n").encode()
        try:
            while content:  # a disk that fills up takes a part first
                content = content[self._file.write(content) :]
        except OSError as error:
            raise DataError(_unwritable(self.path, error)) from error


def read_columns(path: Path) -> list[str]:
    """The header of a manifest to append to; it must be CSV and have the columns that an ingest fills."""
    if path.suffix.lower() != ".csv":
        raise ConfigError(f"--append-to {path}: expected a CSV manifest")
    read_manifest(path)  # whatever is wrong with it is told before work is spent
    with path.open(newline="", encoding="utf-8-sig") as file:
        names = next(csv.reader(file, skipinitialspace=True))
    header = list(current_fields(name.strip().lower() for name in names))
    if sorted(header) != sorted(HEADER):
        raise ConfigError(
            f"--append-to {path}: columns {', '.join(header)}; expected those of an ingest: {', '.join(HEADER)}"
        )
    return header


def add_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> int:
    """Append to the manifest ``path``, or begin it, those ``rows`` whose picture is not in it yet; how many were.

    What stands there stays byte for byte: somebody may have labelled it since.
    """
    with _locked(path.parent):
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
        writer.writerows(new)
        if new:
            keep(path, (text + stream.getvalue()).encode("utf-8"))
        return len(new)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the manifest of ``folder`` while it is changed; apart from the lock of an ingest at work there."""
    descriptor = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
