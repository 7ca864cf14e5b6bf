"""The rows of a gallery as columns: labels of crops in Arrow arrays, without a Python object for each row.

A table has the fields of a :class:`~reid.records.Sample`, any further columns of the manifest as text, and columns of
its own whose names begin with "_". Text is kept once for each distinct value, except for paths. ``time`` is an instant;
a time without a zone counts as UTC, and ``_offset`` keeps the zone as it was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import numpy.typing as npt

from reid.errors import DataError, unknown_name
from reid.records import IntArray, Modality, Sample, Split, require_recorded

LABELS = ("identity", "camera", "modality", "category", "split", "track")  # fields that are kept as text
FIELDS = ("path", "identity", "camera", "modality", "category", "split", "time", "track")
ID, OFFSET, CONTENT, FILE_TIME = "_id", "_offset", "_content", "_file_time"
ROWS_AT_ONCE = 4096  # samples that are made at a time
SLICED_ROWS = 64  # so few rows are taken from a table one by one

_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)


class RowTable:
    """Rows as columns.

    Args:
        table: A ``pyarrow.Table`` with the columns of this module; ids ascend.

    Example:
        >>> table = RowTable.from_samples([Sample(Path("1.jpg"), "anna", "door"), Sample(Path("2.jpg"), "ben", "door")])
        >>> len(table), table.distinct("camera"), table.samples[1].identity
        (2, ['door'], 'ben')
    """

    def __init__(self, table: Any) -> None:
        self.arrow = table

    @classmethod
    def from_samples(
        cls, samples: Sequence[Sample], first_id: int = 0, more: Mapping[str, Sequence[object]] | None = None
    ) -> RowTable:
        """Make a table of samples.

        Args:
            samples: The samples.
            first_id: The id of the first row; the ids of the others follow it.
            more: Further columns by their names, one value for each sample, text or None.

        Raises:
            DataError: A path or label is not valid Unicode, a column has another length, or a crop is generated.
        """
        import pyarrow as pa

        require_recorded(samples, "a gallery")

        words = {name: [str(getattr(sample, name)) for sample in samples] for name in LABELS}
        zones = [s.time.utcoffset() if s.time else None for s in samples]
        times = [_instant(s.time, zone) for s, zone in zip(samples, zones, strict=True)]
        try:
            columns: dict[str, Any] = {"path": pa.array([str(s.path) for s in samples], pa.string())}
            columns |= {name: _dictionary(values) for name, values in words.items()}
            columns["time"] = pa.array(times, pa.timestamp("us"))
            columns[OFFSET] = pa.array([None if z is None else round(z / _MICROSECOND) for z in zones], pa.int64())
            columns[ID] = pa.array(np.arange(first_id, first_id + len(samples)), pa.int64())
            columns |= {name: _further(name, values, len(samples)) for name, values in (more or {}).items()}
        except UnicodeEncodeError as error:
            raise DataError(f"a path or label is not valid Unicode and cannot be saved: {error.object!r}") from error
        return cls(pa.table(columns))

    @classmethod
    def read(cls, path: Path) -> RowTable:
        """Read a table that :meth:`write` wrote.

        Raises:
            DataError: The file is damaged or something else.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                words = [name for name in names if pa.types.is_dictionary(file.schema_arrow.field(name).type)]
            with pq.ParquetFile(path, read_dictionary=words) as file:
                table = file.read()
            own = cls(table)
            if not {*FIELDS, OFFSET, ID} <= set(names):
                raise ValueError(f"expected the columns {', '.join(FIELDS)}")
            own._check()
            pa.default_memory_pool().release_unused()  # what decoding took, as much again as the table
            return own
        except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
            raise DataError(f"{path}: the table of rows is damaged ({first_line(error)})") from error

    def write(self, path: Path) -> None:
        """Write the table as Parquet; words that no row has any more are not written."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = self.arrow
        for position, field in enumerate(table.schema):
            if pa.types.is_dictionary(field.type):
                words = table.column(position).cast(pa.string()).dictionary_encode()
                table = table.set_column(position, field.name, words)
        pq.write_table(table, path, compression="zstd")

    @classmethod
    def concatenated(cls, tables: Sequence[RowTable]) -> RowTable:
        """Return the rows of several tables, one after the other; a column that one lacks is unknown there."""
        import pyarrow as pa

        if len(tables) == 1:
            return tables[0]
        return cls(pa.concat_tables([table.arrow for table in tables], promote_options="default").unify_dictionaries())

    def take(self, rows: IntArray) -> RowTable:
        """Return the rows at some positions (K,), in this order."""
        return RowTable(_rows_at(self.arrow, rows))

    def with_column(self, name: str, values: Any) -> RowTable:
        """Return the table with a column of Arrow or NumPy values, in the place of an older one of this name."""
        import pyarrow as pa

        column = values if isinstance(values, pa.ChunkedArray | pa.Array) else pa.array(values)
        position = self.arrow.schema.get_field_index(name)
        if position < 0:
            return RowTable(self.arrow.append_column(name, column))
        return RowTable(self.arrow.set_column(position, name, column))

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names of the columns that a user may name: the fields of a sample, then others of the manifest."""
        others = [name for name in self.arrow.column_names if name not in FIELDS and not name.startswith("_")]
        return (*FIELDS, *others)

    def column(self, name: str) -> Any:
        """Return a column as a ``pyarrow.ChunkedArray``; "domain" stands for the category, as in version 0.1.0.

        Raises:
            DataError: There is no such column; the message lists the known ones.
        """
        name = "category" if name == "domain" and "domain" not in self.column_names else name
        if name not in self.column_names:
            raise DataError(unknown_name("column", name, self.column_names))
        return self.arrow.column(name)

    @cached_property
    def row_ids(self) -> IntArray:
        """(N,) int64, the lasting id of each row; ids ascend."""
        ids: IntArray = _numbers(self.arrow.column(ID), np.int64)
        return ids

    def codes(self, name: str) -> tuple[npt.NDArray[np.int32], list[str]]:
        """Return for each row (N,) the position of its text in a list of distinct texts; unknown is "" there.

        Args:
            name: A column of text.
        """
        import pyarrow as pa

        known = self._codes.get(name)
        if known is None:
            column = self.column(name)
            if not pa.types.is_dictionary(column.type):
                column = column.cast(pa.string()).dictionary_encode()
            merged = column.unify_dictionaries().combine_chunks()
            if isinstance(merged, pa.ChunkedArray):  # no rows
                merged = merged.chunk(0) if merged.num_chunks else pa.array([], column.type)
            words: list[str] = merged.dictionary.to_pylist()
            if merged.null_count and "" not in words:
                words.append("")
            empty = words.index("") if "" in words else 0
            indices = merged.indices.fill_null(empty) if merged.null_count else merged.indices
            codes = _numbers(indices, np.int32)
            known = self._codes[name] = (codes, words)
        return known

    @cached_property
    def _codes(self) -> dict[str, tuple[npt.NDArray[np.int32], list[str]]]:
        return {}

    def distinct(self, name: str) -> list[str]:
        """Return the distinct texts of a column that rows have, sorted, without "" for the unknown one."""
        codes, words = self.codes(name)
        # Not np.unique: its first call imports numpy.ma, which costs a search a tenth of a second.
        used = np.flatnonzero(np.bincount(codes, minlength=len(words)))
        return sorted({words[code] for code in used.tolist()} - {""})

    @cached_property
    def samples(self) -> SampleRows:
        """The rows as a sequence of samples, each made when it is asked for."""
        return SampleRows(self)

    def samples_at(self, rows: IntArray) -> list[Sample]:
        """Return the samples at some positions (K,)."""
        part = _rows_at(self.arrow.select([*FIELDS, OFFSET]), rows).to_pydict()
        part["time"] = [
            None if time is None else _wall_time(time, offset)
            for time, offset in zip(part["time"], part[OFFSET], strict=True)
        ]
        columns = [part[name] for name in FIELDS]
        return [Sample(Path(path), *words) for path, *words in zip(*columns, strict=True)]

    def _check(self) -> None:
        """ValueError where a value is none that a sample can have."""
        if self.arrow.column("path").null_count:
            raise ValueError("a path is missing")
        for name, kind in (("modality", Modality), ("split", Split)):
            for word in self.codes(name)[1]:
                if len(self):
                    kind(word)
        if np.any(np.diff(self.row_ids) <= 0):
            raise ValueError("ids do not ascend")

    def __len__(self) -> int:
        return int(self.arrow.num_rows)


class SampleRows(Sequence[Sample]):
    """The samples of a table, which are made when they are asked for; it equals a tuple of the same samples."""

    def __init__(self, table: RowTable) -> None:
        self.table = table

    @overload
    def __getitem__(self, row: int) -> Sample: ...

    @overload
    def __getitem__(self, row: slice) -> tuple[Sample, ...]: ...

    def __getitem__(self, row: int | slice) -> Sample | tuple[Sample, ...]:
        if isinstance(row, slice):
            return tuple(self.table.samples_at(np.arange(len(self))[row]))
        position = range(len(self))[row]  # IndexError outside
        return self.table.samples_at(np.array([position]))[0]

    def __iter__(self) -> Iterator[Sample]:
        for start in range(0, len(self), ROWS_AT_ONCE):
            yield from self[start : start + ROWS_AT_ONCE]

    def __len__(self) -> int:
        return len(self.table)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # like a list

    def __repr__(self) -> str:
        return f"<{len(self):,} samples>"


def _rows_at(table: Any, rows: IntArray) -> Any:
    """Return the rows of an Arrow table at some positions (K,), in this order.

    A few rows are sliced: ``Table.take`` imports ``pyarrow.compute``, which takes longer than a search.
    """
    import pyarrow as pa

    if not 0 < len(rows) <= SLICED_ROWS:
        return table.take(rows)
    return pa.concat_tables([table.slice(int(row), 1) for row in rows])


def _numbers(column: Any, dtype: Any) -> Any:
    """Return the whole numbers of an Arrow column that knows all of them, (N,) of a NumPy type.

    ``to_numpy`` of a column imports pandas, which takes longer than a search.
    """
    if column.null_count:
        raise ValueError("a number is missing")
    chunks = column.chunks if hasattr(column, "chunks") else [column]
    parts = [np.from_dlpack(chunk) for chunk in chunks if len(chunk)]
    if len(parts) == 1:
        return parts[0].astype(dtype, copy=False)
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the name of its type when the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _instant(time: datetime | None, zone: timedelta | None) -> int | None:
    """Return microseconds since 1970 in UTC; a time without a zone counts as UTC."""
    if time is None:
        return None
    return (time.replace(tzinfo=None) - (zone or timedelta(0)) - _EPOCH) // _MICROSECOND


def _wall_time(instant: datetime, offset: int | None) -> datetime:
    if offset is None:
        return instant
    zone = timedelta(microseconds=offset)
    return (instant + zone).replace(tzinfo=timezone(zone))


def _dictionary(values: Sequence[str]) -> Any:
    import pyarrow as pa

    return pa.array(values, pa.string()).dictionary_encode()


def _further(name: str, values: Sequence[object], size: int) -> Any:
    import pyarrow as pa

    if len(values) != size:
        raise DataError(f'column "{name}": {len(values)} values for {size} rows')
    if name == FILE_TIME:
        return pa.array(values, pa.int64())
    column = pa.array(cast(Any, values), pa.string())
    return column if name == CONTENT else column.dictionary_encode()
