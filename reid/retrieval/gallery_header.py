"""The header of a gallery folder: ``header.json`` lists the data files with their checksums."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reid.errors import GalleryError
from reid.retrieval.sample_table import first_line

HEADER = "header.json"
FORMAT = "reid-gallery"
VERSION = 1
MAX_HEADER_BYTES = 2**20
REBUILD = 'build it again with "reid index build"'
DATA_NAME = re.compile(r"data-[0-9a-f]{16}\.([\w-]+(?:\.[\w-]+)*)")  # the name of a data file ends with its suffix

_GENERATION = re.compile("[0-9a-f]{16}")
_SHA256 = re.compile("[0-9a-f]{64}")


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
    content = header_bytes(folder)
    if not (folder / HEADER).exists():
        raise GalleryError(
            f"{folder}: not a gallery, or one that was not written to its end: there is no {HEADER}; {REBUILD}"
        )
    try:
        header = json.loads(content.decode("utf-8"))
        known, version = header["format"] == FORMAT, header["version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise GalleryError(f"{folder}: {HEADER} is damaged ({first_line(error)}); {REBUILD}") from error
    if not known:
        raise GalleryError(f"{folder}: {HEADER} is not that of a gallery; {REBUILD}")
    if version != VERSION:
        raise GalleryError(f"{folder}: gallery version {version}, this program reads {VERSION}; {REBUILD}")
    check = header.pop("check", None)  # version 0.1.0 wrote none
    if check not in (None, _checksum(header)) or not _lists_own_files(header):
        raise GalleryError(f"{folder}: {HEADER} is damaged, it is not what was written; {REBUILD}")
    return dict(header)


def _lists_own_files(header: Mapping[str, Any]) -> bool:
    """Whether every name in a header is one that a gallery writes, so that no other file can be taken for data."""
    try:
        return _GENERATION.fullmatch(header["generation"]) is not None and all(
            (name := DATA_NAME.fullmatch(entry["name"])) is not None
            and name[1] == suffix
            and type(entry["bytes"]) is int
            and _SHA256.fullmatch(entry["sha256"]) is not None
            for suffix, entry in header["files"].items()
        )
    except (KeyError, TypeError, AttributeError):
        return False


def encode_header(header: Mapping[str, Any]) -> str:
    """Return the text of a header, which ends with a checksum of the rest."""
    return json.dumps({**header, "check": _checksum(header)}, indent=2) + "\n"


def _checksum(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
