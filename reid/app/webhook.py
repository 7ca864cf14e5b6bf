"""Tell another program about new crops: "person 12 seen by c3".  Nothing is sent unless an address is given.

The message holds the person, the camera and the time of each crop, and no picture.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import numpy as np

from reid.app.gallery_service import GalleryService
from reid.errors import ConfigError, ReidError
from reid.files import write_whole
from reid.structured_text import read_json

STATE_FILE = "webhook.json"
LOOK_SECONDS = 2.0  # between two looks for new crops
PERSON_SECONDS = 30.0  # that a crop waits for a person before it is announced without one
TIMEOUT = 10.0
LONGEST_PAUSE = 300.0  # seconds between two attempts
MOST_EVENTS = 100  # of one message

Post = Callable[[str, bytes], None]


class Webhook:
    """Watches the gallery and announces new crops.

    The id of the last crop that was announced is kept in the state folder, so that a crop is announced once, also after
    a restart; a message that does not arrive is sent again.

    Args:
        url: Where messages go.
        service: The gallery.
        post: Sends a message; raises OSError where it does not arrive.
        patience: Seconds that a crop waits for a person.
    """

    def __init__(
        self, url: str, service: GalleryService, post: Post | None = None, patience: float = PERSON_SECONDS
    ) -> None:
        self._url = url
        self._service = service
        self._post = post or send_message
        self._patience = patience
        self._path: Path = service.state_folder / STATE_FILE
        self._seen: dict[int, float] = {}  # crops without a person, and when they were noticed
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="webhook", daemon=True)
        self._last = self._read_last()

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """End watching."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(TIMEOUT + 5)

    def announce_new(self) -> int:
        """Announce the crops that are new and have a person, or have waited long enough; return how many.

        Raises:
            OSError: The message did not arrive.
            ReidError: The gallery cannot be read.
        """
        events = self._ready_events()
        if not events:
            return 0
        self._post(self._url, json.dumps({"events": events}).encode())
        self._keep_last(int(events[-1]["crop"]))
        for event in events:
            self._seen.pop(int(event["crop"]), None)
        return len(events)

    def _ready_events(self) -> list[dict[str, Any]]:
        table = self._service.data.main.gallery.table
        persons = self._service.persons.current()
        ids = table.row_ids
        first = int(np.searchsorted(ids, self._last, side="right"))
        rows = np.arange(first, min(len(ids), first + MOST_EVENTS))
        is_grouping = any(not job.has_ended for job in self._service.jobs.jobs())
        events, now = [], time.monotonic()
        for row, sample in zip(rows.tolist(), table.samples_at(rows), strict=True):
            crop = int(ids[row])
            known = persons.describe(row) if persons is not None and row < len(persons.persons) else {}
            waited = now - self._seen.setdefault(crop, now)
            if not known.get("person") and (is_grouping or waited < self._patience):
                break  # crops are announced in their order
            events.append(
                {
                    "event": "crop",
                    "crop": crop,
                    "image": f"/api/crops/{crop}/image",
                    "person": known.get("person") or None,
                    "name": known.get("person_name") or None,
                    "camera": sample.camera,
                    "category": sample.category,
                    "time": sample.time.isoformat() if sample.time else None,
                }
            )
        return events

    def _watch(self) -> None:
        pause = LOOK_SECONDS
        while not self._closing.wait(pause):
            try:
                self.announce_new()
                pause = LOOK_SECONDS
            except (ReidError, OSError, ValueError):
                pause = min(2 * pause, LONGEST_PAUSE)

    def _read_last(self) -> int:
        """Return the id of the crop that was announced last; at the first start, that of the last crop there is."""
        if self._path.exists():
            value = read_json(self._path)
            if isinstance(value, dict) and isinstance(value.get("last"), int):
                return int(value["last"])
            raise ConfigError(f"{self._path}: is damaged; delete it, and only crops from then on are announced")
        ids = self._service.data.main.gallery.table.row_ids
        last = int(ids[-1]) if len(ids) else -1
        self._keep_last(last)
        return last

    def _keep_last(self, last: int) -> None:
        self._last = last
        write_whole(self._path, lambda part: part.write_text(json.dumps({"last": last}), encoding="utf-8"))


class _NoRedirect(HTTPRedirectHandler):
    """Follows no redirection, so that messages go to the given address only."""

    def redirect_request(self, *_: Any) -> None:
        return None


def send_message(url: str, body: bytes) -> None:
    """Send JSON to an address; OSError where the answer is not a 2xx."""
    request = Request(url, body, {"Content-Type": "application/json", "User-Agent": "reid"})
    try:
        with build_opener(_NoRedirect()).open(request, timeout=TIMEOUT) as response:
            response.read(2**16)
    except URLError as error:
        raise OSError(f"the message did not arrive ({error.reason})") from error
