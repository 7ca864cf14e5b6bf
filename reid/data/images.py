"""Read image files: complete, upright and in RGB, or as an error of one line."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from reid.errors import ConfigError, DataError
from reid.files import require_regular_file

# The formats that may be opened. Pillow knows more, and some of them start other programs (PostScript).
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".bmp", ".webp", ".tif", ".tiff"})

# How to turn an image of each EXIF orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_JPEG_START = b"\xff\xd8\xff"
_METADATA_MARKS = (b"Exif", b"ns.adobe.com")  # of the metadata that may hold an orientation
_SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
_WHITE_IS_ZERO = 0  # of the TIFF tag PhotometricInterpretation
# Pillow's table of the kinds of TIFF lacks 16-bit grey with white as zero in big-endian order: byte order, photometric
# interpretation, sample format, fill order, bits, further samples -> mode and order of the bytes.
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", _WHITE_IS_ZERO, (1,), 1, (16,), ()), ("I;16B", "I;16B"))
# What Pillow's decoders raise on damaged files, beside UnidentifiedImageError.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


def read_image(path: Path, decoder: str = "pillow", size: tuple[int, int] | None = None) -> Image.Image:
    """Read an image file.

    The image is turned as its EXIF orientation asks; other metadata are not read, so damage there does not matter.
    16-bit grey images, as thermal cameras deliver them, are scaled from 0..65535 to 0..255.  Transparency is dropped.

    Args:
        path: The file, in one of the formats of ``IMAGE_FORMATS``.
        decoder: What decodes JPEG files: "pillow"; "simplejpeg", which is faster and gives the same pixels; or
            "draft", with which Pillow decodes at a half, a quarter or an eighth of the size, and gives others.
        size: Width and height below which "draft" does not go; without it nothing is drafted.

    Returns:
        The decoded image in mode RGB.

    Raises:
        DataError: The file is missing, empty, damaged, incomplete, too large, or not an image.
        ConfigError: The package simplejpeg is missing.
    """

    def open_file() -> BinaryIO:
        require_regular_file(path, "image")
        return path.open("rb")

    return _decode(open_file, path, decoder, size)


def read_pixels(path: Path, decoder: str = "pillow", size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """Read the pixels (H, W, 3) uint8 of an image file, the same as those of :func:`read_image`, in less time.

    Args:
        path: As for :func:`read_image`.
        decoder: As for :func:`read_image`.
        size: As for :func:`read_image`.

    Returns:
        Red, green and blue.

    Raises:
        DataError: As for :func:`read_image`.
        ConfigError: The package simplejpeg is missing.
    """
    pixels = _decode_plain_jpeg(path) if decoder == "simplejpeg" else None
    return np.array(read_image(path, decoder, size)) if pixels is None else pixels


def _decode_plain_jpeg(path: Path) -> npt.NDArray[np.uint8] | None:
    """Decode a JPEG file in colour without EXIF or XMP, which could turn it; None for any other file, or a bad one."""
    simplejpeg = _import_simplejpeg()
    try:
        require_regular_file(path, "image")
        content = path.read_bytes()
        if not content.startswith(_JPEG_START) or any(mark in content for mark in _METADATA_MARKS):
            return None
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours != "YCbCr" or height * width > (Image.MAX_IMAGE_PIXELS or 0):
            return None
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "RGB")
    except (OSError, ValueError):  # read_image tells what is wrong, or decodes it all the same
        return None
    return pixels


def _import_simplejpeg() -> Any:
    try:
        import simplejpeg
    except ImportError as error:
        raise ConfigError(
            'decoder simplejpeg: needs the package simplejpeg: run pip install "simplejpeg"; or take pillow'
        ) from error
    return simplejpeg


def decode_image(content: bytes, name: Path) -> Image.Image:
    """Decode the content of an image file, as :func:`read_image` does.

    Args:
        content: All bytes of the file.
        name: What messages call the file.

    Returns:
        The decoded image in mode RGB.

    Raises:
        DataError: The content is empty, damaged, incomplete, too large, or not an image.
    """
    return _decode(lambda: BytesIO(content), name)


def _decode(
    open_file: Callable[[], BinaryIO], path: Path, decoder: str = "pillow", size: tuple[int, int] | None = None
) -> Image.Image:
    # Pillow gets an open file, because given a path some of its decoders open or map the file again by themselves.
    try:
        with open_file() as file:
            if not file.read(1):
                raise DataError(f"{path}: the image is an empty file; copy or download it again")
            file.seek(0)
            image: Image.Image = Image.open(file, formats=IMAGE_FORMATS)
            white_is_zero = image.format == "TIFF" and _photometric(image) == _WHITE_IS_ZERO
            if image.format == "JPEG" and decoder != "pillow":
                image = _decode_jpeg(image, file, decoder, size)
            image.load()
            turn = _TURNS.get(_orientation(image))
            return _to_rgb(image if turn is None else image.transpose(turn), path, white_is_zero)
    except FileNotFoundError:
        raise DataError(f"{path}: no such image") from None
    except IsADirectoryError:
        raise DataError(f"{path}: expected an image, got a folder") from None
    except PermissionError:
        raise DataError(f"{path}: no permission to read the image") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image in a known format (JPEG, PNG, BMP, WebP, TIFF, GIF)") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: the image is far too large for a crop; cut out the person or vehicle") from error
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: the image is damaged or cut off ({reason}); copy or download it again") from error


def _decode_jpeg(image: Image.Image, file: BinaryIO, decoder: str, size: tuple[int, int] | None) -> Image.Image:
    """Decode an opened JPEG file faster than Pillow does by itself, or leave it to Pillow."""
    if decoder == "draft":
        if size is not None:
            is_turned = _orientation(image) in _SIDEWAYS
            image.draft(None, size[::-1] if is_turned else size)
        return image
    if image.mode != "RGB":
        return image
    simplejpeg = _import_simplejpeg()
    exif = image.getexif()
    file.seek(0)
    try:
        decoded = Image.fromarray(simplejpeg.decode_jpeg(file.read(), "RGB"))
    except ValueError:  # Pillow decodes some files that simplejpeg refuses, and tells what is wrong with the others
        file.seek(0)
        return image
    decoded.getexif().update(exif)
    return decoded


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, also where it is written as text; 1, which is upright, where there is none."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (*_DAMAGED, LookupError, TypeError, AttributeError, OverflowError):
        return 1


def _photometric(image: Image.Image) -> object:
    tags = getattr(image, "tag_v2", {})
    return tags.get(ExifTags.Base.PhotometricInterpretation)


def _to_rgb(image: Image.Image, path: Path, white_is_zero: bool = False) -> Image.Image:
    if image.mode == "RGB":
        return image.copy()
    if image.mode.startswith("I"):  # Pillow's own conversion of 16-bit grey clips at 255
        values = np.asarray(image, dtype=np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{path}: pixel values go beyond 16 bits; convert the image to 8 or 16 bits")
        grey = ((values + 128) // 257).astype(np.uint8)
        image = Image.fromarray(255 - grey if white_is_zero else grey)  # Pillow turns 8 bits itself
    elif image.mode == "F":
        raise DataError(f"{path}: floating-point pixels have no agreed range; convert the image to 8 or 16 bits")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # a palette with transparency warns when it goes to RGB directly
    return image.convert("RGB")
