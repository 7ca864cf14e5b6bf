"""Which rows of a gallery show somebody who is known: by the identity that came with the crop, or by a given name."""

from __future__ import annotations

import numpy as np

from reid.app.served_data import ServedGallery
from reid.errors import ConfigError, unknown_name
from reid.retrieval.filters import BoolArray
from reid.retrieval.persons.person_files import has_persons
from reid.retrieval.persons.person_state import state_of_gallery

KNOWN_CHOICES = {"": "everybody", "known": "known people only", "unknown": "unknown people only"}


def rows_of_known(served: ServedGallery) -> BoolArray:
    """Find the rows that have an identity, or whose person somebody has given a name.

    Args:
        served: The gallery.

    Returns:
        (G,) bool.
    """
    codes, words = served.gallery.table.codes("identity")
    known: BoolArray = np.array([bool(word) for word in words], np.bool_)[codes]
    if has_persons(served.folder):
        state = state_of_gallery(served.gallery)
        known |= np.isin(state.persons, list(state.names_of_persons))
    return known


def rows_with(served: ServedGallery, choice: str) -> BoolArray:
    """Return (G,) bool: the rows that a key of ``KNOWN_CHOICES`` allows.

    Raises:
        ConfigError: The choice is unknown.
    """
    if choice not in KNOWN_CHOICES:
        raise ConfigError(unknown_name("choice of people", choice, [one for one in KNOWN_CHOICES if one]))
    if not choice:
        return np.ones(len(served.gallery.table), np.bool_)
    known = rows_of_known(served)
    return known if choice == "known" else ~known
