"""Uploaded files: they stay in memory until they are read, and no file of this machine can be named instead of one."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

from reid.app.refusals import Refused

UPLOAD_BYTES = 10 * 2**20  # of one file
UPLOAD_REQUEST_BYTES = UPLOAD_BYTES + 8192  # a file and the words around it
VISITOR_BYTES = 3 * UPLOAD_REQUEST_BYTES  # of all files of one visitor that arrive or wait to be read
TOTAL_BYTES = 6 * UPLOAD_REQUEST_BYTES  # of all visitors
UPLOAD_SECONDS = 120  # after which a file that nobody read is forgotten

_TOKEN = re.compile(r"upload-[0-9a-f]{32}")
_BOUNDARY = re.compile(rb'multipart/form-data;\s*boundary="?([\w\'()+,./:=? -]{1,70}?)"?', re.ASCII | re.IGNORECASE)
_PART_HEADERS = re.compile(rb'content-disposition:[^\r\n]*;\s*name="?files"?\s*(;|$)', re.IGNORECASE | re.MULTILINE)


@dataclass
class _Upload:
    visitor: str
    content: bytes
    expires: float
    is_named: bool = False


class UploadStore:
    """The uploads that wait to be read, each under a random name.

    Args:
        clock: Returns the time in seconds.

    Example:
        >>> uploads = UploadStore()
        >>> name = uploads.add("anna", b"content")
        >>> uploads.name_once(name, "bo"), uploads.name_once(name, "anna"), uploads.name_once(name, "anna")
        (False, True, False)
        >>> uploads.take(name), uploads.take(name)
        (b'content', None)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._lock = Lock()  # the event loop adds uploads, and the threads of the page take them
        self._uploads: dict[str, _Upload] = {}
        self._arriving: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._uploads)

    @contextmanager
    def reserve_room(self, visitor: str) -> Iterator[Callable[[int], None]]:
        """Count bytes that arrive, as long as the ``with`` block runs.

        Args:
            visitor: Whose bytes they are.

        Yields:
            A function to call with each number of bytes; it raises Refused (429) when there is no room for them.
        """
        taken = 0

        def take_room(size: int) -> None:
            nonlocal taken
            with self._lock:
                own = self._arriving.get(visitor, 0) + self._bytes_of(visitor)
                every = sum(self._arriving.values()) + self._bytes_of(None)
                if own + size > VISITOR_BYTES or every + size > TOTAL_BYTES:
                    raise Refused(429)
                taken += size
                self._arriving[visitor] = self._arriving.get(visitor, 0) + size

        try:
            yield take_room
        finally:
            with self._lock:
                self._arriving[visitor] = self._arriving.get(visitor, 0) - taken
                if not self._arriving[visitor]:
                    del self._arriving[visitor]

    def add(self, visitor: str, content: bytes) -> str:
        """Keep an upload and return the random name that stands for it."""
        name = f"upload-{secrets.token_hex(16)}"
        with self._lock:
            self._uploads[name] = _Upload(visitor, content, self._clock() + UPLOAD_SECONDS)
        return name

    def name_once(self, name: str, visitor: str) -> bool:
        """Whether ``visitor`` may name this upload in a message: it is its own, and no message named it before."""
        with self._lock:
            upload = self._uploads.get(name) if _TOKEN.fullmatch(name) else None
            if upload is None or upload.visitor != visitor or upload.is_named:
                return False
            upload.is_named = True
            return True

    def take(self, name: str) -> bytes | None:
        """Return the content of an upload and forget it; None when it is gone."""
        with self._lock:
            upload = self._uploads.pop(name, None)
        return None if upload is None else upload.content

    def forget_expired(self) -> None:
        """Forget the uploads that nobody read in time."""
        with self._lock:
            now = self._clock()
            self._uploads = {name: upload for name, upload in self._uploads.items() if upload.expires > now}

    def _bytes_of(self, visitor: str | None) -> int:
        return sum(len(upload.content) for upload in self._uploads.values() if visitor in (None, upload.visitor))


def read_boundary(content_type: bytes) -> bytes:
    """Return the line between the parts of a form; Refused (415) when the content is no form."""
    found = _BOUNDARY.fullmatch(content_type.strip())
    if found is None:
        raise Refused(415)
    return b"--" + found[1]


def read_only_file(body: bytes, boundary: bytes) -> bytes:
    """Return the content of the one file of a form.

    The field must be called "files", as on the page. The name of the file is not read.

    Args:
        body: The form.
        boundary: The line of :func:`read_boundary`.

    Returns:
        The content of the file.

    Raises:
        Refused: The form has another field, no file, or more than one.

    Example:
        >>> headers = b'Content-Disposition: form-data; name="files"; filename="a.jpg"'
        >>> read_only_file(b"\\r\\n".join([b"--x", headers, b"", b"hello", b"--x--", b""]), b"--x")
        b'hello'
    """
    start = body.find(b"\r\n\r\n", 0, 4096)
    end = body.find(b"\r\n" + boundary, max(start, 0))
    if not body.startswith(boundary + b"\r\n") or start < 0 or end < 0:
        raise Refused(400)
    headers = body[len(boundary) + 2 : start]
    if not _PART_HEADERS.search(headers) or b"filename" not in headers.lower():
        raise Refused(400)
    if body[end + 2 + len(boundary) :].strip() != b"--":
        raise Refused(400)
    content = body[start + 4 : end]
    if len(content) > UPLOAD_BYTES:
        raise Refused(413)
    return content
