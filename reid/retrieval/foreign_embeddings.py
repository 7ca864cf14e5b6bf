"""Read embeddings that other programs computed: NumPy, Parquet, FAISS and safetensors files with a table of samples.

Row i of the file belongs to row i of the table. Such embeddings get a fingerprint of the content of the file, so that
they are only compared with rows that were imported from the same model under the same name.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reid.data.manifest import read_table
from reid.errors import DataError
from reid.records import UNIT_TOLERANCE, Embeddings, FloatArray, Sample
from reid.retrieval.embed import load_embeddings
from reid.retrieval.row_table import first_line

VECTOR_NAMES = ("vectors", "embeddings", "features", "vector", "embedding", "feature")  # of arrays and columns
FINGERPRINT_LENGTH = 16


@dataclass(frozen=True)
class ForeignEmbeddings:
    """Embeddings of a file with the further columns of its table.

    Args:
        embeddings: The embeddings, scaled to unit length.
        more: Further columns by their names, one text for each row.
        scaled: How many vectors did not have unit length.
    """

    embeddings: Embeddings
    more: Mapping[str, Sequence[object]] = field(default_factory=dict)
    scaled: int = 0


def read_foreign(
    path: Path,
    samples: Sequence[Sample] | None = None,
    more: Mapping[str, Sequence[object]] | None = None,
    fingerprint: str | None = None,
) -> ForeignEmbeddings:
    """Read embeddings of any known format.

    Args:
        path: ``.npy`` (N, D), ``.npz`` with one such array or one that is called "vectors" or "embeddings",
            ``.parquet`` with a column of vectors, an index file of FAISS, or ``.safetensors`` of "reid embed" or
            "reid cameras center".
        samples: The samples of the rows, in their order. A safetensors file of ours holds its samples, and a Parquet
            file may have the columns of a manifest; for these, None takes them from the file.
        more: Further columns by their names, one text for each row.
        fingerprint: The name of the model that computed the vectors; None takes a hash of the vectors.

    Returns:
        The embeddings with their samples.

    Raises:
        DataError: A file is missing or damaged, the numbers of rows differ, or a vector is zero or not finite.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of embeddings; expected {', '.join(FORMATS)} or an index of FAISS")
    if path.suffix.lower() == ".safetensors":
        return _own_file(path, samples, more)
    if samples is None and path.suffix.lower() == ".parquet":
        reading = read_table(path)
        samples, more = reading.samples, reading.more
    if samples is None:
        raise DataError(f"{path}: whose vectors are these? give the table of their samples by --data, a row for each")
    vectors, scaled = _unit_rows(path, FORMATS.get(path.suffix.lower(), _faiss_vectors)(path))
    if len(vectors) != len(samples):
        raise DataError(
            f"{path}: {len(vectors)} vectors, but the table of samples has {len(samples)} rows; row i of both must be"
            " the same crop"
        )
    name = fingerprint or hashlib.sha256(np.ascontiguousarray(vectors).data).hexdigest()[:FINGERPRINT_LENGTH]
    return ForeignEmbeddings(Embeddings(tuple(samples), vectors, name), more or {}, scaled)


def _own_file(
    path: Path, samples: Sequence[Sample] | None, more: Mapping[str, Sequence[object]] | None
) -> ForeignEmbeddings:
    """Read a file of ours; samples, if some are given, must be the same crops in the same order."""
    embeddings = load_embeddings(path)
    if samples is None:
        return ForeignEmbeddings(embeddings)
    _check_order(path, embeddings.samples, samples)
    return ForeignEmbeddings(Embeddings(tuple(samples), embeddings.vectors, embeddings.fingerprint), more or {})


def _check_order(path: Path, own: Sequence[Sample], given: Sequence[Sample]) -> None:
    if len(own) != len(given):
        raise DataError(
            f"{path}: {len(own)} rows, but the table of samples has {len(given)}; row i of both must be the same crop"
        )
    for row, (one, other) in enumerate(zip(own, given, strict=True), start=1):
        if one.path.name != other.path.name:
            raise DataError(
                f"{path}: row {row} is {one.path}, in the table of samples it is {other.path}; bring them in one order"
            )


def _unit_rows(path: Path, vectors: npt.NDArray[Any]) -> tuple[FloatArray, int]:
    """Return vectors (N, D) float32 of unit length, and how many had another length."""
    if vectors.ndim != 2 or not vectors.shape[1] or vectors.dtype.kind not in "fiu":
        raise DataError(f"{path}: expected numbers (N, D), one row for each crop, got {vectors.dtype} {vectors.shape}")
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise DataError(f"{path}: vector {row + 1} holds NaN or infinity; compute it again")
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if np.any(lengths < 1e-12):
        raise DataError(f"{path}: vector {int(np.argmin(lengths)) + 1} is zero and has no direction; compute it again")
    scaled = np.abs(lengths - 1) > UNIT_TOLERANCE / 2
    divided = np.where(scaled, lengths, 1.0)[:, None]
    return np.ascontiguousarray(vectors / divided, np.float32), int(np.count_nonzero(scaled))


def _npy_vectors(path: Path) -> npt.NDArray[Any]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded as arrays:
            names = [name for name in VECTOR_NAMES if name in arrays.files] or arrays.files
            if len(names) > 1 and names[0] not in VECTOR_NAMES:
                raise DataError(f"{path}: holds {', '.join(arrays.files)}; call the array of vectors vectors")
            found: npt.NDArray[Any] = arrays[names[0]]
            return found
    except (ValueError, OSError, EOFError, IndexError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable NumPy file of numbers ({first_line(error)})") from error


def _parquet_vectors(path: Path) -> npt.NDArray[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            lists = [f.name for f in schema if pa.types.is_list(f.type) or pa.types.is_fixed_size_list(f.type)]
            names = [name for name in VECTOR_NAMES if name in lists] or lists
            if len(names) != 1 and names[:1] != [name for name in VECTOR_NAMES if name in lists][:1]:
                raise DataError(f"{path}: columns {', '.join(names)} may hold the vectors; call the right one vector")
            if not names:
                raise DataError(f"{path}: no column holds lists of numbers; expected one that is called vector")
            column = file.read([names[0]]).column(0).combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
        if column.null_count or len(lengths) != 1:
            raise DataError(f"{path}: the vectors of column {names[0]} have different lengths, or some are missing")
        return np.asarray(column.flatten()).reshape(len(column), -1)
    except (pa.ArrowException, OSError, IndexError, ValueError) as error:
        raise DataError(f"{path}: not a readable Parquet table of vectors ({first_line(error)})") from error


def _faiss_vectors(path: Path) -> npt.NDArray[Any]:
    from reid.retrieval.faiss_index import read_index_vectors

    return read_index_vectors(path)


FORMATS: dict[str, Callable[[Path], npt.NDArray[Any]]] = {
    ".npy": _npy_vectors,
    ".npz": _npy_vectors,
    ".parquet": _parquet_vectors,
}
