"""Snapshots: all rows of a store in one Parquet file, which any store can be filled from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reid.errors import GalleryError
from reid.files import write_whole
from reid.retrieval.row_table import LABELS, RowTable
from reid.retrieval.stores.store import ROWS_AT_ONCE, StoredRows

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_KEY = b"reid-rows"  # in the metadata of the schema; its value is the version of the layout
VERSION = b"1"
COLUMN_PREFIX = "column:"  # of the names of metadata, which therefore never collide with ours


def write_snapshot(path: Path, dimension: int, rows: Iterable[StoredRows]) -> None:
    """Write rows to a Parquet file, as a whole or not at all.

    The columns are ``row_id``, ``vector`` (a list of D float32 numbers) and ``column:NAME`` for each column of
    metadata.

    Args:
        path: The file.
        dimension: The length D of a vector.
        rows: The rows; all parts have the same columns.

    Raises:
        OSError: The file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(part: Path) -> None:
        writer: pq.ParquetWriter | None = None
        try:
            for stored in rows:
                table = _to_table(stored, dimension)
                writer = writer or pq.ParquetWriter(part, table.schema, write_page_checksum=True)
                writer.write_table(table)
            if writer is None:
                empty = StoredRows(np.empty(0, np.int64), np.empty((0, dimension), np.float32))
                pq.write_table(_to_table(empty, dimension), part)
        finally:
            if writer is not None:
                writer.close()

    try:
        write_whole(path, write)
    except pa.ArrowException as error:
        raise OSError(f"{path}: {error}") from error


def read_snapshot(path: Path) -> Iterator[StoredRows]:
    """Read the rows of a snapshot, some thousand at a time.

    Args:
        path: The file that :func:`write_snapshot` wrote.

    Yields:
        The rows. A snapshot of an empty store yields one part without rows, which still tells the dimension.

    Raises:
        GalleryError: The file is missing, damaged or no snapshot.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = file.schema_arrow.metadata or {}
            if metadata.get(FORMAT_KEY) != VERSION:
                raise GalleryError(f"{path}: expected a snapshot of a store, got another Parquet file")
            batches = file.iter_batches(ROWS_AT_ONCE)
            first = next(batches, None)
            yield _to_rows(pa.Table.from_batches([] if first is None else [first], file.schema_arrow))
            yield from (_to_rows(pa.Table.from_batches([batch])) for batch in batches)
    except (OSError, pa.ArrowException) as error:
        line = str(error).partition("\n")[0]
        raise GalleryError(f"{path}: the snapshot cannot be read ({line}); write it again") from error


def _to_table(rows: StoredRows, dimension: int) -> pa.Table:
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(rows.vectors).reshape(-1), pa.float32())
    columns = {"row_id": pa.array(rows.row_ids), "vector": pa.FixedSizeListArray.from_arrays(flat, dimension)}
    metadata = pa.table({}) if rows.columns is None else rows.columns.arrow
    for name, column in zip(metadata.column_names, metadata, strict=True):
        plain = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        columns[COLUMN_PREFIX + name] = column.cast(plain)
    return pa.table(columns).replace_schema_metadata({FORMAT_KEY: VERSION})


def _to_rows(table: pa.Table) -> StoredRows:
    vectors = table.column("vector").combine_chunks()
    dimension = vectors.type.list_size
    names = [name for name in table.column_names if name.startswith(COLUMN_PREFIX)]
    metadata = RowTable(table.select(names).rename_columns([name.removeprefix(COLUMN_PREFIX) for name in names]))
    for label in set(LABELS) & set(metadata.arrow.column_names):
        metadata = metadata.with_column(label, metadata.arrow.column(label).dictionary_encode())
    flat = vectors.flatten().to_numpy(zero_copy_only=False)
    return StoredRows(
        table.column("row_id").to_numpy(), flat.reshape(-1, dimension).astype(np.float32), metadata if names else None
    )
