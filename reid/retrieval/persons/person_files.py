"""The files of persons in a gallery folder.

``decisions.json`` is what people have decided.  It stands by itself, so that it survives when the gallery is built
again.  ``data-<hex>.persons.parquet`` is derived from it and from the crops; the header of the gallery lists it.  Both
name crops by path, so an erasure takes the erased crops out of both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from reid.errors import DataError, GalleryError
from reid.files import write_whole
from reid.records import FloatArray, IntArray
from reid.retrieval.gallery_header import read_header
from reid.retrieval.persons.decisions import FORMAT, CropKey, Decision
from reid.retrieval.persons.replaying import replay
from reid.retrieval.row_table import CONTENT, RowTable, first_line
from reid.structured_text import parse_json

if TYPE_CHECKING:
    from reid.retrieval.storage import GalleryWriter

DECISIONS_FILE = "decisions.json"
PERSONS = "persons.parquet"  # the suffix of the derived file
MAX_BYTES = 2**28
_COLUMNS = ("path", "content", "base", "person", "confidence")
_NOTE = b"reid-persons"


@dataclass(frozen=True)
class DecisionLog:
    """What people have decided about a gallery.

    Attributes:
        decisions: The decisions, the oldest first.
        next_person: The number of the next new person; numbers are never used twice.
    """

    decisions: tuple[Decision, ...] = ()
    next_person: int = 1

    def check(self) -> str:
        """Return a hash that tells this log from any other."""
        return _checksum(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the log as JSON values."""
        return {
            "format": FORMAT,
            "next_person": self.next_person,
            "decisions": [one.to_json() for one in self.decisions],
        }

    @classmethod
    def from_json(cls, table: Any) -> DecisionLog:
        """Return the log that :meth:`to_json` wrote.

        Raises:
            DataError: The table is something else.
            GalleryError: Its decisions contradict each other.
        """
        try:
            if table["format"] != FORMAT:
                raise ValueError("it is of another format")
            decisions = tuple(Decision.from_json(one) for one in table["decisions"])
            number = int(table["next_person"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"expected decisions, got something else ({type(error).__name__}: {error})") from None
        replay(decisions)
        used = [one for decision in decisions for one in decision.numbers()]
        return cls(decisions, max([number, *(one + 1 for one in used)]))


def read_decisions(folder: Path) -> DecisionLog:
    """Read the decisions of a gallery folder; none where there is no file.

    Raises:
        GalleryError: The file is damaged.  It is not taken for empty, because then decisions would be lost.
    """
    path = folder / DECISIONS_FILE
    if not path.exists():
        return DecisionLog()
    try:
        return _decode(path, checked=True)
    except (OSError, DataError, GalleryError, ValueError, RecursionError) as error:
        raise GalleryError(
            f"{path}: the decisions about persons are damaged ({first_line(error)}); put a copy back, or move the file"
            ' away and read an export with "reid identify import"'
        ) from error


def read_exported_decisions(path: Path) -> DecisionLog:
    """Read decisions that :func:`write_exported_decisions` wrote, or a person by hand.

    Raises:
        DataError: The file is missing, or something else.
        GalleryError: Its decisions contradict each other.
    """
    try:
        return _decode(path, checked=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected decisions as JSON ({first_line(error)})") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _decode(path: Path, *, checked: bool) -> DecisionLog:
    if path.stat().st_size > MAX_BYTES or not path.is_file():
        raise ValueError("it is no file of this program")
    table = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(table, dict):
        raise ValueError("it is no table")
    check = table.pop("check", None)
    if checked and check != _checksum(table):
        raise ValueError("its checksum differs")
    return DecisionLog.from_json(table)


def write_decisions(folder: Path, log: DecisionLog) -> None:
    """Write the decisions of a gallery folder; the caller holds its lock.

    Raises:
        OSError: The file cannot be written.
    """
    if not log.decisions:
        (folder / DECISIONS_FILE).unlink(missing_ok=True)
        return
    write_exported_decisions(folder / DECISIONS_FILE, log)


def write_exported_decisions(path: Path, log: DecisionLog) -> None:
    """Write decisions to a file.

    Raises:
        OSError: The file cannot be written.
    """
    table = log.to_json()
    text = json.dumps({**table, "check": _checksum(table)}, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


@dataclass(frozen=True, eq=False)
class PersonTable:
    """The persons of the crops of a gallery, by path.

    Attributes:
        paths: The path of each crop (N,).
        contents: The hash of the file of each crop (N,), "" where it is unknown.
        base: (N,) int64, the number of the program's group, 0 for none.
        persons: (N,) int64, the number of the person, 0 where it is undecided.
        confidence: (N,) float32 in 0..1, how clearly the crop belongs to its person.
        facts: How the persons were found, and which decisions they follow.
    """

    paths: Sequence[str]
    contents: Sequence[str]
    base: IntArray
    persons: IntArray
    confidence: FloatArray
    facts: Mapping[str, Any]

    @classmethod
    def empty(cls) -> PersonTable:
        """Return a table without rows."""
        none = np.zeros(0, np.int64)
        return cls((), (), none, none, np.zeros(0, np.float32), {})

    def select(self, mask: npt.NDArray[np.bool_]) -> PersonTable:
        """Return the rows where ``mask`` (N,) is true."""
        rows = np.flatnonzero(mask)
        texts = ([column[row] for row in rows.tolist()] for column in (self.paths, self.contents))
        paths, contents = texts
        return PersonTable(
            paths, contents, self.base[rows], self.persons[rows], self.confidence[rows], self.facts
        )  # fmt: skip

    def write(self, path: Path) -> None:
        """Write the table as Parquet."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = [
            pa.array(self.paths, pa.string()), pa.array(self.contents, pa.string()), pa.array(self.base),
            pa.array(self.persons), pa.array(self.confidence),
        ]  # fmt: skip
        table = pa.table(dict(zip(_COLUMNS, columns, strict=True)))
        table = table.replace_schema_metadata({_NOTE: json.dumps(dict(self.facts)).encode()})
        pq.write_table(table, path, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> PersonTable:
        """Read a table that :meth:`write` wrote.

        Raises:
            GalleryError: The file is something else.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                table = file.read()
            facts = parse_json((table.schema.metadata or {})[_NOTE].decode("utf-8"))
            paths, contents = (table.column(name).to_pylist() for name in _COLUMNS[:2])
            base, persons = (table.column(name).to_numpy().astype(np.int64) for name in _COLUMNS[2:4])
            confidence = table.column("confidence").to_numpy().astype(np.float32)
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
            raise GalleryError(
                f'{path}: the persons of the gallery are damaged ({first_line(error)}); run "reid identify" again'
            ) from error
        return cls(paths, contents, base, persons, confidence, facts)

    def rows_for(self, paths: Sequence[str], contents: Sequence[str | None]) -> IntArray:
        """Return for each crop of a gallery (G,) its row in this table, -1 where there is none.

        A crop is found by its path, or by its content where its image was moved.
        """
        by_path = {path: row for row, path in enumerate(self.paths)}
        by_content = {content: row for row, content in enumerate(self.contents) if content}
        found = np.full(len(paths), -1, np.int64)
        for position, (path, content) in enumerate(zip(paths, contents, strict=True)):
            row = by_path.get(path, -1)
            if row >= 0 and content and self.contents[row] and self.contents[row] != content:
                row = -1  # another image has taken its place
            found[position] = by_content.get(content, -1) if row < 0 and content else row
        return found


def has_persons(folder: Path) -> bool:
    """Return whether "reid identify" has found persons in a gallery, or somebody has decided about them.

    Raises:
        GalleryError: The gallery is missing or damaged.
    """
    return PERSONS in read_header(folder)["files"] or (folder / DECISIONS_FILE).exists()


def forget_crops(writer: GalleryWriter, files: Mapping[str, Any], gone: Collection[tuple[str, str]]) -> dict[str, Any]:
    """Take erased crops out of the decisions and of the persons of a gallery; the caller holds its lock.

    The decisions are written at once, the persons count when the caller commits the header.

    Args:
        writer: The writer of the gallery.
        files: The entries of the files that the header lists.
        gone: The path and the hash of the file of each erased crop; "" where it is unknown.

    Returns:
        The entries for the new header.

    Raises:
        GalleryError: A file is damaged.
        OSError: A file cannot be written.
    """
    paths, contents = {path for path, _ in gone}, {content for _, content in gone} - {""}
    log = read_decisions(writer.folder)
    table = PersonTable.read(writer.folder / files[PERSONS]["name"]) if PERSONS in files else PersonTable.empty()
    kept_paths = set(table.paths) - paths
    erased = {
        key
        for decision in log.decisions
        for key in decision.named_crops()
        if key.path in paths or (key.content in contents and key.path not in kept_paths)
    }
    if erased:
        left = _without(log, erased, table, paths)
        write_decisions(writer.folder, left)
    kept = np.array([path not in paths for path in table.paths], np.bool_)
    if kept.all():
        return dict(files)
    return {**files, PERSONS: writer.write_data(PERSONS, table.select(kept).write)}


def erased_crops(table: RowTable, gone: npt.NDArray[np.bool_]) -> list[tuple[str, str]]:
    """Return the path and the hash of the file of the crops (G,) that are erased, for :func:`forget_crops`."""
    if not gone.any():
        return []
    part = table.take(np.flatnonzero(gone))
    paths = part.column("path").to_pylist()
    known = part.arrow.column(CONTENT).to_pylist() if CONTENT in part.arrow.column_names else [None] * len(paths)
    return [(path, content or "") for path, content in zip(paths, known, strict=True)]


def kept_person_files(writer: GalleryWriter, gone: Collection[tuple[str, str]]) -> dict[str, Any]:
    """Return the entry of the persons for the header of a gallery that is built again, without erased crops.

    Args:
        writer: The writer of the gallery, before it commits the new one.
        gone: The erased crops, as :func:`forget_crops` takes them.

    Returns:
        The entry; empty where the gallery before had no persons, or their file is damaged.

    Raises:
        GalleryError: The decisions are damaged.
        OSError: A file cannot be written.
    """
    entry = (writer.header or {"files": {}})["files"].get(PERSONS)
    files = {}
    if entry is not None:
        with suppress(GalleryError, OSError):  # they are found again; the decisions are what must not be lost
            PersonTable.read(writer.folder / entry["name"])
            files = {PERSONS: entry}
    return forget_crops(writer, files, gone) if gone else files


def _without(log: DecisionLog, erased: set[CropKey], table: PersonTable, paths: Collection[str]) -> DecisionLog:
    """Return a log without erased crops; a name stays with a person that has other crops."""
    left = []
    for decision in log.decisions:
        kept = decision.without(erased)
        if kept is None and decision.verb == "name":
            other = _another_crop(table, decision.person, paths)
            kept = None if other is None else replace(decision, crops=(other,), replaced=(), positions=())
        left += [] if kept is None else [kept]
    return replace(log, decisions=tuple(left))


def _another_crop(table: PersonTable, person: int, erased: Collection[str]) -> CropKey | None:
    for row in np.flatnonzero(table.persons == person).tolist():
        if table.paths[row] not in erased:
            return CropKey(table.paths[row], table.contents[row])
    return None


def _checksum(table: object) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
