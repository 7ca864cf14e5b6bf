"""The persons of the main gallery, read again only when somebody has changed them."""

from __future__ import annotations

from threading import Lock
from typing import Any

from reid.app.served_data import ServedData, ServedGallery
from reid.retrieval.person_search import label_persons
from reid.retrieval.persons.person_files import DECISIONS_FILE, has_persons
from reid.retrieval.persons.person_state import PersonState


class ServedPersons:
    """Reads the persons of the main gallery.

    Args:
        data: What the application serves.
    """

    def __init__(self, data: ServedData):
        self._data = data
        self._lock = Lock()
        self._known: tuple[Any, PersonState | None] | None = None

    def current(self) -> PersonState | None:
        """Return the persons as they are now; None where nobody has identified any.

        The rows of the gallery get the column "person", by which answers can be grouped.
        """
        served = self._data.main
        stamp = (served.stamp, _stamp_of_decisions(served), id(served.gallery))
        with self._lock:
            if self._known is None or self._known[0] != stamp:
                state = label_persons(served.gallery) if has_persons(served.folder) else None
                self._known = (stamp, state)
            return self._known[1]


def _stamp_of_decisions(served: ServedGallery) -> tuple[int, int] | None:
    try:
        status = (served.folder / DECISIONS_FILE).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
