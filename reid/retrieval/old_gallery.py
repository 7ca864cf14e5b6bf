"""Read galleries of version 1, which version 0.1.0 wrote: one flat FAISS index and one table of samples."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reid.errors import DataError, GalleryError
from reid.records import FloatArray
from reid.retrieval.gallery_header import OLD_INDEX, OLD_SAMPLES, REBUILD
from reid.retrieval.row_table import RowTable, first_line
from reid.retrieval.sample_table import decode_samples
from reid.retrieval.segments import GallerySegment, checked_file, damaged

# How FAISS begins the file of an IndexFlatIP: name, D, N, two numbers that are not used, whether it is trained, the
# metric (0: inner product), and how many floats follow.
_FLAT = struct.Struct("<4siqqq?iQ")
_NAME = b"IxFI"


def read_old_segment(folder: Path, header: Mapping[str, Any]) -> GallerySegment:
    """Read the rows of a gallery of version 1 into memory.

    Args:
        folder: The folder of the gallery.
        header: Its header.

    Raises:
        GalleryError: A file is damaged or missing.
    """
    files = {suffix: checked_file(folder, entry) for suffix, entry in header["files"].items()}
    try:
        count, dimension, _ = header["count"], header["dimension"], header["fingerprint"]
        samples = decode_samples(files[OLD_SAMPLES].read_bytes(), files[OLD_SAMPLES])
        vectors = read_flat_index(files[OLD_INDEX])
    except (KeyError, DataError) as error:
        why = f'"{error.args[0]}" is missing from the header' if isinstance(error, KeyError) else first_line(error)
        raise GalleryError(f"{folder}: the gallery is damaged ({why}); {REBUILD}") from error
    if (*vectors.shape, len(samples)) != (count, dimension, count):
        raise damaged(
            folder,
            f"its header says {count} x {dimension} vectors, there are {vectors.shape[0]} x {vectors.shape[1]} and"
            f" {len(samples)} samples",
        )
    return GallerySegment(RowTable.from_samples(samples), np.zeros(0, np.int64), None, vectors)


def read_flat_index(path: Path) -> FloatArray:
    """Read the vectors (N, D) of a flat FAISS index of inner products.

    Raises:
        DataError: The file holds something else.
    """
    content = path.read_bytes()
    try:
        name, dimension, count, _, _, _, metric, floats = _FLAT.unpack_from(content)
    except struct.error as error:
        raise DataError(f"{path}: no index of FAISS ({error})") from error
    if name != _NAME or metric or floats != count * dimension or len(content) != _FLAT.size + 4 * floats:
        raise DataError(f"{path}: not a flat index of inner products")
    vectors = np.frombuffer(content, "<f4", offset=_FLAT.size).astype(np.float32, copy=True)
    return vectors.reshape(count, dimension)
