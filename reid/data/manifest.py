"""Read and write manifests: CSV or Parquet tables with one row for each crop.

Every data set enters the program as a manifest.  Paths in a manifest are relative to the folder that holds it.
"""

from __future__ import annotations

import csv
import difflib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from reid.errors import DataError, unknown_name
from reid.files import write_whole
from reid.old_names import current_fields
from reid.records import Modality, Sample, Split

COLUMNS = ("path", "identity", "camera", "modality", "category", "split")
OPTIONAL_COLUMNS = ("time", "track")
REQUIRED_COLUMNS = ("path", "identity", "split")

_T = TypeVar("_T")
# Control characters, and the surrogates that stand for file names that are not Unicode.
_UNWRITABLE = re.compile(r"[\x00-\x1f\ud800-\udfff]")
_MODALITIES = {str(m): m for m in Modality}
_SPLITS = {str(s): s for s in Split}


def read_manifest(path: Path | str) -> tuple[Sample, ...]:
    """Read a manifest.

    The columns ``path``, ``identity`` and ``split`` are required.  The columns ``camera``, ``modality``,
    ``category``, ``time`` (ISO 8601) and ``track`` are optional: without them, and where a cell is empty, the camera
    is "", the modality is visible, the category is person, the time is None and the track is "".  Other columns are
    not read.  An image may stand in several splits (query and gallery), but only once in each.

    Args:
        path: The table, CSV or Parquet by its suffix.

    Returns:
        The samples in the order of the rows.

    Raises:
        DataError: The file is missing or no such table, or a row is wrong; the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such manifest; expected a CSV or Parquet table with the columns {_list(COLUMNS)}")
    parquet = path.suffix.lower() == ".parquet"
    header, rows = _parquet_rows(path) if parquet else _csv_rows(path)
    return samples_of_rows(header, rows, path.parent, str(path))


def samples_of_rows(
    header: Sequence[str], rows: Iterable[tuple[str, Mapping[str, str]]], folder: Path, source: str
) -> tuple[Sample, ...]:
    """Turn the rows of a table with the columns of a manifest into samples.

    Args:
        header: The names of all columns.
        rows: For each row, its place in the table, such as "line 2", and its cells by column.
        folder: The folder that paths are relative to.
        source: The name of the table, which begins every error message.

    Returns:
        The samples in the order of the rows.

    Raises:
        DataError: A required column is missing, a cell is wrong, or there is no row.
    """
    _check_header(source, header)
    samples: list[Sample] = []
    first_rows: dict[tuple[Path, Split], str] = {}
    for where, row in rows:
        sample = _sample(row, folder, f"{source}, {where}")
        first = first_rows.setdefault((sample.path, sample.split), where)
        if first != where:
            raise DataError(f"{source}, {where}: {row['path']} is already in split {sample.split} at {first}; keep one")
        samples.append(sample)
    if not samples:
        raise DataError(f"{source}: the manifest has no rows; expected one row a crop below the header")
    return tuple(samples)


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
    """Check that the images of samples exist.

    Raises:
        DataError: Images are missing; the message names the first one and says how many there are.
    """
    paths = list(dict.fromkeys(sample.path for sample in samples))
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]}: no such image ({len(missing)} of {len(paths)} are missing); "
            "paths are relative to the folder of the manifest"
        )


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _csv_rows(path: Path) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # -sig: spreadsheets write a byte-order mark
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save the table as CSV UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    reader = csv.reader(_lines(text), skipinitialspace=True, strict=True)
    try:
        header = list(current_fields(name.strip().lower() for name in next(reader, [])))
    except csv.Error as error:
        raise DataError(f"{path}, line 1: not a CSV header ({error})") from error
    return header, _csv_body(path, header, reader)


def _lines(text: str) -> Iterator[str]:
    """Yield lines with their ends; unlike ``str.splitlines`` this does not divide at form feeds."""
    for line in text.split("\n"):
        yield line + "\n"


def _csv_body(path: Path, header: list[str], reader: Any) -> Iterator[tuple[str, dict[str, str]]]:
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
            raise DataError(f"{path}, {where}: expected {len(header)} cells ({_list(header)}), got {len(cells)}")
        yield where, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}


def _parquet_rows(path: Path) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    import pyarrow  # imported here because it takes half a second, which CSV manifests do not need
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read()  # pyarrow.parquet.read_table would import pandas
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet table ({_first_line(error)})") from error
    table = table.rename_columns(list(current_fields(table.column_names)))
    known = [name for name in COLUMNS + OPTIONAL_COLUMNS if name in table.column_names]
    _check_header(str(path), table.column_names)  # before selecting, which a repeated column would make ambiguous
    rows = (
        (f"row {i}", {name: cell_text(value) for name, value in row.items()})
        for i, row in enumerate(table.select(known).to_pylist(), start=1)
    )
    return list(table.column_names), rows


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def cell_text(value: object) -> str:
    """Return the text that a CSV would hold for a cell of a typed table.

    Pandas turns a column of integers into floats when a cell is missing, so whole floats are written as integers.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value).strip()


def _check_header(source: str, header: Sequence[str]) -> None:
    missing = [name for name in REQUIRED_COLUMNS if name not in header]
    if missing:
        raise DataError(
            f"{source}: column {_list(missing)} is missing; found {_list(header) or 'nothing'};"
            f" expected {_list(COLUMNS)}"
        )
    known = COLUMNS + OPTIONAL_COLUMNS
    for name in header:
        if header.count(name) > 1 and name in known:
            raise DataError(f"{source}: column {name} stands twice in the header; keep one")
        if name not in known:
            absent = [column for column in known if column not in header]
            near = difflib.get_close_matches(name, absent, n=1, cutoff=0.8)
            if near:
                raise DataError(f'{source}: unknown column "{name}"; did you mean "{near[0]}"?')


def _sample(row: Mapping[str, str], folder: Path, where: str) -> Sample:
    if not row["path"]:
        raise DataError(f"{where}: the path is empty; expected the file name of an image")
    for name, cell in row.items():
        if name in COLUMNS + OPTIONAL_COLUMNS and _UNWRITABLE.search(cell):
            raise DataError(f"{where}: {name} {cell!r} has control characters; remove them")
    return Sample(
        path=folder / row["path"],
        identity=row["identity"],
        camera=row.get("camera", ""),
        modality=_choice(_MODALITIES, row.get("modality", "") or "visible", "modality", where),
        category=row.get("category", "") or "person",
        split=_choice(_SPLITS, row["split"], "split", where),
        time=_time(row.get("time", ""), where),
        track=row.get("track", ""),
    )


def _choice(known: Mapping[str, _T], name: str, column: str, where: str) -> _T:
    try:
        return known[name]
    except KeyError:
        raise DataError(f"{where}: {unknown_name(column, name, known)}") from None


def _time(text: str, where: str) -> datetime | None:
    if not text:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise DataError(f'{where}: time "{text}" is not ISO 8601 such as 2024-05-31T16:20:00') from None


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
    }
    for name, cell in row.items():
        if cell != cell.strip() or _UNWRITABLE.search(cell):
            raise DataError(
                f"{sample.path}: {name} {cell!r} has outer blanks or characters that no table holds; rename it"
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
        writer.writerows([row[name] for name in columns] for row in rows)


def _write_parquet(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    import pyarrow
    import pyarrow.parquet

    data = {name: [row[name] for row in rows] for name in columns}
    schema = pyarrow.schema([(name, pyarrow.string()) for name in columns])
    pyarrow.parquet.write_table(pyarrow.table(data, schema=schema), path)
