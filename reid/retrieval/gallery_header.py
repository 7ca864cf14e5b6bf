"""The header of a gallery folder: ``header.json`` lists the data files with their sizes and checksums.

Version 2 lists segments, each with its vectors, the table of its rows and the positions of its deleted rows, and files
that belong to the gallery as a whole, such as its network. Version 1, which the program wrote at first, has one index
and one table of samples.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reid.errors import GalleryError
from reid.retrieval.row_table import first_line
from reid.structured_text import parse_json

HEADER = "header.json"
FORMAT = "reid-gallery"
VERSION = 2
READABLE = (1, 2)
MAX_HEADER_BYTES = 2**22
REBUILD = 'build it again with "reid index build"'
DATA_NAME = re.compile(r"data-[0-9a-f]{16}\.([\w-]+(?:\.[\w-]+)*)")  # the name of a data file ends with its suffix
VECTORS, ROWS, DELETED = "vectors.npy", "rows.parquet", "deleted.npy"  # suffixes of the files of a segment
THUMBNAILS = "thumbnails.npy"  # of segments whose rows were added with thumbnails
CODES = "codes.npy"  # of large segments: short codes, by which searches are fast; derived from the vectors
OLD_INDEX, OLD_SAMPLES = "index", "samples"  # of version 1
INDEX = "neighbours.index"  # the approximate index, which is derived from the vectors

_GENERATION = re.compile("[0-9a-f]{16}")
_SHA256 = re.compile("[0-9a-f]{64}")
_WRITTEN_ANEW = ("format", "version", "generation", "check")


def header_bytes(folder: Path) -> bytes:
    """Return the bytes of the header; none where it is missing or no regular file."""
    path = folder / HEADER
    if not path.is_file():  # a pipe of this name would never end
        return b""
    with path.open("rb") as stream:
        return stream.read(MAX_HEADER_BYTES)


def header_if_readable(folder: Path) -> dict[str, Any] | None:
    """Return the header, or None where it is missing or damaged."""
    try:
        return read_header(folder)
    except GalleryError:
        return None


def read_header(folder: Path) -> dict[str, Any]:
    """Read and check the header of a gallery.

    Raises:
        GalleryError: It is missing or damaged, or of something else.
    """
    if not folder.is_dir():
        raise GalleryError(f'{folder}: no gallery there; build one with "reid index build"')
    try:
        content, exists = header_bytes(folder), (folder / HEADER).exists()
    except OSError as error:
        raise GalleryError(f"{folder}: the gallery cannot be read ({error.strerror or error})") from error
    if not exists:
        raise GalleryError(
            f"{folder}: not a gallery, or one that was not written to its end: there is no {HEADER}; {REBUILD}"
        )
    try:
        header = parse_json(content.decode("utf-8"))
        known, version = header["format"] == FORMAT, header["version"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GalleryError(f"{folder}: {HEADER} is damaged ({first_line(error)}); {REBUILD}") from error
    if not known:
        raise GalleryError(f"{folder}: {HEADER} is not that of a gallery; {REBUILD}")
    if type(version) is not int or version not in READABLE:
        raise GalleryError(f"{folder}: gallery version {version}, this program reads 1 and {VERSION}; {REBUILD}")
    check = header.pop("check", None)  # version 0.1.0 wrote none
    if (check is None and version > 1) or check not in (None, _checksum(header)) or not _is_whole(header):
        raise GalleryError(f"{folder}: {HEADER} is damaged, it is not what was written; {REBUILD}")
    return dict(header)


def listed_files(header: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the entry of every data file that a header lists: its name, size in bytes and SHA-256."""
    yield from header["files"].values()
    for segment in header.get("segments", ()):
        yield from segment["files"].values()


def _is_whole(header: Mapping[str, Any]) -> bool:
    """Whether a header has what a gallery needs, and lists only names that a gallery writes.

    So no other file can be taken for data.
    """
    try:
        tables = [header["files"], *(segment["files"] for segment in header.get("segments", ()))]
        return (
            _GENERATION.fullmatch(header["generation"]) is not None
            and all(_is_entry(suffix, entry) for files in tables for suffix, entry in files.items())
            and (header["version"] == 1 or _has_segments(header))
        )
    except (KeyError, TypeError, AttributeError):
        return False


def _is_entry(suffix: str, entry: Mapping[str, Any]) -> bool:
    name = DATA_NAME.fullmatch(entry["name"])
    return (
        name is not None
        and name[1] == suffix
        and type(entry["bytes"]) is int
        and _SHA256.fullmatch(entry["sha256"]) is not None
    )


def _has_segments(header: Mapping[str, Any]) -> bool:
    numbers_are_right = all(type(header[name]) is int for name in ("dimension", "count", "next_id"))
    return (
        numbers_are_right
        and type(header["fingerprint"]) is str
        and all(
            {VECTORS, ROWS} <= segment["files"].keys() <= {VECTORS, ROWS, DELETED, CODES, THUMBNAILS}
            and type(segment["rows"]) is int
            for segment in header["segments"]
        )
    )


def facts_of(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a new header takes over from an old one."""
    return {key: value for key, value in header.items() if key not in _WRITTEN_ANEW}


def encode_header(header: Mapping[str, Any]) -> str:
    """Return the text of a header, which ends with a checksum of the rest."""
    return json.dumps({**header, "check": _checksum(header)}, indent=2) + "\n"


def _checksum(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
