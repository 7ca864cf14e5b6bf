"""NumPy files without NumPy's reader, which parses a file's header as Python and so cannot run in several threads.

CPython 3.11 raises ``SystemError`` where threads parse at the same time, and searches of a gallery do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MAGIC = b"\x93NUMPY\x01\x00"  # of files of version 1.0, the only ones that galleries have


def flat_values(path: Path, dtype: str) -> npt.NDArray[Any]:
    """Map the values of a NumPy file of version 1.0 into memory, without their shape.

    Args:
        path: The file.
        dtype: The type of its values, as its header names it.

    Raises:
        ValueError: The file is no such file, or has values of another type.
        OSError: The file cannot be read.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     np.save(Path(folder) / "a.npy", np.arange(3))
        ...     flat_values(Path(folder) / "a.npy", "<i8").tolist()
        [0, 1, 2]
    """
    with path.open("rb") as stream:
        start = stream.read(10)
        header = stream.read(int.from_bytes(start[8:10], "little"))
    size, kind = path.stat().st_size - 10 - len(header), np.dtype(dtype)
    if not start.startswith(MAGIC) or f"'descr': '{dtype}'".encode() not in header or size % kind.itemsize:
        raise ValueError(f"expected a NumPy file of {dtype}")
    if not size:
        return np.empty(0, kind)
    return np.asarray(np.memmap(path, kind, "r", 10 + len(header)))
