"""Reads the MATLAB 5 files (.mat) that come with some data sets: index lists, partitions, permutations.

Only what such lists hold is understood: numbers, texts, cells and structs.  Files saved with -v7.3
are HDF5 and are refused.  The format: "MAT-File Format", The MathWorks, chapter 1.
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
    """The variables of a MATLAB 5 file by name.

    Numbers are arrays of at least two axes, as MATLAB has them; texts are str; cells are object
    arrays; a struct array is an object array of dicts.
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
        return dict(_matrix(body) for kind, body in _elements(_unpacked(data[HEADER:])) if kind == MATRIX)
    except (struct.error, ValueError, KeyError, IndexError, StopIteration, zlib.error) as error:
        raise DataError(f"{path}: damaged, or holds what is not read here ({type(error).__name__}: {error})") from error


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content) of the elements that follow each other; four bytes or fewer stand inside the tag."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind >> 16:
            yield kind & 0xFFFF, data[at + 4 : at + 4 + (kind >> 16)]
            at += 8
            continue
        if at + 8 + size > len(data):
            raise ValueError("the file ends inside an element")
        yield kind, data[at + 8 : at + 8 + size]
        at += 8 + (size if kind == COMPRESSED else size + -size % 8)


def _unpacked(data: bytes) -> bytes:
    """The elements of a file, each compressed one in the clear."""
    parts = []
    for kind, body in _elements(data):
        plain = zlib.decompress(body) if kind == COMPRESSED else struct.pack("<II", kind, len(body)) + body
        parts.append(plain + bytes(-len(plain) % 8))
    return b"".join(parts)


def _numbers(kind: int, body: bytes) -> Any:
    return np.frombuffer(body, "<" + TYPES[kind])


def _matrix(body: bytes) -> tuple[str, Any]:
    """Name and value of one array; MATLAB stores columns first."""
    if not body:
        return "", np.zeros((0, 0))
    elements = _elements(body)
    what = int(_numbers(*next(elements))[0]) & 0xFF
    shape = tuple(int(n) for n in _numbers(*next(elements)))
    name = next(elements)[1].decode("ascii")
    if what == CELL:
        return name, _objects([_matrix(part)[1] for _, part in elements], shape)
    if what == STRUCT:
        return name, _struct(elements, shape)
    if what == TEXT:
        kind, text = next(elements, (16, b""))
        return name, text.decode("utf-8") if kind == 16 else "".join(map(chr, _numbers(kind, text)))
    if what in NUMBERS:
        return name, _numbers(*next(elements)).reshape(shape, order="F")
    raise ValueError(f"array of class {what}")


def _struct(elements: Iterator[tuple[int, bytes]], shape: tuple[int, ...]) -> Any:
    width = int(_numbers(*next(elements))[0])
    names = next(elements)[1]
    fields = [names[i : i + width].split(b"\0")[0].decode("ascii") for i in range(0, len(names), width)]
    values = [_matrix(part)[1] for _, part in elements]
    count = len(fields) or 1
    return _objects(
        [dict(zip(fields, values[i : i + count], strict=True)) for i in range(0, len(values), count)], shape
    )


def _objects(values: list[Any], shape: tuple[int, ...]) -> Any:
    array = np.empty(len(values), object)
    for i, value in enumerate(values):  # slices would spread values that are arrays themselves
        array[i] = value
    return array.reshape(shape, order="F")
