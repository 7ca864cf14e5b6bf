"""Read what ``torch.save`` wrote, without running code in it and without using more memory than the file is large.

Files of Python 2 are read too.  A file that cannot be read is named for what it is.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reid.errors import WeightsError

PROTOCOL = 2  # of pickles that torch.save writes unless asked otherwise
MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the number with which torch.save began its files until version 1.6
REMEDY = 'write it again with torch.save(checkpoint["state_dict"], ...)'
# What torch.load raised, besides UnpicklingError, for thousands of files with changed bytes.
DAMAGE = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
# What zipfile raises for files that are no archives, or damaged ones.
NOT_AN_ARCHIVE = (zipfile.BadZipFile, LookupError, OSError, RuntimeError, ValueError, struct.error)


def _read_number(dtype: np.dtype[Any], data: bytes | str) -> object:
    """Make a number of numpy, such as the rank-1 score that training programs save beside the weights.

    Python 2 wrote its bytes as text.  Other types are refused, because one of gigabytes would be allocated.
    """
    if dtype.kind not in "biuf" or not isinstance(data, bytes | str):
        raise ValueError(f"expected a number, got {dtype}")
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype, count=1)[0]


# numpy 1 and numpy 2 have different names for the function that makes numbers.  They hold no code.
_NUMBERS: list[Any] = [
    (_read_number, "numpy.core.multiarray.scalar"),
    (_read_number, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")),
]


def unpickle(path: Path) -> object:
    """Read a file of ``torch.save``, if it holds tensors and plain values only.

    Raises:
        WeightsError: If the file is damaged, is another pickle, holds more than tensors and plain values, or would
            unpack to more than its size.
    """
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.load warns about a damaged file; the error is enough
            with torch.serialization.safe_globals(_NUMBERS):
                # every byte is a character of latin1, which the text of Python 2 needs; other text is not affected
                return torch.load(path, map_location="cpu", weights_only=True, encoding="latin1")
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise WeightsError(_unreadable(path)) from error
        raise WeightsError(
            f"{path}: refused, because it holds more than tensors ({code[1]}) and loading it could run code;"
            ' if you trust it, keep only its tensors: torch.save(checkpoint["state_dict"], ...)'
        ) from error
    except DAMAGE as error:
        raise WeightsError(_unreadable(path)) from error


def _check_archive(path: Path) -> None:
    """Refuse an archive with compressed entries, or with entries that share their bytes; torch.save writes neither."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except NOT_AN_ARCHIVE as error:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":  # an archive for torch.load
                raise WeightsError(_unreadable(path)) from error
        return
    unpacked, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if unpacked > size:
        raise WeightsError(
            f"{path}: refused, because it is compressed: its {size:,} bytes unpack to {unpacked:,};"
            " if you trust it, unpack it and write it again with torch.save"
        )


def _unreadable(path: Path) -> str:
    """Say what a file is that torch.load refused.

    The reason of torch.load is left out, because it advises loading files without its safeguard.
    """
    start = _start_of_pickle(path)
    is_pickle = start[:1] == b"\x80" and len(start) > 8 and PROTOCOL <= start[1] <= pickle.HIGHEST_PROTOCOL
    if is_pickle and MAGIC not in start and not zipfile.is_zipfile(path):
        return (
            f"{path}: refused, a pickle of Python (protocol {start[1]}) and no file of torch.save; loading it could run"
            f" code; if you trust it, {REMEDY}"
        )
    if is_pickle and start[1] > PROTOCOL:
        return (
            f"{path}: cannot read this weights file, because it is pickled with protocol {start[1]}, which cannot be"
            f" read without running code; {REMEDY} and without pickle_protocol"
        )
    return f"{path}: cannot read this weights file: damaged, cut off, or not tensors written by torch.save"


def _start_of_pickle(path: Path) -> bytes:
    """The first bytes of the pickle in a file; of an archive, of its ``data.pkl``."""
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return file.read(64)
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
            if name is None:
                return b""
            with archive.open(name) as file:
                return file.read(64)
    except NOT_AN_ARCHIVE:
        return b""
