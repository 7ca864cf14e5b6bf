"""The log of searches: who searched, when, and with which filters; never the picture, and never an answer.

The log is a file of JSON lines that only grows. Each line holds a hash of the line before it, so that a line that was
changed or removed is noticed, except at the end.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from reid.app.job_records import now_text
from reid.errors import DataError
from reid.structured_text import parse_json

FIRST = "0" * 64  # the hash that the first line names
LONGEST_LINE = 2**14  # bytes
TEXT_LENGTH = 200  # characters of a value


class AuditLog:
    """A log of searches and of changes.

    Args:
        path: The file; private, made where it is missing.
        purposes: The purposes that a search may name; without any, a search needs none.

    Raises:
        DataError: A line of the log was changed or removed.
    """

    def __init__(self, path: Path, purposes: tuple[str, ...] = ()):
        self._path = path
        self._lock = Lock()
        self.purposes = purposes
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            self.verify()

    def check_purpose(self, purpose: str) -> None:
        """Refuse a search without a purpose where purposes are configured; DataError."""
        if self.purposes and purpose not in self.purposes:
            raise DataError(f"a search names its purpose, one of: {', '.join(self.purposes)}")

    def record(self, action: str, who: str, facts: Mapping[str, Any], purpose: str = "") -> None:
        """Write a line.

        Args:
            action: What was done, such as "search".
            who: The name of the user; "" for the owner of the machine.
            facts: Filters and counts; short values only. No image, embedding or answer belongs here.
            purpose: The purpose that the user named.

        Raises:
            OSError: The line cannot be written, and then the action must not happen either.
        """
        entry: dict[str, Any] = {"time": now_text(), "who": who, "action": action}
        if purpose:
            entry["purpose"] = purpose[:TEXT_LENGTH]
        entry["facts"] = {key: _short(value) for key, value in facts.items() if value not in (None, "", [], ())}
        with self._lock:
            descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                entry["before"] = _hash_of_last(file.fileno())
                line = json.dumps(entry, ensure_ascii=False).encode()
                if len(line) >= LONGEST_LINE:
                    line = json.dumps({**entry, "facts": {"left_out": "they were too long"}}).encode()
                file.write(line + b"\n")
                file.flush()
                os.fsync(file.fileno())

    def entries(self, limit: int = 100) -> list[dict[str, Any]]:
        """Return the latest lines, the latest first."""
        return self._read()[::-1][:limit]

    def verify(self) -> int:
        """Check that no line was changed or removed, and return how many there are; DataError otherwise."""
        return len(self._read())

    def _read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        before, entries = FIRST, []
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # the program was stopped while it wrote, so what it logs did not happen
                try:
                    entry = parse_json(line.decode("utf-8"))
                except ValueError:
                    entry = None
                if not isinstance(entry, dict) or entry.pop("before", None) != before:
                    raise DataError(
                        f"{self._path}: line {number} or the one before it was changed; keep it as evidence"
                    )
                before = hashlib.sha256(line).hexdigest()
                entries.append(entry)
        return entries


def _short(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_short(one) for one in value[:20]]
    return value if isinstance(value, int | float | bool) else str(value)[:TEXT_LENGTH]


def _hash_of_last(descriptor: int) -> str:
    """Return the hash of the last line of an open log, and remove what a program that was stopped left of a line."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 2 * LONGEST_LINE, max(0, size - 2 * LONGEST_LINE))
    whole = tail[: tail.rfind(b"\n") + 1]
    os.ftruncate(descriptor, size - (len(tail) - len(whole)))
    return hashlib.sha256(whole[whole.rfind(b"\n", 0, -1) + 1 :]).hexdigest() if whole else FIRST
