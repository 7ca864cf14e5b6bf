"""Read and write manifests: CSV or Parquet tables with one row for each crop.

Every data set enters the program as a manifest.  Paths in a manifest are relative to the folder that holds it.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from reid.data.label_text import CONTROL, cell_text, clean_label, defuse, means_missing, means_unknown, means_yes
from reid.data.label_text import restore as restore
from reid.data.manifest_columns import COLUMNS as COLUMNS
from reid.data.manifest_columns import KNOWN_COLUMNS, OPTIONAL_COLUMNS, ManifestColumns, name_columns, shorten
from reid.data.unreadable import current_unreadable
from reid.errors import DataError, unknown_name
from reid.files import require_regular_file, write_whole
from reid.records import Modality, Sample, Split, describe_generated

LABELS = ("identity", "camera", "track")  # columns in which "unknown" and "-1" are words for nothing

_T = TypeVar("_T")
_MODALITIES = {str(m): m for m in Modality}
_SPLITS = {str(s): s for s in Split}


@dataclass(frozen=True)
class ManifestReading:
    """The samples of a table, notes on how they were read, and the texts of every other column by its name."""

    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    more: Mapping[str, Sequence[str]] = field(default_factory=dict)


def read_manifest(path: Path | str) -> tuple[Sample, ...]:
    """Read a manifest.

    The columns ``path``, ``identity`` and ``split`` are required.  The columns ``camera``, ``modality``,
    ``category``, ``time`` (ISO 8601), ``track`` and ``generated`` (yes or no) are optional: without them, and where a
    cell is empty, the camera is "", the modality is visible, the category is person, the time is None, the track is ""
    and the crop is not generated.  Other columns become no part of a sample.  An image may stand in several splits
    (query and gallery), but only once in each.  A generated crop may stand in split train only.

    Capitals of the header do not matter, and known synonyms of the columns are read, such as "camid".  Labels are
    brought into one form, see :mod:`reid.data.label_text`, and words such as "nan" or "None" count as empty cells.

    Args:
        path: The table, CSV or Parquet by its suffix.

    Returns:
        The samples in the order of the rows.

    Raises:
        DataError: The file is missing or no such table, or a row is wrong; the message names the line.
    """
    return read_table(path).samples


def read_table(path: Path | str) -> ManifestReading:
    """Read a manifest as :func:`read_manifest` does, with notes on what its columns and words were taken for."""
    path = Path(path)
    require_regular_file(path, "manifest")
    if not path.is_file():
        raise DataError(
            f"{path}: no such manifest; expected a CSV or Parquet table with the columns {shorten(COLUMNS)}"
        )
    parquet = path.suffix.lower() == ".parquet"
    columns, rows = _parquet_rows(path) if parquet else _csv_rows(path)
    return samples_of_rows(columns, rows, path.parent, str(path))


def samples_of_rows(
    columns: ManifestColumns, rows: Iterable[tuple[str, Mapping[str, str]]], folder: Path, source: str
) -> ManifestReading:
    """Turn the rows of a table with the columns of a manifest into samples.

    Args:
        columns: The columns of the table.
        rows: For each row, its place in the table, such as "line 2", and its cells by the column of a manifest.
        folder: The folder that paths are relative to.
        source: The name of the table, which begins every error message.

    Returns:
        The samples in the order of the rows, and notes.

    Raises:
        DataError: A cell is wrong, or there is no row.
    """
    reader = _RowReader(folder, source, columns.read_as.get("time", ""))
    samples: list[Sample] = []
    more: dict[str, list[str]] = {name: [] for name in columns.names if name and name not in KNOWN_COLUMNS}
    first_rows: dict[tuple[Path, Split], str] = {}
    for where, row in rows:
        sample = reader.read(row, where)
        first = first_rows.setdefault((sample.path, sample.split), where)
        if first != where:
            raise DataError(f"{source}, {where}: {row['path']} is already in split {sample.split} at {first}; keep one")
        samples.append(sample)
        for name, texts in more.items():
            texts.append(row.get(name, ""))
    if not samples:
        raise DataError(f"{source}: the manifest has no rows; expected one row a crop below the header")
    return ManifestReading(tuple(samples), (*columns.notes(), *reader.notes()), more)


def write_manifest(samples: Sequence[Sample], path: Path) -> None:
    """Write a manifest that :func:`read_manifest` reads back to the same samples.

    The file appears whole or not at all.

    Args:
        samples: The rows.
        path: The table, Parquet if its suffix says so, else CSV.  Paths are written relative to its folder.

    Raises:
        DataError: A path or label holds characters that a table cannot hold.
        OSError: The file cannot be written.
    """
    columns = COLUMNS + tuple(name for name in OPTIONAL_COLUMNS if any(getattr(s, name) for s in samples))
    rows = [_row(sample, path.parent) for sample in samples]
    write = _write_parquet if path.suffix.lower() == ".parquet" else _write_csv
    write_whole(path, lambda part: write(part, columns, rows), private=False)


def check_files(samples: Iterable[Sample]) -> None:
    """Check that the images of samples exist, unless those that cannot be read are left out.

    Raises:
        DataError: Images are missing; the message names the first one and says how many there are.
    """
    paths = list(dict.fromkeys(sample.path for sample in samples)) if current_unreadable() is None else []
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]}: no such image ({len(missing)} of {len(paths)} are missing); "
            "paths are relative to the folder of the manifest"
        )


def _csv_rows(path: Path) -> tuple[ManifestColumns, Iterator[tuple[str, dict[str, str]]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # -sig: spreadsheets write a byte-order mark
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save the table as CSV UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    reader = csv.reader(_lines(text), skipinitialspace=True, strict=True)
    try:
        columns = name_columns(str(path), next(reader, []))
    except csv.Error as error:
        raise DataError(f"{path}, line 1: not a CSV header ({error})") from error
    return columns, _csv_body(path, columns.names, reader)


def _lines(text: str) -> Iterator[str]:
    """Yield lines with their ends; unlike ``str.splitlines`` this does not divide at form feeds."""
    for line in text.split("\n"):
        yield line + "\n"


def _csv_body(path: Path, header: Sequence[str], reader: Any) -> Iterator[tuple[str, dict[str, str]]]:
    while True:
        where = f"line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}, {where}: not a CSV row ({error})") from error
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise DataError(f"{path}, {where}: expected {len(header)} cells ({shorten(header)}), got {len(cells)}")
        yield where, {name: restore(cell.strip()) for name, cell in zip(header, cells, strict=True)}


def _parquet_rows(path: Path) -> tuple[ManifestColumns, Iterator[tuple[str, dict[str, str]]]]:
    import pyarrow  # imported here because it takes half a second, which CSV manifests do not need
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            own = file.schema_arrow.names
            columns = name_columns(str(path), own)
            known = {n: own[i] for i, n in enumerate(columns.names) if _has_texts(file.schema_arrow.field(i).type, n)}
            table = file.read(list(known.values()))  # pyarrow.parquet.read_table would import pandas
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet table ({_first_line(error)})") from error
    rows = (
        (f"row {i}", {name: cell_text(row[column]) for name, column in known.items()})
        for i, row in enumerate(table.to_pylist(), start=1)
    )
    return columns, rows


def _has_texts(kind: Any, name: str) -> bool:
    """Whether a column is read: it is one of a manifest, or its cells are words, numbers or times."""
    import pyarrow.types as types

    return name in KNOWN_COLUMNS or not (types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class _RowReader:
    """Makes samples of rows, and counts the words that it takes for empty cells."""

    def __init__(self, folder: Path, source: str, time_column: str) -> None:
        self._folder, self._source = folder, source
        self._time_column = time_column  # under another name, it may hold something else, such as frame numbers
        self._missing: Counter[tuple[str, str]] = Counter()
        self._no_times = 0

    def read(self, row: Mapping[str, str], where: str) -> Sample:
        place = f"{self._source}, {where}"
        if not row["path"]:
            raise DataError(f"{place}: the path is empty; expected the file name of an image")
        cells = {name: self._cell(name, cell) for name, cell in row.items() if name in KNOWN_COLUMNS}
        for name, cell in cells.items():
            if CONTROL.search(cell):
                raise DataError(f"{place}: {name} {cell!a} has control characters; remove them")
        split = _choice(_SPLITS, cells["split"], "split", place)
        generated = _is_generated(cells.get("generated", ""), split, place)
        return Sample(
            path=self._folder / row["path"],
            identity=cells["identity"],
            camera=cells.get("camera", ""),
            modality=_choice(_MODALITIES, cells.get("modality", "") or "visible", "modality", place),
            category=cells.get("category", "") or "person",
            split=split,
            time=self._time(cells.get("time", ""), place),
            track=cells.get("track", ""),
            generated=generated,
        )

    def notes(self) -> list[str]:
        """Describe what was taken for an empty cell."""
        words: dict[str, list[str]] = {}
        for (name, word), count in sorted(self._missing.items()):
            words.setdefault(name, []).append(f'{count:,} times "{word}"')
        lines = [f"{name}: taken for unknown: {', '.join(found)}" for name, found in words.items()]
        if self._no_times:
            lines.append(
                f'column "{self._time_column}": {self._no_times:,} cells are not ISO 8601 such as'
                " 2024-05-31T16:20:00, so these times are unknown"
            )
        return lines

    def _cell(self, name: str, cell: str) -> str:
        if name == "path":
            return cell
        label = clean_label(cell)
        if label and name != "split" and (means_missing(label) or (name in LABELS and means_unknown(label))):
            self._missing[name, label] += 1
            return ""
        return label

    def _time(self, text: str, place: str) -> datetime | None:
        if not text:
            return None
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            if self._time_column:
                self._no_times += 1
                return None
            raise DataError(f'{place}: time "{text}" is not ISO 8601 such as 2024-05-31T16:20:00') from None


def _choice(known: Mapping[str, _T], name: str, column: str, where: str) -> _T:
    try:
        return known[name.lower()]
    except KeyError:
        raise DataError(f"{where}: {unknown_name(column, name, known)}") from None


def _is_generated(cell: str, split: Split, place: str) -> bool:
    found = means_yes(cell)
    if found is None:
        raise DataError(f'{place}: generated "{cell}": expected yes or no; give another column another name')
    if found and split is not Split.TRAIN:
        raise DataError(f"{place}: {describe_generated(split)}")
    return found


def _row(sample: Sample, folder: Path) -> dict[str, str]:
    row = {
        "path": _relative(sample.path, folder),
        "identity": sample.identity,
        "camera": sample.camera,
        "modality": str(sample.modality),
        "category": sample.category,
        "split": str(sample.split),
        "time": sample.time.isoformat() if sample.time else "",
        "track": sample.track,
        "generated": "yes" if sample.generated else "",
    }
    for name, cell in row.items():
        if CONTROL.search(cell) or cell != (cell.strip() if name == "path" else clean_label(cell)):
            raise DataError(
                f"{sample.path}: {name} {cell!a} has outer blanks or characters that no table holds; rename it"
            )
        if (name in LABELS and means_unknown(cell)) or (name == "category" and means_missing(cell)):
            raise DataError(
                f'{sample.path}: {name} "{cell}" is a word for an unknown {name}; rename it, or leave it empty'
            )
    return row


def _relative(path: Path, folder: Path) -> str:
    whole, base = path.absolute(), folder.absolute()
    if whole.is_relative_to(base):
        return whole.relative_to(base).as_posix()
    # Links are resolved, because the system follows them before it applies "..".
    return Path(os.path.relpath(whole.parent.resolve() / whole.name, base.resolve())).as_posix()


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_csv_cell(name, row[name]) for name in columns] for row in rows)


def _csv_cell(name: str, cell: str) -> str:
    """Write a cell so that no spreadsheet runs it; a path stays one that other programs can open."""
    return f"./{cell}" if name == "path" and defuse(cell) != cell else defuse(cell)


def _write_parquet(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    import pyarrow
    import pyarrow.parquet

    data = {name: [row[name] for row in rows] for name in columns}
    schema = pyarrow.schema([(name, pyarrow.string()) for name in columns])
    pyarrow.parquet.write_table(pyarrow.table(data, schema=schema), path)
