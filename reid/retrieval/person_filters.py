"""Conditions on the persons of a gallery: ``person = 'person-12'``, or ``person = 'Anna'`` where that is its name.

The persons that "reid identify" finds are no column of the rows that a gallery keeps.  Verbs that select rows
therefore turn a condition on the column ``person`` into one on the paths of the crops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from reid.errors import GalleryError
from reid.retrieval.filters import ColumnCondition, Combination, Filter, Value, columns_of, rows_where
from reid.retrieval.gallery import Gallery
from reid.retrieval.person_search import PERSON_COLUMN, label_persons
from reid.retrieval.persons.decisions import person_name
from reid.retrieval.persons.person_files import has_persons
from reid.retrieval.persons.person_state import PersonState


def asks_for_persons(where: Filter | None) -> bool:
    """Return whether a filter has a condition on the column "person"."""
    return where is not None and PERSON_COLUMN in {name.lower() for name in columns_of(where)}


def with_ids_of_names(where: Filter, state: PersonState) -> Filter:
    """Write the ids of persons in a filter where it has the names that people gave them.

    Args:
        where: The filter.
        state: The persons of the gallery.

    Returns:
        The filter; comparisons of the column "person" by =, <> and IN know names, and all others are as they were.
    """
    ids = {name: person_name(number) for number, name in state.names_of_persons.items()}

    def named(value: Value) -> Value:
        return ids.get(value, value) if isinstance(value, str) else value

    def change(condition: ColumnCondition) -> Filter:
        known = condition.operator in ("=", "<>", "in")
        return replace(condition, values=tuple(map(named, condition.values))) if known else condition

    return _changed(where, change)


def on_paths(folder: Path, where: Filter) -> Filter:
    """Replace the conditions on the column "person" by conditions on the paths of the crops.

    Args:
        folder: The folder of the gallery.
        where: The filter; without a condition on persons, or where the manifest brought a column of this name and
            nobody has identified persons, it stays as it is.

    Returns:
        The filter without the column "person".

    Raises:
        GalleryError: The gallery has no persons yet, or one path stands for crops of several persons.
        DataError: The filter compares what cannot be compared.
    """
    if not asks_for_persons(where):
        return where
    gallery = Gallery.open(folder)
    if not has_persons(folder):
        if PERSON_COLUMN in gallery.table.column_names:
            return where
        raise GalleryError(f'{folder}: has no persons yet; run "reid identify" on it first')
    state = label_persons(gallery)
    paths = np.array(gallery.table.column("path").to_pylist(), object)

    def change(condition: ColumnCondition) -> Filter:
        chosen = rows_where(condition, gallery.table)
        found = sorted(set(paths[chosen]))
        shared = set(found).intersection(paths[~chosen])
        if shared:
            raise GalleryError(f"{folder}: {min(shared)} shows several persons; select its rows by other columns")
        return ColumnCondition("path", "in", tuple(found)) if found else Combination("or", ())

    return _changed(with_ids_of_names(where, state), change)


def _changed(where: Filter, change: Callable[[ColumnCondition], Filter]) -> Filter:
    if isinstance(where, Combination):
        return Combination(where.operator, tuple(_changed(part, change) for part in where.parts))
    return change(where) if where.column.lower() == PERSON_COLUMN else where
