"""Tables of samples as bytes, which galleries and files of embeddings keep beside the vectors."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from reid.errors import DataError
from reid.records import Modality, Sample, Split
from reid.retrieval.row_table import first_line

_COLUMNS = ("path", "identity", "camera", "modality", "domain", "split", "time")
_TRACK = "track"  # version 0.1.0 did not write it


def encode_samples(samples: Sequence[Sample]) -> bytes:
    """Write samples as a Parquet table.

    Args:
        samples: The samples; their paths are kept as they are.

    Returns:
        The bytes of the table, one row for each sample, in the same order.

    Raises:
        DataError: A path or a label is not valid Unicode.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        (
            str(s.path), s.identity, s.camera, s.modality.value, s.category, s.split.value,
            s.time and s.time.isoformat(), s.track,
        )
        for s in samples
    ]  # fmt: skip
    names = (*_COLUMNS, _TRACK)
    columns: list[Sequence[str | None]] = list(zip(*rows, strict=True)) or [()] * len(names)
    try:
        arrays = [pa.array(column, pa.string()) for column in columns]
    except UnicodeEncodeError as error:
        raise DataError(f"a path or label is not valid Unicode and cannot be saved: {error.object!r}") from error
    stream = io.BytesIO()
    pq.write_table(pa.table(dict(zip(names, arrays, strict=True))), stream)
    return stream.getvalue()


def decode_samples(data: bytes, source: Path) -> tuple[Sample, ...]:
    """Read samples that :func:`encode_samples` wrote.

    Args:
        data: The bytes of the table.
        source: The file they come from, for the message of an error.

    Returns:
        The samples.

    Raises:
        DataError: The bytes are damaged or something else.

    Example:
        >>> samples = (Sample(Path("1.jpg"), "anna", "door"),)
        >>> decode_samples(encode_samples(samples), Path("table")) == samples
        True
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read()  # read_table would import pandas
        columns = [table.column(name).to_pylist() for name in _COLUMNS]
        columns.append(table.column(_TRACK).to_pylist() if _TRACK in table.column_names else [""] * table.num_rows)
        return tuple(
            Sample(
                Path(path), identity, camera, Modality(modality), category, Split(split),
                datetime.fromisoformat(time) if time else None, track,
            )
            for path, identity, camera, modality, category, split, time, track in zip(*columns, strict=True)
        )  # fmt: skip
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{source}: the table of samples is damaged ({first_line(error)})") from error
