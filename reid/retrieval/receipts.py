"""Receipts: what was erased from a gallery folder and when, without names, labels or paths.

The log only grows. Each line holds a hash of the line before it, so that a line that is changed or taken out shows. A
receipt is part of the header that makes its erasure count, and is copied to the log afterwards; where a program is
stopped in between, the next writer copies it.
"""

from __future__ import annotations

import hashlib
import json
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
        OSError: The log cannot be written.
    """
    path = folder / RECEIPTS_FILE
    before = path.read_bytes() if path.is_file() else b""
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
