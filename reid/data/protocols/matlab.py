"""Read the MATLAB 5 files (.mat) that come with some data sets: index lists, partitions, permutations.

Numbers, texts, cells and structs are read.  Files that were saved with -v7.3 are HDF5 and are refused.  The format is
described in "MAT-File Format", The MathWorks, chapter 1.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from reid.errors import DataError

HEADER = 128
MATRIX, COMPRESSED = 14, 15
CELL, STRUCT, TEXT = 1, 2, 4
NUMBERS = range(6, 16)  # array classes: double, single and the integers
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8", 16: "u1", 17: "u2"}


def read_mat(path: Path) -> dict[str, Any]:
    """Read the variables of a MATLAB 5 file.

    Args:
        path: The file.

    Returns:
        The variables by name.  Numbers are arrays with at least two axes, as in MATLAB; texts are ``str``; cells are
        object arrays; a struct array is an object array of dictionaries.

    Raises:
        DataError: The file is missing, damaged or of another version.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if data.startswith(b"MATLAB 7.3"):
        raise DataError(f"{path}: saved as MATLAB 7.3 (HDF5); save it again in MATLAB with -v7")
    if len(data) < HEADER or data[126:128] != b"IM":
        raise DataError(f"{path}: not a MATLAB 5 file")
    try:
        return dict(_read_array(body) for type_, body in _elements(_decompress(data[HEADER:])) if type_ == MATRIX)
    except (struct.error, ValueError, KeyError, IndexError, StopIteration, zlib.error) as error:
        raise DataError(
            f"{path}: damaged, or holds a type that is not supported ({type(error).__name__}: {error})"
        ) from error


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of each element; the tag itself holds a content of at most four bytes."""
    start = 0
    while start + 8 <= len(data):
        type_, size = struct.unpack_from("<II", data, start)
        if type_ >> 16:
            yield type_ & 0xFFFF, data[start + 4 : start + 4 + (type_ >> 16)]
            start += 8
            continue
        if start + 8 + size > len(data):
            raise ValueError("the file ends inside an element")
        yield type_, data[start + 8 : start + 8 + size]
        start += 8 + (size if type_ == COMPRESSED else size + -size % 8)


def _decompress(data: bytes) -> bytes:
    """Replace the compressed elements of a file by what they hold."""
    parts = []
    for type_, body in _elements(data):
        plain = zlib.decompress(body) if type_ == COMPRESSED else struct.pack("<II", type_, len(body)) + body
        parts.append(plain + bytes(-len(plain) % 8))
    return b"".join(parts)


def _numbers(type_: int, body: bytes) -> Any:
    return np.frombuffer(body, "<" + TYPES[type_])


def _read_array(body: bytes) -> tuple[str, Any]:
    """Read the name and the value of an array; MATLAB stores columns first."""
    if not body:
        return "", np.zeros((0, 0))
    elements = _elements(body)
    array_class = int(_numbers(*next(elements))[0]) & 0xFF
    shape = tuple(int(n) for n in _numbers(*next(elements)))
    name = next(elements)[1].decode("ascii")
    if array_class == CELL:
        return name, _objects([_read_array(part)[1] for _, part in elements], shape)
    if array_class == STRUCT:
        return name, _struct(elements, shape)
    if array_class == TEXT:
        type_, text = next(elements, (16, b""))
        return name, text.decode("utf-8") if type_ == 16 else "".join(map(chr, _numbers(type_, text)))
    if array_class in NUMBERS:
        return name, _numbers(*next(elements)).reshape(shape, order="F")
    raise ValueError(f"array of class {array_class}")


def _struct(elements: Iterator[tuple[int, bytes]], shape: tuple[int, ...]) -> Any:
    width = int(_numbers(*next(elements))[0])
    names = next(elements)[1]
    fields = [names[i : i + width].split(b"\0")[0].decode("ascii") for i in range(0, len(names), width)]
    values = [_read_array(part)[1] for _, part in elements]
    count = len(fields) or 1
    return _objects(
        [dict(zip(fields, values[i : i + count], strict=True)) for i in range(0, len(values), count)], shape
    )


def _objects(values: list[Any], shape: tuple[int, ...]) -> Any:
    array = np.empty(len(values), object)
    for i, value in enumerate(values):  # one by one, because a slice would spread values that are arrays
        array[i] = value
    return array.reshape(shape, order="F")
