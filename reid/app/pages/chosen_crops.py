"""The part of the page "Map" that shows the chosen crops, searches for them, and says that they show one person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from reid.app import presentation as present
from reid.app.access import require
from reid.app.accounts import Role
from reid.app.gallery_service import GalleryService
from reid.app.page_values import PageParts, PageValues, PageVisit
from reid.app.pages.crop_cards import crop_of
from reid.app.person_cards import join_crops
from reid.app.query_choice import MOST_ROWS
from reid.errors import DataError, GalleryError
from reid.records import IntArray
from reid.retrieval.persons.person_files import has_persons

SHOWN = 24  # crops
NAMED = 6  # cameras, identities or persons that a line names
ONLY_SOME = f"They are more than one query takes, so {MOST_ROWS} that are evenly spread are searched for."
NOT_GROUPED = 'To say that they show one person, group the crops of the gallery on the page "People" first.'
NOTHING = "Nothing is chosen."
Value = TypeVar("Value")


class ChosenCrops:
    """What is done with crops that were chosen on a map.

    Args:
        service: The gallery.
    """

    def __init__(self, service: GalleryService) -> None:
        self._service = service
        self._data = service.data

    def show(self, values: PageValues, _visit: PageVisit) -> PageParts:
        """Show the chosen crops, and what can be done with them."""
        return self._shown(values, "")

    def group(self, values: PageValues, visit: PageVisit) -> PageParts:
        """Decide that the chosen crops show one person; the page "People" can take it back."""
        require(visit.user, Role.OPERATOR)
        rows = self._rows(values)
        if len(rows) < 2:
            raise DataError("choose two crops at least, to say that they show one person")
        if self._service.persons.current() is None:
            raise GalleryError(NOT_GROUPED)
        ids = self._data.main.gallery.table.row_ids[rows].tolist()
        self._service.audit.record("decide", visit.user.name, {"verb": "same", "subjects": len(ids)})
        done = join_crops(self._data.main.folder, ids)
        return self._shown(values, f'{done} To take it back, open the page "People".')

    def _rows(self, values: PageValues) -> IntArray:
        """Return the positions of the chosen rows that are still there, in their order."""
        wanted = {int(word[1:]) for word in values.words("rows") if _names_row(word)}
        ids = self._data.main.gallery.table.row_ids
        return np.flatnonzero(np.isin(ids, np.array(sorted(wanted), np.int64)))

    def _shown(self, values: PageValues, done: str) -> PageParts:
        rows = self._rows(values)
        if not len(rows):
            return PageParts({"map-chosen": ""}, status=NOTHING)
        gallery = self._data.main.gallery
        keys = [f"r{number}" for number in gallery.table.row_ids[rows].tolist()]
        crops = "".join(
            f'<li><button type="button" class="reid-more" data-in="search" data-set="query" data-value="r{number}"'
            f' data-reveal="1"><img src="{crop.uri}" alt="{words}" title="{words}"></button></li>'
            for number, crop, words in (self._crop(row) for row in spread(rows.tolist(), SHOWN))
        )
        title = f"{len(rows):,} crop{'s' * (len(rows) != 1)} chosen"
        notes = [f"{SHOWN} of them are shown."] * (len(rows) > SHOWN) + [ONLY_SOME] * (len(rows) > MOST_ROWS)
        html = (
            f'<section class="reid-card" aria-label="{title}"><h3>{title}</h3><p>{self._facts(rows)}</p>'
            f'{present.note_html(done) if done else ""}<ul class="reid-crops">{crops}</ul>'
            f'<p class="reid-soft">{" ".join(notes)}</p>{self._buttons_html(keys)}</section>'
        )
        return PageParts({"map-chosen": html}, status=done or title, reveal=values.text("reveal") == "1")

    def _buttons_html(self, keys: Sequence[str]) -> str:
        query = ",".join(spread(keys, MOST_ROWS))
        search = "Search for this crop" if len(keys) == 1 else "Search for them as one query"
        buttons = (
            '<button type="button" class="reid-button reid-strong" data-in="search" data-set="query" data-reveal="1"'
            f' data-value="{query}">{search}</button>'
        )
        grouped = has_persons(self._data.main.folder)
        if grouped and len(keys) > 1:
            sure = f"Do all {len(keys):,} crops show one person?"
            buttons += (
                f'<button type="button" class="reid-button" data-action="group" data-confirm="{sure}">They show one'
                " person</button>"
            )
        buttons += '<button type="button" class="reid-button" data-unchoose>Choose nothing</button>'
        hint = "" if grouped else present.hint_html(NOT_GROUPED)
        return f'<div class="reid-buttons">{buttons}</div>{hint}'

    def _crop(self, row: int) -> tuple[int, present.Crop, str]:
        gallery = self._data.main.gallery
        number = int(gallery.table.row_ids[row])
        crop = crop_of(gallery.table.samples_at(np.array([row], np.int64))[0], "", gallery, number)
        return number, crop, present.escape(present.describe(crop))

    def _facts(self, rows: IntArray) -> str:
        """Say in a line of HTML which cameras, identities and persons the crops have."""
        table = self._data.main.gallery.table.take(rows)
        state = self._service.persons.current()
        columns = {"Cameras": table.column("camera").to_pylist(), "Identities": table.column("identity").to_pylist()}
        if state is not None:
            every = state.labels()
            columns["Persons"] = [every[row] for row in rows.tolist()]
        lines = []
        for name, values in columns.items():
            counts = {one: values.count(one) for one in dict.fromkeys(values)}
            ordered = sorted(counts, key=lambda one: (not one, -counts[one], one))
            words = [f"{one or 'unknown'} ({counts[one]})" for one in ordered[:NAMED]]
            words += [f"{len(ordered) - NAMED} more"] * (len(ordered) > NAMED)
            lines.append(f"<b>{name}:</b> {present.escape(', '.join(words))}")
        return "<br>".join(lines)


def spread(values: Sequence[Value], most: int) -> list[Value]:
    """Return at most ``most`` values that are evenly spread over a sequence.

    Example:
        >>> spread([0, 1, 2, 3, 4], 2), spread([0, 1], 5)
        ([0, 2], [0, 1])
    """
    return [values[position * len(values) // most] for position in range(most)] if len(values) > most else list(values)


def _names_row(word: str) -> bool:
    return word[:1] == "r" and word[1:].isascii() and word[1:].isdigit() and len(word) < 17
