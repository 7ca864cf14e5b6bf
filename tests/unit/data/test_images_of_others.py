"""Images of others: metadata of wrong types, TIFF files on their side, white as zero, formats that are refused."""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid.data.images import IMAGE_FORMATS, read_image
from reid.errors import DataError

SHORT, ASCII, LONG, RATIONAL, UNDEFINED, SIGNED_RATIONAL = 3, 2, 4, 5, 7, 10
ORIENTATION, MAKE, X_RESOLUTION, EXIF_FOLDER = 0x0112, 0x010F, 0x011A, 0x8769

Entry = tuple[int, int, int, bytes]  # tag, type, count, value


def short(tag: int, value: int) -> Entry:
    return tag, SHORT, 1, struct.pack("<HH", value, 0)


def exif(*entries: Entry) -> bytes:
    """A block of metadata with these entries; values of more than four bytes lie behind them."""
    table, behind = struct.pack("<H", len(entries)), b""
    begin = 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        if len(value) > 4:
            value, behind = struct.pack("<I", begin + len(behind)), behind + value
        table += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0" + b"II*\0" + struct.pack("<I", 8) + table + struct.pack("<I", 0) + behind


def lying(folder: Path, *entries: Entry) -> Path:
    """A JPEG of 96 x 64 pixels that stands upright, 64 x 96, when it is turned as orientation 6 asks."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48] = 255  # the top, once turned
    Image.fromarray(pixels).save(folder / "a.jpg", exif=exif(*entries), quality=95)
    return folder / "a.jpg"


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some of these metadata
@pytest.mark.parametrize(
    "entries",
    [
        [(ORIENTATION, ASCII, 2, b"6\0")],
        [short(ORIENTATION, 6), (X_RESOLUTION, ASCII, 6, b"72dpi\0")],
        [short(ORIENTATION, 6), (X_RESOLUTION, SIGNED_RATIONAL, 1, struct.pack("<ii", -72, 0))],
        [short(ORIENTATION, 6), (X_RESOLUTION, RATIONAL, 2, struct.pack("<IIII", 72, 1, 72, 1))],
        [(MAKE, RATIONAL, 1, struct.pack("<II", 1, 2)), short(ORIENTATION, 6)],
        [short(ORIENTATION, 6), (MAKE, SIGNED_RATIONAL, 1, struct.pack("<ii", -1, -2))],
        [short(ORIENTATION, 6), (EXIF_FOLDER, ASCII, 6, b"wrong\0")],
        [short(ORIENTATION, 6), (EXIF_FOLDER, LONG, 1, struct.pack("<I", 2**31))],
        [short(ORIENTATION, 6), (MAKE, UNDEFINED, 2**20, b"gone beyond the end")],
    ],
    ids=["text", "resolution text", "negative", "two", "make", "signed make", "folder text", "folder far", "beyond"],
)
def test_metadata_of_wrong_types_do_not_matter(entries: list[Entry], tmp_path: Path) -> None:
    image = read_image(lying(tmp_path, *entries))
    assert image.size == (64, 96)
    assert np.asarray(image)[:40].mean() > 250
    assert np.asarray(image)[56:].mean() < 5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", [(ORIENTATION, ASCII, 4, b"top\0"), short(ORIENTATION, 9), short(ORIENTATION, 0)])
def test_an_orientation_that_means_nothing(entry: Entry, tmp_path: Path) -> None:
    assert read_image(lying(tmp_path, entry)).size == (96, 64)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_tiff_in_any_orientation(mode: str, orientation: int, tmp_path: Path) -> None:
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 30, 3), dtype=np.uint8)).convert(mode)
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # to Pillow's operations, inverted
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(turn[orientation]))
    stored.save(tmp_path / "a.tif", tiffinfo={ORIENTATION: orientation})
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.tif")), np.asarray(upright.convert("RGB")))


@pytest.mark.parametrize("bits", [8, 16])
def test_white_is_zero(bits: int, tmp_path: Path) -> None:
    """Grey values in which 0 means white, as scanners and thermal cameras store them."""
    white = np.array([[255, 128, 0]], np.uint8)
    stored = 255 - white if bits == 8 else (65535 - white.astype(np.uint16) * 257).astype(np.uint16)
    stream = BytesIO()
    Image.fromarray(stored).save(stream, "TIFF")
    data = stream.getvalue()
    plain, inverted = (struct.pack("<HHIHH", 262, SHORT, 1, value, 0) for value in (1, 0))
    assert plain in data
    (tmp_path / "a.tif").write_bytes(data.replace(plain, inverted))
    assert np.asarray(read_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [255, 128, 0]


def test_formats_that_are_not_opened(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "a.jpg")
    assert "format" in str(caught.value)
    assert "EPS" not in IMAGE_FORMATS


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "a.jpg")
    assert "pipe" in str(caught.value)


def grey_tiff(values: np.ndarray, order: str, white: int, compressed: bool) -> bytes:
    """Write 16-bit grey (H, W) as TIFF, field by field; ``order`` is "<" or ">", ``white`` is 0 where white is zero."""
    pixels = values.astype(f"{order}u2").tobytes()
    pixels = zlib.compress(pixels) if compressed else pixels
    start = 8 + len(pixels) + len(pixels) % 2
    height, width = values.shape
    shorts = {256: width, 257: height, 258: 16, 259: 8 if compressed else 1, 262: white, 277: 1, 278: height}
    fields = {tag: struct.pack(order + "HHIHH", tag, 3, 1, value, 0) for tag, value in shorts.items()}
    longs = {273: 8, 279: len(pixels)}
    fields |= {tag: struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in longs.items()}
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, start)
    directory = struct.pack(order + "H", len(fields)) + b"".join(fields[tag] for tag in sorted(fields)) + bytes(4)
    return head + pixels + bytes(len(pixels) % 2) + directory


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white", [0, 1])
@pytest.mark.parametrize("compressed", [False, True])
def test_16_bit_grey_in_both_byte_orders(order: str, white: int, compressed: bool, tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 7 * 5).round().astype(np.uint16).reshape(7, 5)
    (tmp_path / "grey.tif").write_bytes(grey_tiff(values, order, white, compressed))
    found = np.asarray(read_image(tmp_path / "grey.tif"))[:, :, 1]
    bright = (values.astype(int) + 128) // 257
    np.testing.assert_array_equal(found, bright if white else 255 - bright)
