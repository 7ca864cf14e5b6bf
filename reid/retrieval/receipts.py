"""Receipts: what was erased from a gallery folder and when, without names, labels or paths.

The log only grows. Each line holds a hash of the line before it, so that a line that is changed or taken out shows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reid.errors import GalleryError
from reid.files import sync
from reid.retrieval.storage import RECEIPTS_FILE


def write_receipt(folder: Path, facts: Mapping[str, Any]) -> None:
    """Append a receipt to the log of a gallery folder; the caller holds its lock.

    Args:
        folder: The folder.
        facts: What was done; nothing that tells who was erased.

    Raises:
        OSError: The log cannot be written.
    """
    path = folder / RECEIPTS_FILE
    before = path.read_bytes() if path.is_file() else b""
    lines = before.splitlines()
    table = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
        "previous": _hash(lines[-1]) if lines else "",
    }
    text = ("\n" if before and not before.endswith(b"\n") else "") + json.dumps(table) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if not before:
        sync(folder)


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
            receipt = json.loads(line)
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
