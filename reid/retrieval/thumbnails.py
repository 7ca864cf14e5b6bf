"""Thumbnails: small JPEG images of the crops of a segment, in one file beside its vectors.

They are kept where the images themselves may be elsewhere, or gone. A thumbnail leaves the files with its row, when the
gallery is compacted.

The file is a NumPy array of bytes. It begins with two whole numbers of 8 bytes for each row, the end of its image and
the checksum (CRC-32) of its bytes, and the images follow.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from reid.data.images import read_image
from reid.errors import DataError
from reid.records import IntArray, Sample
from reid.retrieval.numpy_files import flat_values

if TYPE_CHECKING:
    from PIL import Image

LARGEST = 10_000  # bytes of a thumbnail
BOX = (128, 192)  # pixels that it fits into
QUALITIES = (80, 60, 40, 20)  # of JPEG, tried until the image is small enough

NUMBERS = 2  # for each row


def thumbnail_of(image: Image.Image) -> bytes:
    """Return an image as a JPEG of at most ``LARGEST`` bytes.

    Args:
        image: The crop.

    Example:
        >>> from PIL import Image
        >>> len(thumbnail_of(Image.new("RGB", (640, 480)))) < LARGEST
        True
    """
    small = image.convert("RGB")
    small.thumbnail(BOX)
    while True:
        for quality in QUALITIES:
            stream = io.BytesIO()
            small.save(stream, "JPEG", quality=quality, optimize=True)
            if stream.tell() <= LARGEST:
                return stream.getvalue()
        small = small.resize((max(1, small.width // 2), max(1, small.height // 2)))


def thumbnails_of(samples: Iterable[Sample]) -> list[bytes]:
    """Read the images of some samples, and return each as a small JPEG.

    Raises:
        DataError: An image cannot be read.
    """
    return [thumbnail_of(read_image(sample.path)) for sample in samples]


def write_thumbnails(path: Path, parts: Iterable[Sequence[bytes]], sizes: IntArray, checks: IntArray) -> None:
    """Write the images of the rows of a segment; an empty one stands for none.

    Args:
        path: The file.
        parts: The images, some rows at a time.
        sizes: (N,) int64, their sizes in bytes.
        checks: (N,) int64, their checksums.
    """
    ends = NUMBERS * 8 * len(sizes) + np.cumsum(sizes)
    numbers = np.stack([ends, checks], axis=1).astype("<i8")
    with path.open("wb") as stream:
        shape = (int(ends[-1]) if len(ends) else 0,)
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
        stream.write(numbers.tobytes())
        for part in parts:
            stream.write(b"".join(part))


class Thumbnails:
    """The thumbnails of a segment.

    Args:
        path: The file.
        rows: The number N of rows of the segment.

    Raises:
        ValueError: The file is none of thumbnails.
        OSError: The file cannot be read.
    """

    def __init__(self, path: Path, rows: int):
        self.path, self._rows = path, rows
        self._values: npt.NDArray[np.uint8] = flat_values(path, "|u1")  # stays readable when the file is removed

    @cached_property
    def _numbers(self) -> tuple[IntArray, IntArray, IntArray]:
        """Where the images start and end, and their checksums, (N,) int64 each."""
        head = NUMBERS * 8 * self._rows
        if len(self._values) < head:
            raise DataError(f"{self.path}: the thumbnails of {self._rows} rows are not there")
        numbers = self._values[:head].view("<i8").reshape(self._rows, NUMBERS).astype(np.int64)
        starts, ends = np.append(head, numbers[:-1, 0]), numbers[:, 0]
        if np.any(ends < starts) or ends[-1] != len(self._values):
            raise DataError(f"{self.path}: the thumbnails are damaged")
        return starts, ends, numbers[:, 1]

    def sizes(self, rows: IntArray) -> IntArray:
        """Return the sizes in bytes (K,) of the images of some rows (K,)."""
        starts, ends, _ = self._numbers
        sizes: IntArray = ends[rows] - starts[rows]
        return sizes

    def images(self, rows: IntArray) -> list[bytes]:
        """Return the images of some rows (K,); b"" where there is none.

        Raises:
            DataError: An image is damaged.
        """
        found = []
        starts, ends, checks = self._numbers
        for row in rows.tolist():
            image = self._values[starts[row] : ends[row]].tobytes()
            if zlib.crc32(image) != checks[row]:
                raise DataError(f"{self.path}: the thumbnail of a row is damaged")
            found.append(image)
        return found
