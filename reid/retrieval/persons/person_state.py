"""The persons of a gallery: read them, and change them by what people decide."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reid.errors import GalleryError, ReidError
from reid.records import FloatArray, IntArray
from reid.retrieval.centering import centered_by_camera
from reid.retrieval.folder_reading import read_attached
from reid.retrieval.gallery_rows import GalleryRows
from reid.retrieval.persons.decisions import CropKey, Decision, person_name
from reid.retrieval.persons.person_files import PERSONS, DecisionLog, PersonTable, read_decisions, write_decisions
from reid.retrieval.persons.replaying import HumanWord, append, replay
from reid.retrieval.persons.resolution import resolve, rows_of_crops
from reid.retrieval.row_table import CONTENT, RowTable
from reid.retrieval.storage import GalleryWriter, write_gallery
from reid.retrieval.stored_gallery import StoredGallery, read_gallery, under_lock

if TYPE_CHECKING:
    from reid.retrieval.gallery import Gallery

UNDECIDED = ""
CONTENT_DIGITS = 32  # hexadecimal digits of the hash of a file, as in reid.retrieval.growth


@dataclass(frozen=True, eq=False)
class PersonState:
    """The persons of the crops of a gallery, in the order of its rows.

    Attributes:
        rows: The rows of the gallery (G,) with their vectors.
        base: (G,) int64, the number of the program's group of each crop, 0 for none.
        log: What people have decided.
        confidence: (G,) float32 in 0..1, how clearly the crop belongs to its group.
        facts: How the groups were found; empty before that.
    """

    rows: GalleryRows
    base: IntArray
    log: DecisionLog
    confidence: FloatArray
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> RowTable:
        """The labels of the crops."""
        return self.rows.table

    @cached_property
    def paths(self) -> list[str]:
        """The path of each crop (G,)."""
        return list(self.table.column("path").to_pylist())

    @cached_property
    def contents(self) -> list[str | None]:
        """The hash of the file of each crop (G,); None where it is unknown."""
        return contents_of(self.table)

    @cached_property
    def word(self) -> HumanWord:
        """The state after all decisions."""
        return replay(self.log.decisions)

    @cached_property
    def rows_of(self) -> dict[str, IntArray]:
        """The rows of each crop that a decision names."""
        return rows_of_crops(self.log.decisions, self.paths, self.contents)

    @cached_property
    def centered(self) -> FloatArray:
        """(G, D) float32, the vectors, centered per camera within a category and light."""
        return centered_by_camera(self.rows.vectors(), codes_of(self.table, ("category", "modality", "camera")))

    @cached_property
    def persons(self) -> IntArray:
        """(G,) int64, the number of the person that each crop shows, 0 where it is undecided."""
        return resolve(self.base, self.word, self.rows_of, lambda rows: self.centered[rows])

    @cached_property
    def confirmed(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """(G,) bool, the crops that somebody has confirmed to show their person."""
        confirmed = np.zeros(len(self.base), np.bool_)
        for name in self.word.person_of:
            confirmed[self.rows_of.get(name, np.zeros(0, np.int64))] = True
        return confirmed

    @property
    def sureness(self) -> FloatArray:
        """(G,) float32, the confidence of each crop: 1 where somebody has confirmed it, 0 where it is undecided."""
        return np.where(self.confirmed, 1, np.where(self.persons > 0, self.confidence, 0)).astype(np.float32)

    @property
    def names_of_persons(self) -> dict[int, str]:
        """The names that people gave to persons, by their numbers."""
        return dict(self.word.names_of_persons)

    def labels(self) -> list[str]:
        """Return the person of each crop (G,) as text, such as "person-12"; "" where it is undecided."""
        return [person_name(number) if number else UNDECIDED for number in self.persons.tolist()]

    def describe(self, row: int) -> dict[str, Any]:
        """Return the person of a row as JSON values: its id, its name, and how many crops it has."""
        number = int(self.persons[row])
        return {
            "person": person_name(number) if number else UNDECIDED,
            "person_name": self.names_of_persons.get(number, ""),
            "person_crops": int(np.count_nonzero(self.persons == number)) if number else 1,
        }

    def key_of(self, row: int) -> CropKey:
        """Return what names the crop of a row in decisions; the file is read where its hash is not known."""
        content = self.contents[row]
        return CropKey(self.paths[row], _content_of(Path(self.paths[row])) if content is None else content)

    def most_typical(self, person: int, without: Sequence[int] = ()) -> int:
        """Return a row that stands for a person: a confirmed one, else the one with the highest confidence.

        Args:
            person: The number of the person.
            without: Rows that must not be chosen.

        Returns:
            The row, or -1 where the person has no other crop.
        """
        rows = np.setdiff1d(np.flatnonzero(self.persons == person), np.array(without, np.int64))
        if not len(rows):
            return -1
        order = np.lexsort((rows, -self.confidence[rows], ~self.confirmed[rows]))
        return int(rows[order[0]])

    def with_log(self, log: DecisionLog) -> PersonState:
        """Return the state with another log of decisions."""
        return PersonState(self.rows, self.base, log, self.confidence, self.facts)

    def as_table(self) -> PersonTable:
        """Return what is written to the gallery's folder."""
        contents = [content or "" for content in self.contents]
        facts = {**self.facts, "decisions": self.log.check()}
        return PersonTable(self.paths, contents, self.base, self.persons, self.confidence, facts)


def contents_of(table: RowTable) -> list[str | None]:
    """Return the hash of the file of each row (G,); None where the gallery does not know it."""
    if CONTENT not in table.arrow.column_names:
        return [None] * len(table)
    return list(table.arrow.column(CONTENT).to_pylist())


def codes_of(table: RowTable, columns: Sequence[str]) -> IntArray:
    """Return a number (G,) int64 for each row; rows with the same texts in some columns have the same."""
    codes = (
        np.stack([table.codes(name)[0] for name in columns]) if len(table) else np.zeros((len(columns), 0), np.int32)
    )
    numbers: IntArray = np.unique(codes, axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return numbers


def state_of(stored: StoredGallery) -> PersonState:
    """Return the persons of a gallery that was read.

    Raises:
        GalleryError: A file is damaged.
    """
    rows = GalleryRows(stored.kept_table(), stored.segments, stored.facts["dimension"])
    entry = stored.facts["files"].get(PERSONS)
    table = None if entry is None else read_attached(stored.folder, PERSONS, PersonTable.read)
    return _aligned(rows, table or PersonTable.empty(), read_decisions(stored.folder))


def read_persons(folder: Path) -> PersonState:
    """Read the persons of a gallery folder; before "reid identify" has run, every crop is undecided.

    Raises:
        GalleryError: The gallery is missing or damaged.
    """
    return state_of(read_gallery(folder))


def state_of_gallery(gallery: Gallery) -> PersonState:
    """Return the persons of the rows of an open gallery, in its order; in memory, every crop is undecided.

    Raises:
        GalleryError: A file of the gallery is damaged.
    """
    rows = gallery.rows
    if gallery.folder is None:
        return _aligned(rows, PersonTable.empty(), DecisionLog())
    table = read_attached(gallery.folder, PERSONS, PersonTable.read)
    return _aligned(rows, table or PersonTable.empty(), read_decisions(gallery.folder))


def _aligned(rows: GalleryRows, known: PersonTable, log: DecisionLog) -> PersonState:
    """Return the persons of the rows of a gallery, from a table that may have been written for other rows."""
    paths = rows.table.column("path").to_pylist()
    found = known.rows_for(paths, contents_of(rows.table))
    there = found >= 0
    base, confidence = np.zeros(len(paths), np.int64), np.zeros(len(paths), np.float32)
    base[there], confidence[there] = known.base[found[there]], known.confidence[found[there]]
    number = max(log.next_person, int(known.base.max(initial=0)) + 1, int(known.facts.get("next_person", 1)))
    return PersonState(rows, base, replace(log, next_person=number), confidence, dict(known.facts))


def change_persons(
    folder: Path, change: Callable[[PersonState], PersonState], *, replaces: str | None = None
) -> PersonState:
    """Change the persons of a gallery folder, as a whole or not at all.

    Args:
        folder: The folder.
        change: Returns the new state of the one that the folder holds.
        replaces: The generation of the gallery that the change was prepared for; None accepts any.

    Returns:
        The new state.

    Raises:
        GalleryError: The gallery is missing or damaged, another program is writing to it or has changed it, or the
            folder cannot be written to.
    """
    with write_gallery(folder, replaces) as writer:
        if writer.header is None:
            read_gallery(folder)  # tells what is wrong
        stored = under_lock(writer)
        try:
            state = change(state_of(stored))
        except ReidError:
            writer.sweep()  # what a change that was stopped has left
            raise
        write_state(writer, stored, state)
    return state


def write_state(writer: GalleryWriter, stored: StoredGallery, state: PersonState) -> None:
    """Write the persons of a gallery; the caller holds its lock.

    The decisions are written first, because they must not be lost.  A program that is stopped then leaves an older
    table of persons, from which the next reader computes the same state.

    Raises:
        OSError: A file cannot be written.
    """
    table = state.as_table()
    entry = writer.write_data(PERSONS, table.write)
    write_decisions(writer.folder, state.log)
    writer.commit({**stored.facts, "files": {**stored.facts["files"], PERSONS: entry}})
    problems = writer.sweep()
    if problems:
        raise GalleryError(problems[0])


def add_decision(state: PersonState, decision: Decision, *, instead: bool = False) -> PersonState:
    """Return the state after one more decision.

    Args:
        state: The state.
        decision: The decision.
        instead: Give up older decisions that say the opposite.

    Raises:
        ContradictionError: An older decision says the opposite, and ``instead`` is false.
    """
    log = append(state.log.decisions, decision, instead=instead)
    number = max([state.log.next_person, *(one + 1 for one in decision.numbers())])
    return state.with_log(DecisionLog(log, number))


def _content_of(path: Path) -> str:
    """Return the hash of a file, as a gallery keeps it; "" where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:CONTENT_DIGITS]
    except OSError:
        return ""
