"""Receipts: what was erased from a gallery folder and when, without names, labels or paths.

The log only grows. Each line holds a hash of the line before it, so that a line that is changed or taken out shows. A
receipt is part of the header that makes its erasure count, and is copied to the log afterwards; where a program is
stopped in between, the next writer copies it before it replaces that header.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reid.errors import GalleryError
from reid.files import sync
from reid.structured_text import parse_json

RECEIPTS_FILE = "receipts.jsonl"  # in the folder of a gallery

_LOG = logging.getLogger(__name__)


def new_receipt(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a receipt with an id and the time.

    Args:
        facts: What was done; nothing that tells who was erased.
    """
    return {"id": secrets.token_hex(8), "time": datetime.now(UTC).isoformat(timespec="seconds"), **facts}


def write_receipt(folder: Path, receipt: Mapping[str, Any] | None) -> None:
    """Append a receipt to the log of a gallery folder, unless it is there; the caller holds the folder's lock.

    Args:
        folder: The folder.
        receipt: The receipt; None does nothing.

    Raises:
        GalleryError: Something else has the name of the log, such as a folder or a pipe.
        OSError: The log cannot be written.
    """
    path = receipts_path(folder)
    before = path.read_bytes() if path.exists() else b""
    if receipt is None or json.dumps(receipt["id"]).encode() in before:
        return
    lines = before.splitlines()
    table = {**receipt, "previous": _hash(lines[-1]) if lines else ""}
    text = ("\n" if before and not before.endswith(b"\n") else "") + json.dumps(table) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if not before:
        sync(folder)


def receipts_path(folder: Path) -> Path:
    """Return the path of the log of a gallery folder.

    Raises:
        GalleryError: Something else has its name, such as a folder, a link or a pipe.
    """
    path = folder / RECEIPTS_FILE
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise GalleryError(f"{path}: expected the file of the receipts, got something else; move it away, then repeat")
    return path


def log_receipt(folder: Path, receipt: Mapping[str, Any] | None) -> None:
    """Append a receipt to the log after its erasure has happened; a failure is a warning, because that stays true."""
    try:
        write_receipt(folder, receipt)
    except (OSError, GalleryError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        _LOG.warning("warning: %s: the receipt is not written yet (%s)", folder / RECEIPTS_FILE, reason or error)


def read_receipts(folder: Path) -> list[dict[str, Any]]:
    """Read the receipts of a gallery folder, the oldest first.

    Raises:
        GalleryError: A line was changed or taken out.
    """
    path = folder / RECEIPTS_FILE
    if not path.is_file():
        return []
    receipts, previous = [], b""
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            receipt = parse_json(line.decode("utf-8"))
            if not previous or receipt["previous"] == _hash(previous):
                receipts.append(dict(receipt))
                previous = line
                continue
        except (ValueError, KeyError, TypeError):
            previous = line  # a program was killed while it wrote this line
            continue
        raise GalleryError(
            f"{path}, line {number}: the receipts are damaged, the line before it is not what it was; put a copy back"
        )
    return receipts


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:32]
